"""What a client is lent: the payload that all clients of an exchange receive, its data, its memory.

torch has no tensors that are read-only. So a payload lies in one piece of memory, of which each client gets views of
its own, and which is compared with what it was when the client is done. Larger things are looked at less closely, by
the counter that torch keeps of changes in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umbel.core.flat import ALIGNED, Outline, flattened
from umbel.core.records import Payload
from umbel.data.types import Examples


class LentPayload:
    """The payload of an exchange.

    Args:
        outline: What lies where.
        memory: What came, [B]; nobody writes into it.
        numbers: The payload's numbers.
    """

    def __init__(self, outline: Outline, memory: NDArray[np.uint8], numbers: Mapping[str, float]) -> None:
        self._before = memory
        whole = np.empty(len(memory) + ALIGNED, np.uint8)
        place = -whole.ctypes.data % ALIGNED
        self._own = whole[place : place + len(memory)]
        self._own[:] = memory
        self.payload = Payload(outline.read(torch.from_numpy(self._own)), dict(numbers))

    @classmethod
    def of(cls, payload: Payload) -> LentPayload:
        """Lend a payload that lies anywhere."""
        return cls(*flattened(payload.trees), payload.numbers)

    def lend(self) -> Payload:
        """Return the payload for one client: mappings and views of its own, of the same values."""
        trees = {
            tree: {name: tensor.detach() for name, tensor in tensors.items()}
            for tree, tensors in self.payload.trees.items()
        }
        return Payload(trees, dict(self.payload.numbers))

    def take_back(self) -> bool:
        """Say whether it comes back as it was lent; if not, it is as it was again."""
        if np.array_equal(self._own.view(np.uint64), self._before.view(np.uint64)):  # eight bytes each: quicker
            return True
        self._own[:] = self._before
        return False


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
