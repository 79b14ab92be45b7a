"""What the operators that put other kernels into a convolution's place have in common.

Shapes: I and O input and output channels, K side of a kernel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.operators.base import Site, refuse


def check_zero_padded(site: Site, operator: str) -> None:
    """Raise `UnfitError` for a convolution that pads its map with anything but zeros."""
    if site.conv.padding_mode != "zeros":
        raise refuse(site, operator, "a convolution that pads with zeros", f"padding_mode={site.conv.padding_mode!r}")


def check_odd_square(site: Site, operator: str) -> None:
    """Raise `UnfitError` for a convolution without an odd square kernel of 3 or more that pads with zeros."""
    check_zero_padded(site, operator)
    rows, columns = site.conv.kernel_size
    if rows != columns or rows < 3 or rows % 2 == 0:
        needed = "a convolution with a square kernel of an odd side, 3 or more"
        raise refuse(site, operator, needed, f"a kernel of {rows} x {columns}")


def gain(conv: nn.Conv2d) -> Tensor:
    """Return what a convolution multiplies the variance of white noise by, a number: 1/3 for torch's own start.

    It is the sum of squares of the weights of one output, in the mean over the outputs.
    """
    return conv.weight.detach().square().sum() / conv.out_channels


def draw(shape: tuple[int, ...], wanted: Tensor, conv: nn.Conv2d) -> Tensor:
    """Draw uniform weights [O, I, ...] that multiply the variance of white noise by `wanted` in the mean.

    Torch's own start is uniform with a gain of 1/3, and hence the bound 1 / sqrt(inputs). Device and dtype are those of
    `conv`.
    """
    bound = (3 * wanted / math.prod(shape[1:])).sqrt()
    return torch.empty(shape, dtype=conv.weight.dtype, device=conv.weight.device).uniform_(-1, 1) * bound


class Convolution(nn.Module):
    """A convolution that is no `nn.Conv2d`, so that no other operator takes its place.

    Args:
        weight: What its weights begin with, [O, I / groups, rows, columns].
        bias: [O], or None for no bias.
        stride: Of rows and columns.
        padding: Zeros above and below, and left and right; or a word that `torch.nn.functional.conv2d` knows.
        dilation: Of rows and columns.
        groups: How many.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...] | str,
        dilation: tuple[int, ...],
        groups: int,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def kernel(self) -> Tensor:
        """Return what is convolved with, [O, I / groups, rows, columns]."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, O, H', W'] of a map [B, I, H, W]."""
        return F.conv2d(x, self.kernel(), self.bias, self.stride, self.padding, self.dilation, self.groups)
