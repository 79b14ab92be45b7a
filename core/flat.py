"""Named trees of tensors in one piece of memory, which a process maps and need not read tensor by tensor."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umbel.core.tree import Tree

PIECE = 1 << 18  # values: 2 MB of float64, which a core's cache holds
ALIGNED = 64  # bytes, as torch's own memory: products may round otherwise elsewhere


@dataclass(frozen=True)
class Place:
    """Where a tensor lies.

    Attributes:
        start: Its first byte.
        dtype: Its type, as torch calls it without its own name.
        shape: Its shape.
    """

    start: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_values(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """How many bytes it has."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return self.num_values * dtype.itemsize

    def view(self, memory: Tensor) -> Tensor:
        """Return the tensor that lies here.

        Args:
            memory: [B] uint8.
        """
        dtype: torch.dtype = getattr(torch, self.dtype)
        return memory[self.start : self.start + self.num_bytes].view(dtype).view(self.shape)


@dataclass(frozen=True)
class Outline:
    """Names, types and shapes of named trees, and where each tensor lies.

    Attributes:
        trees: The place of each tensor by tree and name, in order.
        num_bytes: How much memory they take.
    """

    trees: Mapping[str, Mapping[str, Place]]
    num_bytes: int

    @classmethod
    def of(cls, trees: Mapping[str, Tree]) -> Outline:
        """Lay tensors out, one after the other."""
        places: dict[str, dict[str, Place]] = {tree: {} for tree in trees}
        end = 0
        for tree, tensors in trees.items():
            for name, tensor in tensors.items():
                places[tree][name] = Place(end, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
                end += -(-tensor.nbytes // ALIGNED) * ALIGNED
        return cls(places, end)

    def write(self, trees: Mapping[str, Tree], memory: Tensor) -> None:
        """Copy the tensors that were laid out to where they lie in a memory, [B] uint8."""
        for tree, places in self.trees.items():
            for name, place in places.items():
                place.view(memory).copy_(trees[tree][name])

    def read(self, memory: Tensor) -> dict[str, dict[str, Tensor]]:
        """Return the trees; the tensors share the memory, [B] uint8."""
        return {
            tree: {name: place.view(memory) for name, place in places.items()} for tree, places in self.trees.items()
        }


def flattened(
    trees: Mapping[str, Tree], memory: Callable[[int], NDArray[np.uint8]] | None = None
) -> tuple[Outline, NDArray[np.uint8]]:
    """Return trees as one piece of memory, [B], and what lies where.

    Args:
        trees: The trees.
        memory: Returns memory for so many bytes; None takes new one, which is zero between tensors.
    """
    outline = Outline.of(trees)
    flat = np.zeros(outline.num_bytes, np.uint8) if memory is None else memory(outline.num_bytes)
    outline.write(trees, torch.from_numpy(flat))
    return outline, flat


def mapped(memory: NDArray[np.uint8]) -> Tensor:
    """Return memory as a tensor that shares it, [B] uint8; into what is read-only, nobody may write."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(memory)


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor's values in their order, [N] at most `PIECE`; they share its memory where that has this order."""
    flat = tensor.reshape(-1)
    for begin in range(0, len(flat), PIECE):
        yield flat[begin : begin + PIECE]


def written(trees: Mapping[str, Tree], outline: Outline) -> Iterator[tuple[int, Tensor]]:
    """Yield the values of tensors that were laid out, [N] at most `PIECE`, on the CPU, and each one's first byte."""
    for tree, places in outline.trees.items():
        for name, place in places.items():
            start = place.start
            for piece in pieces(trees[tree][name].detach()):
                yield start, piece.cpu().contiguous()
                start += piece.nbytes
