"""`stamps`: the stamps of Tux Paint, each with a sentence that somebody wrote about it.

Read where Debian's package is installed, and kept in the user's own cache only: the pictures are under the GPL. The
classes are the top folders. Stamps that share a caption are one concept; by default the first by its path stands
for all, as an identical caption would count as a wrong answer in retrieval.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from umbel.data import assemble, pictures
from umbel.data.config import DataConfig
from umbel.data.errors import DamagedDataError, DataError
from umbel.data.sets import artwork
from umbel.data.sources import debian
from umbel.data.sources.cache import Maker, cached
from umbel.data.types import DataSet

DESCRIPTION = "stamps of Tux Paint, each with a caption that is a sentence, 16 folders; a Debian package, GPL-2"
# vectors: also the stamps that are drawn in SVG only, which needs resvg-py
OPTIONS: dict[str, Any] = {"image_size": 64, "min_examples": 1, "one_per_caption": True, "vectors": True}

PACKAGE = debian.Package("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps")
LICENCE = "GPL-2"
ATTRIBUTION = "Bill Kendrick and the authors of Tux Paint's stamps"

_FORMAT = 2
_REINSTALL = "    sudo apt-get install --reinstall --no-install-recommends tuxpaint-stamps-default"


def check(config: DataConfig) -> None:
    """Raise for options that cannot be, and `MissingDataError` for what is not installed."""
    _, _, _, vectors = _options(config)
    debian.folders([PACKAGE], config.path, config.name)
    if vectors:
        artwork.check_renderer(
            "or leave out the stamps without PNG with data.options.vectors=false.", key="data.options.vectors"
        )


def fetch(config: DataConfig, say: Callable[[str], None]) -> None:
    """Get the package, and read all stamps into the cache."""
    debian.fetch([PACKAGE], config.path, config.name, say)
    loaded = load(config, 0)
    say(f"stamps: {len(loaded.train) + len(loaded.test)} pictures with captions in the cache")


def load(config: DataConfig, _seed: int) -> DataSet:
    """Return the pairs.

    Args:
        config: Where the package is, and the options.
        _seed: Changes nothing here.

    Raises:
        MissingDataError: The package, or resvg-py, is not there.
        DamagedDataError: A file cannot be read.
        DataError: No class has `min_examples`.
    """
    check(config)
    size, min_examples, one_per_caption, vectors = _options(config)
    (root,) = debian.folders([PACKAGE], config.path, config.name)
    files = debian.files(root, [".png", ".svg", ".txt"])
    key = {
        "format": _FORMAT,
        "image_size": size,
        "vectors": vectors,
        "package": debian.fingerprint(PACKAGE, root, files),
        "versions": {each: version(each) for each in ("pillow", *(["resvg-py"] if vectors else []))},
    }
    entry = cached("sets", "stamps", key, lambda maker: _make(maker, root, files, size, vectors))
    captions, classes = entry.facts["captions"], entry.facts["classes"]
    keys = [assemble.plain(caption) for caption in captions]
    rows = assemble.first_of(keys) if one_per_caption else list(range(len(keys)))
    return assemble.data_set(
        "stamps",
        classes=[classes[row] for row in rows],
        keys=[keys[row] for row in rows],
        images=entry["images"],
        rows=rows,
        texts=[captions[row] for row in rows],
        min_examples=min_examples,
        licence=LICENCE,
        attribution=ATTRIBUTION,
    )


def _make(maker: Maker, root: Path, files: list[Path], size: int, vectors: bool) -> None:
    pairs = _pairs(files, vectors)
    if not pairs:
        raise DataError(
            f"{root}: expected pictures with captions beside them (frog.png and frog.txt), found none in {len(files)} "
            f"files.",
            remedy=f"Install the package again with\n{_REINSTALL}",
        )
    images = maker.empty("images", (len(pairs), 3, size, size), np.uint8)
    for row, (picture, _) in enumerate(pairs):
        images[row] = artwork.read(picture, size)
    maker.note(
        licence=LICENCE,
        attribution=ATTRIBUTION,
        captions=[_caption(file) for _, file in pairs],
        classes=[picture.relative_to(root).parts[0] for picture, _ in pairs],
    )


def _pairs(files: list[Path], vectors: bool) -> list[tuple[Path, Path]]:
    """Return pictures and the captions beside them; a stamp that is there in both forms is taken as PNG.

    The mirrored second pictures of some stamps have no caption, and drop out.
    """
    by_suffix = {
        suffix: {file.with_suffix("") for file in files if file.suffix == suffix} for suffix in (".png", ".svg", ".txt")
    }
    drawn = by_suffix[".png"] | (by_suffix[".svg"] if vectors else set())
    stems = sorted(drawn & by_suffix[".txt"], key=lambda stem: stem.parts)
    return [
        (
            stem.with_name(stem.name + (".png" if stem in by_suffix[".png"] else ".svg")),
            stem.with_name(f"{stem.name}.txt"),
        )
        for stem in stems
    ]


def _caption(file: Path) -> str:
    """Return the English caption: the first line of the file; the others are translations."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedDataError(
            f"{file}: cannot be read ({error}).", remedy=f"Install it again with\n{_REINSTALL}"
        ) from error
    caption = " ".join(lines[0].split()) if lines else ""
    if not caption or ".utf8=" in caption:
        raise DamagedDataError(
            f"{file}: expected a caption in its first line, found {caption!r}.",
            remedy=f"Install it again with\n{_REINSTALL}",
        )
    return caption


def _options(config: DataConfig) -> tuple[int, int, bool, bool]:
    options = OPTIONS | config.options
    return (
        pictures.as_size(options["image_size"]),
        assemble.at_least(options, "min_examples", 1),
        assemble.flag(options, "one_per_caption"),
        assemble.flag(options, "vectors"),
    )
