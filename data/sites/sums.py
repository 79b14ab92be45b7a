"""Exact sums over sites' pictures, of which the mean and the deviation of all are made.

The pixels of 8 bits and their squares are added up as whole numbers. So both come out the same in whatever order sites
are added, and as if the pictures lay in one place.

Shapes: N pictures, I channels, S pixels on a side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from umbel.data.federation import Federation
from umbel.data.holdout import TRAIN
from umbel.data.sites.said import listed, mapping, whole

WHITE = 255
_CHUNK = 256  # pictures that are added up at a time


@dataclass(frozen=True)
class Sums:
    """Sums over pictures of 8 bits.

    Attributes:
        num_pixels: Pixels of each channel.
        sums: [I] sum of their values.
        squares: [I] sum of their squares.
    """

    num_pixels: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    @classmethod
    def of(cls, held: Federation, clients: Iterable[int]) -> Sums:
        """Add up the training pictures of some clients."""
        channels = held.in_channels
        total = cls(0, (0,) * channels, (0,) * channels)
        for client in clients:
            rows = held.partition.client(client)
            rows = rows if held.roles is None else rows[held.roles[rows] == TRAIN]
            for part in torch.split(rows, _CHUNK):
                total = total + of_pictures(held.pool.images[part])
        return total

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.num_pixels + other.num_pixels,
            tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel in units of [0, 1] pixels; 1 for a constant channel."""
        n = self.num_pixels
        mean = tuple(total / n / WHITE for total in self.sums)
        spread = [n * q - s * s for s, q in zip(self.sums, self.squares, strict=True)]  # n^2 times the variance
        std = (math.sqrt(each) / n / WHITE for each in spread)
        return mean, tuple(each if each > 1e-6 else 1.0 for each in std)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON knows it: whole numbers as text, of any size."""
        return {
            "num_pixels": str(self.num_pixels),
            "sums": list(map(str, self.sums)),
            "squares": list(map(str, self.squares)),
        }

    @classmethod
    def read(cls, said: Mapping[str, Any], num_pixels: int, channels: int) -> Sums:
        """Read what a node says.

        Args:
            said: Its answer.
            num_pixels: Pixels that the examples have which it counted before.
            channels: I.

        Raises:
            ValueError: It is of another form, or no sums of so many pixels of 8 bits.
        """
        content = mapping(said.get("sums"))
        sums, squares = (tuple(map(whole, listed(content.get(key), channels))) for key in ("sums", "squares"))
        if whole(content.get("num_pixels")) != num_pixels:
            raise ValueError(f"it should have added up {num_pixels} pixels")
        for total, square in zip(sums, squares, strict=True):
            # Of values in 0..255: sum <= sum of squares <= 255 sum, and (sum)^2 <= n sum of squares.
            if not total <= square <= WHITE * total <= WHITE * WHITE * num_pixels or total**2 > num_pixels * square:
                raise ValueError(f"{total} and {square} are no sums of {num_pixels} pixels of 8 bits and their squares")
        return cls(num_pixels, sums, squares)


def of_pictures(images: Tensor) -> Sums:
    """Add up pictures, [N, I, S, S] uint8."""
    wide = images.to(torch.int64).transpose(0, 1).flatten(1)
    sums, squares = wide.sum(1).tolist(), wide.square().sum(1).tolist()
    return Sums(wide.shape[1], tuple(sums), tuple(squares))
