"""`emoji_domains`: one concept drawn by several vendors, whose styles are the domains.

By default Google's, Twitter's, Fluent's (3D), OpenMoji's and OpenMoji's black-and-white drawings of up to 1,906 emoji.
Classes are Unicode's groups, or its subgroups: a natural long tail. Not every style draws everything (Fluent has no
newer ones, OpenMoji's black flags are one empty frame, which is left out unless `blanks`): with `complete` only what
all chosen styles draw counts, so that domains differ in style alone. Classes with fewer than `min_concepts` emoji are
left out; a small one may have nothing in the test set.

The split goes by concept, by a hash of its codepoints: what is tested was seen in no style. Emoji that look alike (a
man and a woman who surf) are one concept, see `umbel.data.sets.emoji.alike`; `concepts: codepoints` takes them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from umbel.data.config import DataConfig
from umbel.data.errors import DataError
from umbel.data.pictures import as_size
from umbel.data.sets.emoji import store
from umbel.data.sets.emoji.concepts import Concept
from umbel.data.types import DataSet, channel_statistics

DESCRIPTION = (
    "emoji by several vendors: one domain a drawing style, 9 groups or their subgroups; umbel data fetch emoji"
)
OPTIONS: dict[str, Any] = {
    "domains": "google,twitter,fluent,openmoji,openmoji-black",
    "labels": "groups",
    "image_size": 64,
    "min_concepts": 10,
    "complete": False,
    "concepts": "look_alikes",
    "blanks": False,
}

_LABELS = ("groups", "subgroups")
_CONCEPTS = ("look_alikes", "codepoints")


def check(config: DataConfig) -> None:
    """Raise `MissingDataError` without the pictures, and `DataError` for options that cannot be."""
    options = OPTIONS | config.options
    styles, size = store.styles_of(options["domains"]), as_size(options["image_size"])
    store.choice(options, "labels", _LABELS)
    store.choice(options, "concepts", _CONCEPTS)
    store.flag(options, "complete")
    store.flag(options, "blanks")
    least = options["min_concepts"]
    if not isinstance(least, int) or isinstance(least, bool) or least < 1:
        raise DataError(
            f"data.options.min_concepts must be a whole number of at least 1, found {least!r}.",
            key="data.options.min_concepts",
        )
    store.require(styles, size)


def fetch(config: DataConfig, say: Callable[[str], None]) -> None:
    """Fetch the packages of the chosen styles and render them."""
    options = OPTIONS | config.options
    store.fetch(store.styles_of(options["domains"]), as_size(options["image_size"]), say)


def load(config: DataConfig, _seed: int) -> DataSet:
    """Return the set; the seed changes nothing in it.

    Args:
        config: The options.
        _seed: Changes nothing here.

    Raises:
        MissingDataError: The pictures are not there; the message has the command.
        DataError: No concept is left.
    """
    check(config)
    options = OPTIONS | config.options
    styles, size = store.styles_of(options["domains"]), as_size(options["image_size"])
    concepts = store.concepts()
    entries = {name: store.pictures(name, size) for name in styles}
    drawn = {name: store.drawn(entry, options["blanks"]) for name, entry in entries.items()}
    need = len(styles) if options["complete"] else 1
    kept = [concept for concept in concepts if sum(concept.code in codes for codes in drawn.values()) >= need]
    classes = _classes(kept, options["labels"], options["min_concepts"])
    kept_codes = {concept.code for concept in kept if _class_of(concept, options["labels"]) in classes}
    if not kept_codes:
        raise DataError(
            f"emoji_domains: no class has {options['min_concepts']} concepts.",
            key="data.options.min_concepts",
            remedy="Lower data.options.min_concepts, or choose other data.options.domains.",
        )
    place = {name: label for label, name in enumerate(classes)}
    codes = (
        store.alike_codes(concepts) if options["concepts"] == "look_alikes" else [concept.code for concept in concepts]
    )
    columns = {
        "labels": torch.tensor([place.get(_class_of(concept, options["labels"]), -1) for concept in concepts]),
        "concepts": store.numbered(codes),
    }
    names = [concept.name for concept in concepts]
    split = {}
    for test in (False, True):
        picks = {
            style: [
                number
                for number, concept in enumerate(concepts)
                if concept.code in kept_codes and concept.code in drawn[style] and store.is_test(codes[number]) is test
            ]
            for style in styles
        }
        split[test] = store.examples(concepts, entries, picks, columns, names)
    mean, std = channel_statistics(split[False].images)
    return DataSet(
        name="emoji_domains",
        train=split[False],
        test=split[True],
        class_names=tuple(classes),
        domain_names=styles,
        mean=mean,
        std=std,
        licence=store.licence_of(entries),
        natural_ids=split[False].domains,
        attribution=store.attribution_of(entries, ["google", "emojibase"]),
    )


def _class_of(concept: Concept, labels: str) -> str:
    return concept.group if labels == "groups" else concept.subgroup


def _classes(kept: list[Concept], labels: str, least: int) -> list[str]:
    """Return the classes that have enough concepts, in Unicode's order."""
    sizes = Counter(_class_of(concept, labels) for concept in kept)  # counts in the order of the first of each
    return [name for name, size in sizes.items() if size >= least]
