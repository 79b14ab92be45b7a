"""`openclipart`: drawings of the Open Clip Art Library in folders, a long tail that nobody made.

The classes are the top folders. A series of drawings often has one title, and copies of a drawing are in several
folders; so by default each title gives one picture, the first by its path. With `one_per_title=false` every
distinct picture counts, and all of a title are on one side of the split, as they are one concept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from umbel.data import assemble, pictures
from umbel.data.config import DataConfig
from umbel.data.sets import clip_art
from umbel.data.types import DataSet

DESCRIPTION = "drawings of the Open Clip Art Library, colour, up to 22 folders in a natural long tail; Debian packages"
# Nobody sorted the folder `unsorted`: it is no class unless it is asked for.
OPTIONS: dict[str, Any] = {"image_size": 64, "min_examples": 10, "one_per_title": True, "unsorted": False}


def check(config: DataConfig) -> None:
    """Raise for options that cannot be, and `MissingDataError` when a package is not there."""
    _options(config)
    clip_art.check(config)


def fetch(config: DataConfig, say: Callable[[str], None]) -> None:
    """Get the packages, and read all pictures into the cache."""
    clip_art.fetch(config, say)
    size, *_ = _options(config)
    collection = clip_art.load(config, size)
    say(f"openclipart: {len(collection.titles)} pictures of {size} x {size} in the cache")


def load(config: DataConfig, _seed: int) -> DataSet:
    """Return the set.

    Args:
        config: Where the packages are, and the options.
        _seed: Changes nothing here.

    Raises:
        MissingDataError: A package is not there.
        DamagedDataError: A file cannot be read.
        DataError: No class has `min_examples`.
    """
    size, min_examples, one_per_title, with_unsorted = _options(config)
    collection = clip_art.load(config, size)
    rows = [row for row, each in enumerate(collection.classes) if with_unsorted or each != clip_art.UNSORTED]
    if one_per_title:
        rows = [rows[first] for first in assemble.first_of([collection.titles[row] for row in rows])]
    return assemble.data_set(
        "openclipart",
        classes=[collection.classes[row] for row in rows],
        keys=[collection.titles[row] for row in rows],
        images=collection.images,
        rows=rows,
        texts=[collection.names[row] for row in rows],
        min_examples=min_examples,
        licence=clip_art.LICENCE,
        attribution=clip_art.ATTRIBUTION,
    )


def _options(config: DataConfig) -> tuple[int, int, bool, bool]:
    options = OPTIONS | config.options
    return (
        pictures.as_size(options["image_size"]),
        assemble.at_least(options, "min_examples", 1),
        assemble.flag(options, "one_per_title"),
        assemble.flag(options, "unsorted"),
    )
