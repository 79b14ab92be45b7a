"""Trees of tensors that wait on disk, in files that this process alone reads, once.

Nothing is flushed: what is read again soon comes from the system's cache of files, which gives its memory back where it
is needed elsewhere, as a process's own memory does not.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from umbel.core import leftovers
from umbel.core.flat import PIECE, Outline, Place, written
from umbel.core.tree import Tree

class Stored:
    """Trees on disk.

    Args:
        path: The file, which is removed when it has been read.
        outline: What lies where.
    """

    def __init__(self, path: Path, outline: Outline) -> None:
        self._path = path
        self._outline = outline

    def load(self) -> dict[str, dict[str, Tensor]]:
        """Return the trees, each tensor in memory of its own; the file is gone then."""
        with self._path.open("rb", buffering=0) as file:
            trees = {
                tree: {name: _read(file, place) for name, place in places.items()}
                for tree, places in self._outline.trees.items()
            }
        self.forget()
        return trees

    def pieces(self, tree: str, name: str) -> Iterator[Tensor]:
        """Yield a tensor's values as `umbel.core.flat.pieces`; each is gone when the next one comes."""
        place = self._outline.trees[tree][name]
        dtype: torch.dtype = getattr(torch, place.dtype)
        left = place.num_values
        buffer = torch.empty(min(left, PIECE), dtype=dtype)
        with self._path.open("rb", buffering=0) as file:
            file.seek(place.start)
            while left:
                piece = buffer[: min(left, PIECE)]
                _fill(file, piece)
                left -= len(piece)
                yield piece

    def forget(self) -> None:
        """Remove the file."""
        self._path.unlink()


def _read(file: BinaryIO, place: Place) -> Tensor:
    tensor = torch.empty(place.shape, dtype=getattr(torch, place.dtype))
    file.seek(place.start)
    _fill(file, tensor.view(-1))
    return tensor


def _fill(file: BinaryIO, values: Tensor) -> None:
    memory = memoryview(values.view(torch.uint8).numpy()) if values.numel() else memoryview(b"")
    while memory:
        count = file.readinto(memory)  # type: ignore[attr-defined]  # of a file without a buffer
        if not count:
            raise OSError("what waited on disk is shorter than it was")
        memory = memory[count:]


class Spill:
    """Puts trees that must wait on disk, in a folder that is there from the first of them until it is left.

    Args:
        on_spill: Called with the folder before each of them is written.
    """

    def __init__(self, on_spill: Callable[[Path], None] = lambda folder: None) -> None:
        self._on_spill = on_spill
        self._count = 0

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @cached_property
    def folder(self) -> Path:
        """Where."""
        folder = Path(tempfile.mkdtemp(prefix=leftovers.prefix("fold")))
        self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def close(self) -> None:
        """Remove the folder, if there is one."""
        if "folder" in self.__dict__:
            self._remove()

    def __call__(self, trees: Mapping[str, Tree]) -> Stored:
        """Write trees.

        Raises:
            OSError: There is no room.
        """
        self._on_spill(self.folder)
        self._count += 1
        path, outline = self.folder / str(self._count), Outline.of(trees)
        try:
            with path.open("wb", buffering=0) as file:
                written(trees, outline, file)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return Stored(path, outline)


def waits_on_disk(memory_bytes: int, folder: Path) -> str:
    """Return what is said when something waits on disk: the same for all processes of a machine."""
    return (
        f"Partial sums that wait have come to engine.memory_bytes={memory_bytes}: others wait on disk, in "
        f"{folder.parent}. This changes no result."
    )
