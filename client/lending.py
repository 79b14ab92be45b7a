"""What a client is lent: the payload that all clients of an exchange receive, its data, its memory.

torch has no tensors that are read-only. So a payload lies in one piece of memory, of which each client gets views of
its own, and which is compared with what it was when the client is done. A large one is mapped from a file in memory in
such a way that only pages into which somebody writes are copied, and is in a process's memory only while a client has
it. Data and memory are looked at less closely, by the counter that torch keeps of changes in place.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umbel.core.flat import ALIGNED, Outline, flattened
from umbel.core.records import Payload
from umbel.core.stored import File
from umbel.data.types import Examples

_LARGE = 1 << 22  # bytes, from which on a mapping costs less than a copy
_PIECE = 1 << 20  # bytes that are compared at once


class LentPayload:
    """The payload of an exchange.

    Args:
        outline: What lies where.
        memory: What came, [B]; nobody writes into it.
        numbers: The payload's numbers.
        file: A file in memory that begins with the same; a descriptor, which stays the caller's. Without one, or of
            a small payload, there is a copy.
    """

    def __init__(
        self, outline: Outline, memory: NDArray[np.uint8], numbers: Mapping[str, float], file: int = -1
    ) -> None:
        self._file: File | None = None
        self._pages: mmap.mmap | None = None
        if file >= 0 and len(memory) >= _LARGE:
            self._file = File(os.dup(file))
            # Private: who writes gets pages of its own, and the file stays as it is.
            self._pages = mmap.mmap(file, len(memory), access=mmap.ACCESS_COPY)
            self._own = np.frombuffer(self._pages, np.uint8)
        else:
            self._memory = memory
            whole = np.empty(len(memory) + ALIGNED, np.uint8)
            place = -whole.ctypes.data % ALIGNED
            self._own = whole[place : place + len(memory)]
            self._own[:] = memory
        self.payload = Payload(outline.read(torch.from_numpy(self._own)), dict(numbers))

    @classmethod
    def of(cls, payload: Payload) -> LentPayload:
        """Lend a payload that lies anywhere."""
        outline = Outline.of(payload.trees)
        if outline.num_bytes < _LARGE or not hasattr(os, "memfd_create"):
            return cls(*flattened(payload.trees), payload.numbers)
        file = File(os.memfd_create("umbel"))
        os.ftruncate(file.descriptor, outline.num_bytes)
        file.write(payload.trees, outline)
        return cls(outline, file.map(0, outline.num_bytes), payload.numbers, file.descriptor)

    def lend(self) -> Payload:
        """Return the payload for one client: mappings and views of its own, of the same values."""
        trees = {
            tree: {name: tensor.detach() for name, tensor in tensors.items()}
            for tree, tensors in self.payload.trees.items()
        }
        return Payload(trees, dict(self.payload.numbers))

    def take_back(self) -> bool:
        """Say whether it comes back as it was lent; if not, it is as it was again."""
        is_same = True
        for begin in range(0, len(self._own), _PIECE):
            own = self._own[begin : begin + _PIECE]
            before = self._before(begin, len(own))
            if not np.array_equal(own.view(np.uint64), before.view(np.uint64)):  # eight bytes each: quicker
                own[:] = before
                is_same = False
        if self._pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            with suppress(OSError):  # it is locked into memory, and stays
                self._pages.madvise(mmap.MADV_DONTNEED)  # what is looked at again comes from the file
        return is_same

    def _before(self, begin: int, num_bytes: int) -> NDArray[np.uint8]:
        """Return a piece as it came; of a file it is read, for a second mapping would count as memory once more."""
        if self._file is None:
            return self._memory[begin : begin + num_bytes]
        return np.frombuffer(os.pread(self._file.descriptor, num_bytes, begin), np.uint8)


class LentData:
    """The tensors that a client was lent and did not get copies of."""

    def __init__(self) -> None:
        self._lent: list[tuple[str, Tensor, int]] = []

    def lend(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Note tensors as they are now.

        Args:
            name: What a failure calls them.
            tensors: The tensors.
        """
        self._lent += [(name, tensor, tensor._version) for tensor in tensors]

    def take_back(self) -> list[str]:
        """Return the names of what was changed in place."""
        return list(dict.fromkeys(name for name, tensor, version in self._lent if tensor._version != version))


def tensors_of(examples: Examples) -> list[Tensor]:
    """Return the tensors that examples are made of."""
    parts = (examples.images, examples.labels, examples.domains, examples.tasks, examples.concepts, examples.tokens)
    return [part for part in parts if part is not None]
