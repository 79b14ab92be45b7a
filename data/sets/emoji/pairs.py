"""`emoji_pairs`: emoji with a caption each, for retrieval between images and texts.

The caption is the emoji's short name ("grinning face"), or the keywords that a word list has for it. A caption occurs
once: of concepts with the same one (upper and lower case do not count) the first of Unicode's order is kept, because
an identical caption of another image is a false negative. With several drawing styles a hash of the codepoints says
which one draws a concept; with `every_domain` all of them do, and a caption occurs once in each style.

The split goes by concept as in `emoji_domains`, so that neither a concept nor a caption is in two splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from umbel.data.config import DataConfig
from umbel.data.errors import DataError
from umbel.data.pictures import as_size
from umbel.data.sets.emoji import store
from umbel.data.sets.emoji.concepts import KEYWORDS, Concept
from umbel.data.types import DataSet, channel_statistics

DESCRIPTION = "emoji with a caption each (names or keywords), for image-text retrieval; umbel data fetch emoji"
OPTIONS: dict[str, Any] = {
    "domains": "google",
    "captions": "names",
    "keywords_from": "emojilib",
    "every_domain": False,
    "image_size": 64,
}

_CAPTIONS = ("names", "keywords")


def check(config: DataConfig) -> None:
    """Raise `MissingDataError` without the pictures, and `DataError` for options that cannot be."""
    options = OPTIONS | config.options
    styles, size = store.styles_of(options["domains"]), as_size(options["image_size"])
    store.choice(options, "captions", _CAPTIONS)
    store.choice(options, "keywords_from", KEYWORDS)
    store.flag(options, "every_domain")
    store.require(styles, size)


def fetch(config: DataConfig, say: Callable[[str], None]) -> None:
    """Fetch the packages of the chosen styles and render them."""
    options = OPTIONS | config.options
    store.fetch(store.styles_of(options["domains"]), as_size(options["image_size"]), say)


def load(config: DataConfig, _seed: int) -> DataSet:
    """Return the set; the seed changes nothing in it. Labels are Unicode's groups.

    Args:
        config: The options.
        _seed: Changes nothing here.

    Raises:
        MissingDataError: The pictures are not there; the message has the command.
    """
    check(config)
    options = OPTIONS | config.options
    styles, size = store.styles_of(options["domains"]), as_size(options["image_size"])
    concepts = store.concepts()
    entries = {name: store.pictures(name, size) for name in styles}
    drawn = {name: store.drawn(entry) for name, entry in entries.items()}
    captions = [_caption(concept, options) for concept in concepts]
    artists = [_artists(concept.code, drawn, bool(options["every_domain"])) for concept in concepts]
    kept = _unique(captions, artists)
    groups = list(dict.fromkeys(concept.group for number, concept in enumerate(concepts) if number in kept))
    codes = store.alike_codes(concepts)
    columns = {
        "labels": torch.tensor([groups.index(each.group) if each.group in groups else -1 for each in concepts]),
        "concepts": store.numbered(codes),
    }
    split = {}
    for test in (False, True):
        picks = {
            style: [number for number in kept if style in artists[number] and store.is_test(codes[number]) is test]
            for style in styles
        }
        split[test] = store.examples(concepts, entries, picks, columns, captions)
    if not len(split[False]) or not len(split[True]):
        raise DataError(
            "emoji_pairs: too few emoji are left for a split.",
            key="data.options.domains",
            remedy="Choose other data.options.domains.",
        )
    mean, std = channel_statistics(split[False].images)
    words = ["google", "emojibase"] if options["captions"] == "names" else ["google", options["keywords_from"]]
    return DataSet(
        name="emoji_pairs",
        train=split[False],
        test=split[True],
        class_names=tuple(groups),
        domain_names=styles,
        mean=mean,
        std=std,
        licence=store.licence_of(entries),
        natural_ids=split[False].domains,
        attribution=store.attribution_of(entries, words),
    )


def _caption(concept: Concept, options: Mapping[str, Any]) -> str:
    """Return a concept's caption; empty where the chosen words have none."""
    if options["captions"] == "names":
        return concept.name
    return ", ".join(concept.keywords[options["keywords_from"]])


def _artists(code: str, drawn: Mapping[str, frozenset[str]], every: bool) -> list[str]:
    """Return the styles whose picture of a concept is taken: all that draw it, or the one that a hash says."""
    able = [style for style, codes in drawn.items() if code in codes]
    if every or not able:
        return able
    digest = hashlib.sha256(f"style of {code}".encode()).digest()
    return [able[int.from_bytes(digest[:8], "little") % len(able)]]


def _unique(captions: Sequence[str], artists: Sequence[Sequence[str]]) -> dict[int, None]:
    """Return the numbers of the concepts that somebody draws and whose caption is no other's, in their order."""
    first: dict[str, int] = {}
    for number, caption in enumerate(captions):
        if caption and artists[number]:
            first.setdefault(caption.casefold(), number)
    return dict.fromkeys(first.values())
