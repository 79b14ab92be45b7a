"""`openclipart_pairs`: drawings of the Open Clip Art Library with their titles and keywords as captions.

No caption occurs twice: for retrieval, an identical caption of another picture is a right answer that counts as a
wrong one. The split is by title, so neither a title nor a caption is on two sides. Keywords often contain the name
of the folder, which is the class; unless `folder_words=true`, words that begin like a word of it are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from umbel.data import assemble, pictures
from umbel.data.config import DataConfig
from umbel.data.sets import clip_art, openclipart
from umbel.data.types import DataSet

DESCRIPTION = "drawings of the Open Clip Art Library with titles and keywords as captions; Debian packages"
OPTIONS: dict[str, Any] = {"image_size": 64, "min_examples": 1, "folder_words": False, "unsorted": False}

_WORD = re.compile(r"[^\W_]+")


def check(config: DataConfig) -> None:
    """Raise for options that cannot be, and `MissingDataError` when a package is not there."""
    _options(config)
    clip_art.check(config)


def fetch(config: DataConfig, say: Callable[[str], None]) -> None:
    """Get the packages, and read all pictures into the cache, which `openclipart` shares."""
    options = {name: value for name, value in config.options.items() if name in openclipart.OPTIONS}
    openclipart.fetch(DataConfig(name=config.name, path=config.path, options=options), say)


def load(config: DataConfig, _seed: int) -> DataSet:
    """Return the pairs.

    Args:
        config: Where the packages are, and the options.
        _seed: Changes nothing here.

    Raises:
        MissingDataError: A package is not there.
        DamagedDataError: A file cannot be read.
        DataError: No class has `min_examples`.
    """
    size, min_examples, folder_words, with_unsorted = _options(config)
    collection = clip_art.load(config, size)
    captions = [
        caption(name, keywords, "" if folder_words else folder)
        for name, keywords, folder in zip(collection.names, collection.keywords, collection.classes, strict=True)
    ]
    rows = [
        row
        for row, text in enumerate(captions)
        if text and (with_unsorted or collection.classes[row] != clip_art.UNSORTED)
    ]
    rows = [rows[first] for first in assemble.first_of([assemble.plain(captions[row]) for row in rows])]
    return assemble.data_set(
        "openclipart_pairs",
        classes=[collection.classes[row] for row in rows],
        keys=[collection.titles[row] for row in rows],
        images=collection.images,
        rows=rows,
        texts=[captions[row] for row in rows],
        min_examples=min_examples,
        licence=clip_art.LICENCE,
        attribution=clip_art.ATTRIBUTION,
    )


def caption(name: str, keywords: Sequence[str], folder: str) -> str:
    """Return the caption of a drawing: its title, and after a colon its keywords.

    Args:
        name: Its title.
        keywords: Its keywords.
        folder: Words that begin like a word of this name are dropped, in singular or plural; "" drops none.

    Returns:
        The caption; "" where nothing is left.
    """
    stems = tuple(_stem(word) for word in folder.casefold().split("_") if word and word != "and")
    title = _without(name, stems)
    others = (keyword for keyword in keywords if keyword != folder.casefold())
    rest = [word for word in dict.fromkeys(_without(keyword, stems) for keyword in others) if word]
    # A keyword that is the title says nothing new.
    rest = [word for word in rest if word.casefold() != title.casefold()]
    return ": ".join(part for part in (title, ", ".join(rest)) if part)


def _stem(word: str) -> str:
    return word[:-1] if word.endswith("s") else word


def _without(text: str, stems: tuple[str, ...]) -> str:
    """Return the words of a text; runs of anything else are one space only where a word is dropped."""
    if not stems or not any(word.casefold().startswith(stems) for word in _WORD.findall(text)):
        return " ".join(text.replace("_", " ").split())
    return " ".join(word for word in _WORD.findall(text) if not word.casefold().startswith(stems))


def _options(config: DataConfig) -> tuple[int, int, bool, bool]:
    options = OPTIONS | config.options
    return (
        pictures.as_size(options["image_size"]),
        assemble.at_least(options, "min_examples", 1),
        assemble.flag(options, "folder_words"),
        assemble.flag(options, "unsorted"),
    )
