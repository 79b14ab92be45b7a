"""What a client is lent: the payload that all clients of an exchange receive, its data, its memory.

torch has no tensors that are read-only. So a payload lies in one piece of memory, of which each client gets views of
its own, and which is compared with what it was when the client is done. Larger things are looked at less closely, by
the counter that torch keeps of changes in place.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from umbel.core.records import Payload
from umbel.data.types import Examples

_ALIGNED = 64  # bytes, as torch's own memory: products may round otherwise elsewhere


class LentPayload:
    """The payload of an exchange.

    Args:
        payload: What came.
    """

    def __init__(self, payload: Payload) -> None:
        starts: dict[tuple[str, str], int] = {}
        size = 0
        for tree, tensors in payload.trees.items():
            for name, tensor in tensors.items():
                starts[tree, name] = size
                size += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        self._memory = bytearray(size + _ALIGNED)
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        whole = whole[-whole.data_ptr() % _ALIGNED :]
        trees = {
            tree: {name: _placed(whole[starts[tree, name] :], tensor) for name, tensor in tensors.items()}
            for tree, tensors in payload.trees.items()
        }
        self.payload = Payload(trees, dict(payload.numbers))
        self._before = bytes(self._memory)

    def lend(self) -> Payload:
        """Return the payload for one client: mappings and views of its own, of the same values."""
        trees = {
            tree: {name: tensor.detach() for name, tensor in tensors.items()}
            for tree, tensors in self.payload.trees.items()
        }
        return Payload(trees, dict(self.payload.numbers))

    def take_back(self) -> bool:
        """Say whether it comes back as it was lent; if not, it is as it was again."""
        if self._memory == self._before:
            return True
        self._memory[:] = self._before
        return False


def _placed(memory: Tensor, tensor: Tensor) -> Tensor:
    """Return a tensor of the same values that lies at the beginning of some bytes, [B] uint8."""
    return memory[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


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
