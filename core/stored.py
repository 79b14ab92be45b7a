"""Trees of tensors that lie in a file, mostly because they wait on disk.

The file has no name: nothing of it stays, whatever becomes of its processes. Nothing is flushed: what is read again
soon comes from the system's cache of files, which gives its memory back where it is needed elsewhere, and a process's
own memory is not given back.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umbel.core.flat import PIECE, Outline, Place, mapped, written
from umbel.core.tree import Tree


class File:
    """A file without a name, which is there as long as somebody holds it.

    Args:
        descriptor: Its descriptor, which is closed in the end.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def new(cls) -> File:
        """Return a new one on disk, in the folder of temporary files.

        Raises:
            OSError: There can be none.
        """
        with tempfile.TemporaryFile(prefix="umbel-") as file:
            return cls(os.dup(file.fileno()))

    def write(self, trees: Mapping[str, Tree], outline: Outline, base: int = 0) -> None:
        """Write tensors, each where it was laid out, from a byte on."""
        for place, values in written(trees, outline):
            memory, place = _bytes(values), base + place
            while memory:
                count = os.pwrite(self.descriptor, memory, place)
                memory, place = memory[count:], place + count

    def read(self, into: Tensor, place: int) -> None:
        """Read values, [N], from a byte on."""
        memory = _bytes(into)
        while memory:
            count = os.preadv(self.descriptor, [memory], place)
            if not count:
                raise OSError("what waited on disk is shorter than it was")
            memory, place = memory[count:], place + count

    def map(self, place: int, num_bytes: int) -> NDArray[np.uint8]:
        """Return a part of it, [num_bytes], read-only; what was not looked at takes no memory."""
        begin = place - place % mmap.ALLOCATIONGRANULARITY
        page = mmap.mmap(self.descriptor, place + num_bytes - begin, access=mmap.ACCESS_READ, offset=begin)
        return np.frombuffer(page, np.uint8, num_bytes, place - begin)


def _bytes(values: Tensor) -> memoryview:
    return values.view(torch.uint8).numpy().data if values.numel() else memoryview(b"")


class Stored:
    """Trees in a file.

    Args:
        file: The file.
        outline: What lies where.
        base: The byte where they begin.
        on_forgotten: Called once, when they are no longer needed, or nobody knows of them any more.
    """

    def __init__(
        self, file: File, outline: Outline, base: int = 0, on_forgotten: Callable[[], None] = lambda: None
    ) -> None:
        self._file = file
        self._base = base
        self.outline = outline
        self._forgotten = weakref.finalize(self, on_forgotten)
        self._forgotten.atexit = False

    def trees(self) -> dict[str, StoredTree]:
        """Return them as mappings, whose tensors are read-only and mapped whenever they are asked for."""
        return {tree: StoredTree(self, tree) for tree in self.outline.trees}

    def load(self) -> dict[str, dict[str, Tensor]]:
        """Return them, each tensor in memory of its own."""
        found: dict[str, dict[str, Tensor]] = {}
        for tree, places in self.outline.trees.items():
            found[tree] = {}
            for name, place in places.items():
                found[tree][name] = tensor = torch.empty(place.shape, dtype=getattr(torch, place.dtype))
                self._file.read(tensor.view(-1), self._base + place.start)
        return found

    def map(self, place: Place) -> Tensor:
        """Return the tensor that was laid out there, read-only."""
        if not place.num_values:
            return torch.empty(place.shape, dtype=getattr(torch, place.dtype))
        return replace(place, start=0).view(mapped(self._file.map(self._base + place.start, place.num_bytes)))

    def pieces(self, tree: str, name: str) -> Iterator[Tensor]:
        """Yield a tensor's values as `umbel.core.flat.pieces`; each is gone when the next one comes."""
        place = self.outline.trees[tree][name]
        buffer = torch.empty(min(place.num_values, PIECE), dtype=getattr(torch, place.dtype))
        for begin in range(0, place.num_values, PIECE):
            piece = buffer[: place.num_values - begin]
            self._file.read(piece, self._base + place.start + begin * piece.element_size())
            yield piece

    def forget(self) -> None:
        """Let them go."""
        self._forgotten()


class StoredTree(Mapping[str, Tensor]):
    """A tree in a file.

    Args:
        stored: The trees that lie there.
        name: Which of them this is.
        places: Its tensors; None: all that lie there.

    Attributes:
        stored: As given.
    """

    def __init__(self, stored: Stored, name: str, places: Mapping[str, Place] | None = None) -> None:
        self.stored = stored
        self._name = name
        self._places = stored.outline.trees[name] if places is None else places

    def __getitem__(self, name: str) -> Tensor:
        return self.stored.map(self._places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Yield a tensor's values as `Stored.pieces`."""
        return self.stored.pieces(self._name, name)

    def without(self, name: str) -> StoredTree:
        """Return it less one tensor."""
        return StoredTree(self.stored, self._name, {key: at for key, at in self._places.items() if key != name})


def parts_of(tree: Tree, name: str) -> Iterator[Tensor]:
    """Yield a tensor as it is, or, of a tree in a file, its values as `Stored.pieces`: it is never there as a whole."""
    if isinstance(tree, StoredTree):
        yield from tree.pieces(name)
    else:
        yield tree[name]


def without(tree: Tree, name: str) -> Tree:
    """Return a tree less one tensor; nothing of one in a file is read."""
    if isinstance(tree, StoredTree):
        return tree.without(name)
    return {key: tensor for key, tensor in tree.items() if key != name}


def stored_of(trees: Mapping[str, Tree]) -> Stored | None:
    """Return where trees lie, if they are those of a file."""
    known = {tree.stored if isinstance(tree, StoredTree) else None for tree in trees.values()}
    return known.pop() if len(known) == 1 else None


class Spill:
    """Puts trees that must wait on disk, in one file for all of them.

    Args:
        memory_bytes: What may wait in memory, for what is said.
        tell: Told what a user should know, each time.
    """

    def __init__(self, memory_bytes: int = 0, tell: Callable[[str], None] = lambda text: None) -> None:
        self._memory_bytes, self._tell = memory_bytes, tell
        self._file: File | None = None
        self.num_bytes = 0
        self._free: dict[int, list[int]] = {}

    def __call__(self, trees: Mapping[str, Tree]) -> Stored:
        """Write trees.

        Raises:
            OSError: There is no room.
        """
        outline = Outline.of(trees)
        if free := self._free.get(outline.num_bytes):
            base = free.pop()
        else:
            base, self.num_bytes = self.num_bytes, self.num_bytes + outline.num_bytes
        what = f"What waits to be added up has come to engine.memory_bytes={self._memory_bytes}"
        try:
            file = self._file = self._file or File.new()
            file.write(trees, outline, base)
        except OSError as error:
            self._tell(f"{what}, and cannot wait on disk, in {tempfile.gettempdir()}: {error}. It waits in memory.")
            raise
        self._tell(f"{what}: others wait on disk, in {tempfile.gettempdir()}. This changes no result.")
        return Stored(file, outline, base, lambda: self._free.setdefault(outline.num_bytes, []).append(base))
