"""Texts as two tensors, so that they are shared, indexed and sent like pixels.

Shapes: N texts, Z bytes of all of them in UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from umbel.data.errors import DataError


@dataclass(frozen=True)
class Texts:
    """N texts, compressed as sparse rows are.

    Attributes:
        content: [Z] uint8, all texts in UTF-8, one after the other.
        offsets: [N + 1] int64; text n is `content[offsets[n]:offsets[n + 1]]`.
    """

    content: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        if self.content.dtype != torch.uint8 or self.offsets.dtype != torch.int64 or self.offsets.ndim != 1:
            raise DataError(
                f"Expected texts as uint8 content and int64 offsets, found {self.content.dtype} and "
                f"{self.offsets.dtype} of shape {tuple(self.offsets.shape)}."
            )
        if not len(self.offsets) or int(self.offsets[0]) != 0 or int(self.offsets[-1]) != len(self.content):
            raise DataError("Expected the offsets of texts to begin at 0 and to end with the last byte.")

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Return texts out of strings."""
        encoded = [text.encode(errors="replace") for text in texts]  # half an emoji is no text
        sizes = torch.tensor([0, *map(len, encoded)], dtype=torch.int64)
        content = torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8) if sizes.sum() else torch.empty(0)
        return cls(content.to(torch.uint8), sizes.cumsum(0))

    def __len__(self) -> int:
        return int(self.offsets.shape[0]) - 1

    def __getitem__(self, index: int) -> str:
        """Return one text."""
        if not 0 <= index < len(self):
            raise IndexError(f"Text {index} asked for, but they are numbered 0..{len(self) - 1}.")
        return bytes(self.content[int(self.offsets[index]) : int(self.offsets[index + 1])].cpu().numpy()).decode()

    def __iter__(self) -> Iterator[str]:
        content = bytes(self.content.cpu().numpy())
        bounds = self.offsets.tolist()
        return (content[start:end].decode() for start, end in pairwise(bounds))

    def take(self, index: Tensor) -> Texts:
        """Return the texts at `index`, int64 [M] or bool [N], in its order."""
        index = index.to(self.offsets.device)
        if index.dtype == torch.bool:
            index = index.nonzero().flatten()
        starts, sizes = self.offsets[index], self.offsets.diff()[index]
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        whole = memoryview(self.content.cpu().numpy().data)
        parts = zip(starts.tolist(), sizes.tolist(), strict=True)
        joined = bytearray().join(whole[start : start + size] for start, size in parts)
        content = torch.frombuffer(joined, dtype=torch.uint8) if joined else self.content[:0]
        return Texts(content.to(self.content.device), offsets)

    def to(self, device: torch.device | str) -> Texts:
        """Return the texts on `device`."""
        return Texts(self.content.to(device), self.offsets.to(device))
