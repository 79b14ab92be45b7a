"""What an operator is told of the place that it takes, and what all operators share.

Two kinds: one takes the place of a convolution (`Site` -> module), the other is put around a whole model, which keeps
its `features` and `head` (`Model` -> `Model`).

Shapes: I and O input and output channels of a convolution, K side of its kernel, H and W sides of its input map.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from umbel.core.refusal import Refusal


@dataclass(frozen=True)
class Site:
    """A convolution that an operator is to take the place of.

    Attributes:
        name: Its name in the model.
        conv: The layer, with its initial weights.
        height: H of its input map, at the model's size of image.
        width: W.
        memo: What the operator keeps from one place to the next of the same call, such as parameters that layers share.
    """

    name: str
    conv: nn.Conv2d
    height: int
    width: int
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def kernel(self) -> int:
        """K, the side of the kernel."""
        return int(self.conv.kernel_size[0])

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved alone."""
        return self.conv.groups == self.conv.in_channels == self.conv.out_channels

    @property
    def dense(self) -> bool:
        """Whether every output sees every input channel."""
        return self.conv.groups == 1

    @property
    def output_size(self) -> tuple[int, int]:
        """Sides of the output map."""
        padding, dilation, stride = self.padding, self.conv.dilation, self.conv.stride
        sides = zip((self.height, self.width), self.conv.kernel_size, stride, padding, dilation, strict=True)
        height, width = ((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in sides)
        return height, width

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros on each side."""
        if self.conv.padding == "valid":
            return 0, 0
        if isinstance(self.conv.padding, str):  # same: an odd kernel has as many on each side
            rows, columns = (d * (k - 1) // 2 for k, d in zip(self.conv.kernel_size, self.conv.dilation, strict=True))
            return rows, columns
        rows, columns = self.conv.padding
        return int(rows), int(columns)


class UnfitError(Refusal):
    """An operator cannot take the place of this convolution; the message says why and of which layer."""


def refuse(site: Site, operator: str, needed: str, actual: object) -> UnfitError:
    """Return the error of an operator that cannot take a convolution's place.

    Args:
        site: The place.
        operator: Name of the operator.
        needed: What it would have to be, such as "a depthwise convolution".
        actual: What it is.
    """
    key = f"model.operators.{operator}.layers"
    return UnfitError(
        f"model.operators.{operator}: layer {site.name!r} should be {needed}, found {actual}.",
        key=key,
        remedy=f"Leave it out (key {key}).",
    )


def same_bias(conv: nn.Conv2d) -> Tensor | None:
    """Return a copy of a convolution's bias as a parameter's value, or None where it has none."""
    return None if conv.bias is None else conv.bias.detach().clone()
