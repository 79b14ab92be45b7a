"""The Openclipart collection of 2005-2006 as Debian carries it: pictures, titles, keywords and folders.

The pictures are in one package, their titles, keywords and licences inside the SVG files of another. What is not
stated to be in the public domain is left out, and so are second copies of a picture, also under another title, what is
far too large, and what is white on white. All pictures are read once, for
each size, into the cache.
"""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from umbel.data.assemble import plain
from umbel.data.config import DataConfig
from umbel.data.errors import DamagedDataError
from umbel.data.sets import artwork
from umbel.data.sources import debian
from umbel.data.sources.cache import Entry, Maker, cached

PACKAGES = (
    debian.Package("openclipart-png", "usr/share/openclipart/png"),
    debian.Package("openclipart-svg", "usr/share/openclipart/svg"),
)
LICENCE = "public domain (as each drawing states; those that do not are left out)"
ATTRIBUTION = "the Open Clip Art Library and the authors named in its files"
UNSORTED = "unsorted"

# A handful have up to 623 million, which would take gigabytes to read; PIL warns above about 89 million.
MOST_PIXELS = 64_000_000

_FORMAT = 3  # of the cached entry; raise it when what is read changes
_DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"
# `HASH` and `HASH(0x858df04)` are what the library's own script wrote for a list.
_NO_KEYWORD = re.compile(rf"(hash(\(0x[0-9a-f]+\))?|{UNSORTED})?")


@dataclass(frozen=True)
class ClipArt:
    """The distinct pictures of the collection.

    Attributes:
        images: [N, 3, S, S] uint8, mapped into memory.
        titles: Title of each as it is compared, see `umbel.data.assemble.plain`; that of a whole series may be one.
        names: Title of each as it is written.
        keywords: Keywords of each, without capitals.
        classes: Top folder of each.
    """

    images: NDArray[np.uint8]
    titles: list[str]
    names: list[str]
    keywords: list[list[str]]
    classes: list[str]


def check(config: DataConfig) -> None:
    """Raise `MissingDataError` when a package is not there."""
    debian.folders(PACKAGES, config.path, config.name)


def fetch(config: DataConfig, say: Callable[[str], None]) -> None:
    """Download the packages that are not there; see `umbel.data.sources.debian.fetch`."""
    debian.fetch(PACKAGES, config.path, config.name, say)


def load(config: DataConfig, size: int) -> ClipArt:
    """Return the collection, from the cache where it has been read before.

    Args:
        config: Where the packages are.
        size: S in pixels.

    Raises:
        MissingDataError: A package is not there.
        DamagedDataError: A file of theirs cannot be read; the message names it.
    """
    pictures, drawings = debian.folders(PACKAGES, config.path, config.name)
    pngs = debian.files(pictures, [".png"])
    prints = [
        debian.fingerprint(package, folder, files)
        for package, folder, files in zip(
            PACKAGES, (pictures, drawings), (pngs, debian.files(drawings, [".svg"])), strict=True
        )
    ]
    key = {"format": _FORMAT, "image_size": size, "packages": prints, "pillow": version("pillow")}
    entry = cached("sets", "openclipart", key, lambda maker: _make(maker, pictures, drawings, pngs, size))
    return _opened(entry)


def _opened(entry: Entry) -> ClipArt:
    facts = entry.facts
    images = entry["images"][: len(facts["titles"])]  # the rows of what was left out are at the end, and empty
    return ClipArt(images, facts["titles"], facts["names"], facts["keywords"], facts["classes"])


def _make(maker: Maker, pictures: Path, drawings: Path, files: list[Path], size: int) -> None:
    images = maker.empty("images", (len(files), 3, size, size), np.uint8)
    titles: list[str] = []
    keywords: list[list[str]] = []
    classes: list[str] = []
    seen: set[bytes] = set()
    left_out = dict.fromkeys(("not_free", "too_large", "copies", "blank"), 0)
    for file in files:
        relative = file.relative_to(pictures)
        title, words, free = _described(drawings / relative.with_suffix(".svg"))
        reason, picture = ("" if free and title else "not_free"), None
        if not reason:
            picture, reason = _read(file, size, seen)
        if picture is None:
            left_out[reason] += 1
            continue
        images[len(titles)] = picture
        titles.append(title)
        keywords.append(words)
        classes.append(relative.parts[0])
    maker.note(
        licence=LICENCE,
        attribution=ATTRIBUTION,
        left_out=left_out,
        titles=[plain(title) for title in titles],
        names=titles,
        keywords=keywords,
        classes=classes,
    )


def _read(file: Path, size: int, seen: set[bytes]) -> tuple[NDArray[np.uint8] | None, str]:
    """Return a picture, [3, S, S], and "", or None and why it does not count; what was seen is added to `seen`."""
    if artwork.pixels(file) > MOST_PIXELS:
        return None, "too_large"
    # First the file, which costs less, and then what is left of it at this size.
    content = hashlib.sha256(file.read_bytes()).digest()
    if content in seen:
        return None, "copies"
    picture = artwork.read(file, size)
    if int(picture.min()) == int(picture.max()):
        return None, "blank"
    shown = hashlib.sha256(picture.tobytes()).digest()
    if shown in seen:
        return None, "copies"
    seen |= {content, shown}
    return picture, ""


def _described(drawing: Path) -> tuple[str, list[str], bool]:
    """Return title and keywords of a drawing, and whether it says that it is in the public domain."""
    try:
        root = ElementTree.fromstring(drawing.read_bytes())  # noqa: S314  a signed package; expat limits expansion
    except (OSError, ElementTree.ParseError) as error:
        raise DamagedDataError(
            f"{drawing}: cannot be read ({error}).",
            remedy="Install it again with\n    sudo apt-get install --reinstall openclipart-svg",
        ) from error
    title = ""
    keywords: list[str] = []
    licences: list[str] = []
    for element in root.iter():
        if element.tag == f"{_DUBLIN_CORE}title" and not title:
            title = " ".join((element.text or "").split())
        elif element.tag.endswith("}li"):
            word = " ".join((element.text or "").split()).casefold()
            if not _NO_KEYWORD.fullmatch(word) and word not in keywords:
                keywords.append(word)
        elif element.tag.endswith("}license"):
            licences += element.attrib.values()
    free = any(licence.replace(" ", "").rstrip("/").casefold().endswith("publicdomain") for licence in licences)
    return title, sorted(keywords), free
