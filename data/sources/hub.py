"""`hub:<owner/name>`: any set of images, texts or captioned images of the Hugging Face hub, through flwr-datasets.

`hub:<folder>` reads a folder in the form of a downloaded set (parquet files, or pictures in folders) and needs no
network. Columns are found by their type: the one of images, the one of class labels. Where there are several,
options name them. `text_column` makes it a set of texts without images, `caption_column` one of image-text pairs.
Flower's usage reports are off unless the environment variable FLWR_TELEMETRY_ENABLED is set.

Nothing is decoded that is not kept, and a set that cannot fit into this machine's memory is refused before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from umbel.data import pictures
from umbel.data.assemble import plain
from umbel.data.config import DataConfig
from umbel.data.errors import DataError, MissingDataError
from umbel.data.sources.hub_columns import Columns, Pairing, Pairs, codes, column, hold_out, values
from umbel.data.sources.hub_pictures import Decoder
from umbel.data.sources.hub_rows import check_pictures, check_rows
from umbel.data.sources.hub_source import open_splits
from umbel.data.split import subset
from umbel.data.texts import Texts
from umbel.data.types import DataSet, Examples, channel_statistics

DESCRIPTION = "any set of images, texts or captioned images of the Hugging Face hub, or a folder in its form"
# Empty names are found by type; image_size 0 and in_channels 0 take those of the first picture.
OPTIONS: dict[str, Any] = {
    "image_column": "",
    "label_column": "",
    "domain_column": "",
    "natural_id_column": "",
    "text_column": "",  # a set of texts
    "caption_column": "",  # image-text pairs: a caption or a list of them for each image
    "image_id_column": "",  # of pairs: rows with one id show one image
    "captions": "first",  # of pairs: first, or all of an image's captions
    "train_split": "train",
    "test_split": "test",
    "subset": "",
    "revision": "",
    "cache_dir": "",
    "image_size": 0,
    "in_channels": 0,
    "white": 0,  # value of white in pictures of more than 8 bits; 0 takes what their format says
    "limit": 0,  # rows of each split, drawn by a constant before any is decoded; 0 is all
}

_SPLIT_SEED = 20_240_102
_TEST_FRACTION = 0.2

# Which rows of a split are wanted: (train or test, the rows) -> row numbers, ascending.
Choice = Callable[[str, Any], Sequence[int]]


def check(config: DataConfig) -> None:
    """Raise for what is wrong without asking the network: no name, no such folder, impossible options."""
    name = config.name.removeprefix("hub:")
    if not name or name.startswith("<"):
        raise DataError(f"data.name={config.name}: expected hub:<owner/name> or hub:<folder>.", key="data.name")
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise MissingDataError(
            f"data.name={config.name}: there is no folder {name}.", key="data.name", remedy="Set data.name to one."
        )
    check_options(OPTIONS | config.options)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise `DataError` for options that cannot be, whatever the set."""
    if options.get("image_size", 0) != 0:
        pictures.as_size(options["image_size"])
    if options.get("in_channels", 0) != 0:
        pictures.mode_of(options["in_channels"])
    pictures.as_white(options.get("white", 0))
    limit = options.get("limit", 0)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise DataError(
            f"data.options.limit must be a whole number of at least 0 (0 is all), found {limit!r}.",
            key="data.options.limit",
        )
    if options.get("captions", "first") not in ("first", "all"):
        raise DataError(
            f"data.options.captions must be first or all, found {options['captions']!r}.", key="data.options.captions"
        )
    if options.get("text_column") and options.get("caption_column"):
        raise DataError(
            "data.options.text_column is for texts without images and data.options.caption_column for texts of images.",
            key="data.options.text_column",
            remedy="Set one of them.",
        )


def load(config: DataConfig, _seed: int) -> DataSet:
    """Fetch the set, or read it from the cache of an earlier fetch.

    Args:
        config: The name after `hub:`, and the options.
        _seed: Changes nothing here.
    """
    return read(config.name.removeprefix("hub:"), config.options)


def read(
    source: str,
    given: Mapping[str, Any],
    licence: str = "",
    name: str = "",
    class_names: Sequence[str] = (),
    attribution: str = "",
    remedy: str = "data.name=hub:FOLDER",
    choose: Choice | None = None,
) -> DataSet:
    """Read a set of the hub, fetched where it is not in the cache, or of a folder.

    A set without a test split gives a fixed fifth to it, stratified by class and domain; of pairs, a fifth of the
    images. Of pairs, no caption is kept twice, and the test set takes first.

    Args:
        source: owner/name, or a folder.
        given: Options that differ from `OPTIONS`.
        licence: Overrides what the set says of itself.
        name: Name of the result; "" makes it `hub:<source>`.
        class_names: Overrides the names of the classes.
        attribution: Whom the licence asks to name.
        remedy: What to set, where there is no network, once the files are in a folder FOLDER.
        choose: Keeps some rows only, before any is decoded.

    Raises:
        MissingDataError: The set is not there, or there is no network.
        DataError: A split or a column is not there; the message lists those that are. Or a row has no label, several or
            no picture; the message names it. Or the set is larger than memory.
    """
    check_options(OPTIONS | dict(given))
    options = {key: str(value) for key, value in (OPTIONS | dict(given)).items()}
    splits, info = open_splits(source, options, remedy)
    columns = Columns.find(source, splits["train"].features, options)
    numbers = {key: range(len(split)) if choose is None else choose(key, split) for key, split in splits.items()}
    if columns.image:
        for key, split in splits.items():
            check_pictures(source, options[f"{key}_split"], columns.image, split, numbers[key])
    if choose is not None:
        splits = {key: split.select(numbers[key]) for key, split in splits.items()}
    notices = check_rows(source, splits, columns, options, numbers)
    classes = list(class_names) or columns.classes(splits)
    domains = values(splits, options["domain_column"])
    splits = _cut(splits, columns, options, classes, domains)
    empty = [key for key, split in splits.items() if not len(split)]
    if empty:
        option = f"data.options.{empty[0]}_split"
        raise DataError(f"{source}: no examples are left for {empty[0]}.", key=option, remedy=f"Check {option}.")
    pairs: dict[str, Pairs] = {}
    if options["caption_column"]:
        pairing = Pairing(options["captions"] == "all")
        for key in ("test", "train"):
            ids = column(splits[key], options["image_id_column"]) if options["image_id_column"] else None
            pairs[key] = pairing.take(column(splits[key], options["caption_column"]), ids)
    decoder = Decoder(source, splits["train"], columns.image, options)
    decoder.check_memory(sum(len(pairs[key].rows if pairs else split) for key, split in splits.items()))

    def examples(key: str) -> Examples:
        split = splits[key]
        rows = torch.tensor(pairs[key].rows if pairs else range(len(split)), dtype=torch.int64)
        texts = pairs[key].captions if pairs else None
        if options["text_column"]:
            texts = column(split, options["text_column"])
        return Examples(
            images=decoder.images(split, rows.tolist()),
            labels=columns.labels(split, classes)[rows],
            domains=codes(split, options["domain_column"], domains)[rows] if domains else None,
            concepts=torch.tensor(pairs[key].images, dtype=torch.int64) if pairs else None,
            texts=None if texts is None else Texts.of(texts),
        )

    train, test = examples("train"), examples("test")
    kept = torch.arange(len(train))
    if options["text_column"]:
        train, test, kept = _apart(train, test)
    natural_ids = train.domains
    people = values({"train": splits["train"]}, options["natural_id_column"])
    if people:
        natural_ids = codes(splits["train"], options["natural_id_column"], people)
        natural_ids = natural_ids[torch.tensor(pairs["train"].rows)] if pairs else natural_ids[kept]
    mean, std = channel_statistics(train.images) if decoder.size else ((), ())
    return DataSet(
        name=name or f"hub:{source}",
        train=train,
        test=test,
        class_names=tuple(map(str, classes)),
        domain_names=tuple(map(str, domains)),
        mean=mean,
        std=std,
        licence=licence or info or "see its page on the hub",
        natural_ids=natural_ids,
        attribution=attribution,
        notices=notices,
    )


def _apart(train: Examples, test: Examples) -> tuple[Examples, Examples, Tensor]:
    """Return texts with the same text as one concept, and without training examples whose text is tested.

    Returns:
        Training and test examples, and the numbers of the training examples that stay.
    """
    number: dict[str, int] = {}
    concepts = {}
    for side, examples in (("test", test), ("train", train)):
        keys = [plain(text) for text in examples.texts or ()]
        concepts[side] = torch.tensor([number.setdefault(key, len(number)) for key in keys], dtype=torch.int64)
    kept = (~torch.isin(concepts["train"], concepts["test"])).nonzero().flatten()
    marked = replace(train, concepts=concepts["train"]).take(kept)
    return marked, replace(test, concepts=concepts["test"]), kept


def _cut(
    splits: dict[str, Any],
    columns: Columns,
    options: Mapping[str, str],
    classes: Sequence[Any],
    domains: Sequence[Any],
) -> dict[str, Any]:
    """Return the splits with a test set, and no longer than the limit; nothing is decoded."""
    if "test" not in splits:
        groups = columns.labels(splits["train"], classes)
        if domains:
            groups = groups + len(classes) * codes(splits["train"], options["domain_column"], domains)
        images = options["image_id_column"] if options["caption_column"] else ""
        rest, held = hold_out(splits["train"], groups, images, _TEST_FRACTION, _SPLIT_SEED)
        splits = {"train": rest, "test": held}
    limit = int(options["limit"])
    if not limit:
        return splits
    return {
        key: split.select(subset(len(split), limit, _SPLIT_SEED, f"hub limit {key}").tolist())
        for key, split in splits.items()
    }
