"""Convolutions that are separable from the start: a column, then a row, in place of a square kernel.

The two-dimensional K x K filters are replaced by one-dimensional ones before training, and not found in a trained
network afterwards: K x 1 from the I inputs to M channels, then 1 x K from these to the O outputs, with nothing in
between. That is the second scheme of Jaderberg et al. 2014, "Speeding up Convolutional Neural Networks with Low Rank
Expansions" (arXiv 1405.3866, section 2.2), trained from scratch as Jin et al. 2015 do (arXiv 1412.5474) and Ioannou et
al. 2016 (arXiv 1511.06744). It is the convolution with

    W[o, i, y, x] = sum_m  row[o, m, x] column[m, i, y]

exactly, at the borders too, since the column has no bias. A depthwise kernel (M = 1 for each channel) is one outer
product.

M is the number of outputs, or less where that would make more weights than the convolution had: the largest with
K M (I + O) <= K^2 I O, counted within a group. With C inputs and outputs M = C, and 2 K C^2 weights stand for K^2 C^2;
depthwise it is 2 K C for K^2 C.

No form with numbers is published for "a-priori separable convolution"; the choice of M, and that nothing non-linear is
between the two, are ours. Weights are drawn so that the pair is as loud as the convolution was, each half the square
root of it.

Shapes: B batch, I and O input and output channels, K side of a kernel, M channels in between, g groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from umbel.models.operators.base import Site, same_bias
from umbel.models.operators.kernels import Convolution, check_odd_square, draw, gain


def between(inputs: int, outputs: int, kernel: int) -> int:
    """Return M for I inputs and O outputs of a group and a kernel of side K >= 3."""
    return min(outputs, kernel * inputs * outputs // (inputs + outputs))


def outer(column: Tensor, row: Tensor, groups: int = 1) -> Tensor:
    """Return the kernel [O, I / g, K, K] of columns [M, I / g, K, 1] followed by rows [O, M / g, 1, K]."""
    columns = torch.unflatten(column.squeeze(3), 0, (groups, -1))
    rows = torch.unflatten(row.squeeze(2), 0, (groups, -1))
    return torch.einsum("gomx,gmiy->goiyx", rows, columns).flatten(0, 1)


class SeparableConv(nn.Module):
    """A convolution by columns and one by rows, which together have the shapes of the one in whose place they go.

    Args:
        conv: That one: its stride, dilation, groups and bias.
        padding: Zeros above and below, and left and right.
    """

    def __init__(self, conv: nn.Conv2d, padding: tuple[int, int]) -> None:
        super().__init__()
        groups, inputs, outputs, kernel = conv.groups, conv.weight.shape[1], conv.out_channels, conv.kernel_size[0]
        middle = between(inputs, outputs // groups, kernel)
        whole = gain(conv)
        half = torch.where(whole > 0, whole, whole + 1 / 3).sqrt()
        (down, across), (above, beside), (tall, wide) = conv.stride, padding, conv.dilation
        column = draw((groups * middle, inputs, kernel, 1), half, conv)
        # A convolution of zeros, as a residual branch may begin with, is one still; two halves of zeros never learn.
        row = draw((outputs, middle, 1, kernel), half, conv) * (whole > 0)
        self.column = Convolution(column, None, (down, 1), (above, 0), (tall, 1), groups)
        self.row = Convolution(row, same_bias(conv), (1, across), (0, beside), (1, wide), groups)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, O, H', W'] of a map [B, I, H, W]."""
        mixed: Tensor = self.row(self.column(x))
        return mixed


def separable(site: Site) -> SeparableConv:
    """A column and a row in place of a square kernel; 2 / K of its parameters where I = O.

    Args:
        site: The convolution and its place.

    Raises:
        UnfitError: The kernel is even or not square.
    """
    check_odd_square(site, "separable")
    return SeparableConv(site.conv, site.padding)
