"""What is expensive to make and always the same: kept on disk, whole or not at all.

An entry is a folder of arrays and a manifest, named by what it was made of. It is made under a lock, so that two
processes make it once; it is renamed into place when it is whole, so that a kill leaves nothing of it; and its
checksums are compared when it is opened, so that a damaged one is made again. Arrays are mapped into memory: all
processes of a machine share one copy.

The folder is that of the environment variable UMBEL_CACHE, else `umbel` in the user's cache folder
(XDG_CACHE_HOME, `~/.cache`).
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import DTypeLike, NDArray

from umbel.core.files import read_json, write_folder, write_json
from umbel.data.errors import DataError

_MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 24
_NAME_BYTES = 80  # of an entry's name; a file's has 255 at most


def folder() -> Path:
    """Return the cache's folder."""
    named = os.environ.get("UMBEL_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "umbel"


@dataclass(frozen=True)
class Entry(Mapping[str, NDArray[Any]]):
    """Arrays of the cache, read-only and mapped into memory.

    Attributes:
        path: Its folder.
        facts: What its maker wrote down (`Maker.note`): licences, versions, names of classes.
        names: Names of the arrays.
    """

    path: Path
    facts: Mapping[str, Any]
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.names:
            raise KeyError(name)
        return np.asarray(np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Maker:
    """Fills an entry.

    Args:
        path: The folder that is being filled.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = {}

    def put(self, name: str, array: NDArray[Any]) -> None:
        """Write an array that is there already."""
        np.save(self.path / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)

    def empty(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array on disk, to be written in place piece by piece."""
        file = self.path / f"{name}.npy"
        array = np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(dtype), shape=shape)
        if hasattr(os, "posix_fallocate") and array.nbytes:
            # A disk that is full says so now; later, a write into a hole of the file would end the process.
            with file.open("r+b") as opened:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        return array

    def note(self, **facts: Any) -> None:
        """Write something down that is no array, fit for JSON."""
        self.facts |= facts


def cached(kind: str, name: str, key: Mapping[str, Any], make: Callable[[Maker], None]) -> Entry:
    """Return an entry; make it if it is not there or damaged.

    Args:
        kind: Subfolder, such as `sets` or `features`.
        name: What a person recognises the entry by.
        key: Everything that the arrays depend on, fit for JSON: versions, options, hashes of sources.
        make: Fills it. May raise; nothing remains then.

    Raises:
        DataError: The cache cannot be written.
    """
    text = json.dumps(dict(key), sort_keys=True, ensure_ascii=False)
    short = name.replace("/", "--").encode()[:_NAME_BYTES].decode(errors="ignore")
    path = folder() / kind / f"{short}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    entry = _open(path)
    if entry is not None:
        return entry
    made_once(path, lambda: _open(path) is not None, lambda part: _fill(part, json.loads(text), make))
    entry = _open(path)
    if entry is None:
        raise DataError(f"{path} was written and cannot be read.", remedy="Is the disk all right?")
    return entry


def made_once(path: Path, is_whole: Callable[[], bool], fill: Callable[[Path], None]) -> None:
    """Make a folder of the cache under a lock, unless somebody else has made it by then.

    Args:
        path: The folder.
        is_whole: Says whether it is there and whole.
        fill: Fills the folder that it is given, which is then renamed to `path`. May raise; nothing remains then.

    Raises:
        DataError: The cache cannot be written. What `fill` raises of anything outside of it is raised as it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if is_whole():
                return
            for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):  # of attempts that were killed
                shutil.rmtree(left, ignore_errors=True)
            write_folder(path, fill)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        where = Path(str(error.filename or path)).absolute()
        # A folder above it counts too: a home that is not there, or not to be written.
        if not full and not where.is_relative_to(folder()) and not folder().is_relative_to(where):
            raise
        raise DataError(
            f"The cache {path.parent} cannot be written ({error}).",
            remedy="Free some space, or set the environment variable UMBEL_CACHE to another folder.",
        ) from error


def _fill(path: Path, key: Mapping[str, Any], make: Callable[[Maker], None]) -> None:
    maker = Maker(path)
    make(maker)
    arrays = sorted(path.glob("*.npy"))
    checksums = {file.stem: _checksum(file) for file in arrays}
    for file in arrays:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    facts = json.loads(json.dumps(maker.facts))
    written = {"key": key, "facts": facts, "crc32": checksums, "facts_crc32": _facts_checksum(key, facts)}
    write_json(path / _MANIFEST, written)


def _open(path: Path) -> Entry | None:
    """Return the entry if it is whole."""
    try:
        manifest = read_json(path / _MANIFEST)
        names = tuple(manifest["crc32"])
        if manifest["facts_crc32"] != _facts_checksum(manifest["key"], manifest["facts"]):
            return None
        if any(_checksum(path / f"{name}.npy") != manifest["crc32"][name] for name in names):
            return None
        return Entry(path, manifest["facts"], names)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _facts_checksum(key: Any, facts: Any) -> int:
    return zlib.crc32(json.dumps([key, facts], sort_keys=True).encode())


def _checksum(file: Path) -> int:
    checksum = 0
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
