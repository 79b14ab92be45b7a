"""Picture files in folders: which belong to a set, and a sentence for each kind of file that does not.

A class is a folder with pictures in it, `<class>/*`, or `<domain>/<class>/*`. Hidden files and folders are left out:
they are what notebooks, desktops and archives leave behind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from umbel.core.names import shown
from umbel.data.errors import DataError

SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
_SHOWN = 3


@dataclass(frozen=True)
class PictureFiles:
    """The pictures below a folder.

    Attributes:
        paths: The files, sorted.
        notices: What was left out and why, a sentence each.
        num_deeper: Pictures that lie deeper than those.
    """

    paths: tuple[Path, ...]
    notices: tuple[str, ...]
    num_deeper: int


def find(root: Path, depth: int, form: str) -> PictureFiles:
    """Find the pictures that lie exactly `depth` levels below a folder.

    Args:
        root: The folder.
        depth: 2 for `<class>/*`, 3 for `<domain>/<class>/*`.
        form: What `depth` is called in the notices.
    """
    kept: list[Path] = []
    hidden: list[Path] = []
    shallow: list[Path] = []
    deep: list[Path] = []
    other: list[Path] = []
    for path in sorted(_files(root, depth)):
        names = path.relative_to(root).parts
        if any(name.startswith(".") for name in names):
            hidden.append(path)
        elif path.suffix.lower() not in SUFFIXES:
            # Lists and descriptions beside the classes are no part of any.
            other += [path] if len(names) >= depth else []
        elif len(names) == depth:
            kept.append(path)
        else:
            (deep if len(names) > depth else shallow).append(path)
    bare = sorted(_folders(root, depth - 1) - {path.parent for path in kept})
    notices = (
        left_out(root, "hidden files or folders", hidden),
        left_out(root, f"pictures that lie above {form}", shallow),
        left_out(root, f"pictures that lie deeper than {form}", deep),
        left_out(root, f"files whose suffix is none of {', '.join(sorted(SUFFIXES))}", other),
        left_out(root, f"folders without a picture at {form}, which are no classes", bare),
    )
    return PictureFiles(tuple(kept), tuple(notice for notice in notices if notice), len(deep))


def find_anywhere(root: Path) -> PictureFiles:
    """Find the pictures at any depth below a folder; links to folders are followed, none twice.

    Args:
        root: The folder.
    """
    kept: list[Path] = []
    hidden: list[Path] = []
    other: list[Path] = []
    entered = {root.resolve()}
    for place, folders, names in os.walk(root, onerror=_refuse, followlinks=True):
        here = Path(place)
        hidden += [here / name for name in (*folders, *names) if name.startswith(".")]
        for path in (here / name for name in names if not name.startswith(".")):
            (kept if path.suffix.lower() in SUFFIXES else other).append(path)
        new = [name for name in folders if not name.startswith(".") and (here / name).resolve() not in entered]
        entered.update((here / name).resolve() for name in new)
        folders[:] = new
    notices = (
        left_out(root, "hidden files or folders", sorted(hidden)),
        left_out(root, f"files whose suffix is none of {', '.join(sorted(SUFFIXES))}", sorted(other)),
    )
    return PictureFiles(tuple(sorted(kept)), tuple(notice for notice in notices if notice), 0)


def _refuse(error: OSError) -> NoReturn:
    """Refuse a folder that cannot be looked into: its pictures would be missing without a word."""
    raise DataError(
        f"The folder {shown(error.filename)} cannot be opened: {error.strerror}.",
        key="data.path",
        remedy="Let this account read it, or move it elsewhere.",
    ) from error


def require_classes(root: Path, files: PictureFiles, form: str, remedy: str) -> None:
    """Refuse pictures of fewer than two classes.

    Args:
        root: The folder they are in.
        files: The pictures of training, or all of them.
        form: What was looked for.
        remedy: What to do about it.

    Raises:
        DataError: There are none, or those of one class; the message has the notices.
    """
    classes = sorted({path.parent.name for path in files.paths})
    if len(classes) < 2:
        there = f"one class ({shown(classes[0])})" if classes else "none"
        raise DataError(
            " ".join(
                [f"{shown(root)}: expected pictures of two classes or more as {form}, found {there}.", *files.notices]
            ),
            key="data.path",
            remedy=remedy,
        )


def _files(root: Path, depth: int) -> Iterator[Path]:
    """Yield all files below a folder, and of a hidden folder the folder alone.

    Links to folders are followed as far as classes go, not deeper, where they could lead in circles.
    """
    for place, folders, names in os.walk(root, onerror=_refuse, followlinks=True):
        here = Path(place)
        level = len(here.relative_to(root).parts)
        yield from (here / name for name in names)
        yield from (here / name for name in folders if name.startswith("."))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and (level < depth - 1 or not (here / name).is_symlink())
        ]


def _folders(root: Path, depth: int) -> set[Path]:
    """Return the folders that lie `depth` levels below a folder and are not hidden."""
    paths = (path for path in root.glob("/".join(["*"] * depth)) if path.is_dir())
    return {path for path in paths if not any(name.startswith(".") for name in path.relative_to(root).parts)}


def left_out(root: Path, what: str, paths: Sequence[Path]) -> str:
    """Return the sentence about files or folders that were left out; none about none.

    Args:
        root: The folder they are in.
        what: What they are, in the plural.
        paths: The files.
    """
    if not paths:
        return ""
    names = ", ".join(shown(path.relative_to(root)) for path in paths[:_SHOWN])
    more = ", ..." if len(paths) > _SHOWN else ""
    return f"{shown(root)}: left out {len(paths):,} {what}: {names}{more}."
