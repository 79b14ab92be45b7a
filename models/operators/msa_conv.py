"""MSA-Conv: attention within the window of a convolution, and then the convolution.

Source: Zhang et al. 2023, "TiC: Exploring Vision Transformer in Convolution" (arXiv 2310.04134), and the authors'
operator, from which the order of its parts is taken. With queries, keys and values q, k, v of a 1 x 1 convolution with
bias, and D the K places of the window, dilated as the convolution is:

    a(p, d) = softmax over d of q(p) k(p + d) C^(-1/2)        y = ReLU(conv(x + sum over d of a(p, d) v(p + d)))

A window that hangs over the border sees zeros there: a logit of 0 and a value of 0, as the authors' operator has it.
`mask` leaves those places out.

Beyond the authors' operator, for the network TiC (`umbel.models.tic`): heads, each with a softmax over its own
channels, and a cyclic shift a head. The authors drop 0.1 of the weights by default, this file none (`dropout`).

Shapes: B batch, C input channels, O output channels, H and W sides of the input map, A heads, K places of a window,
row-major.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.base import check_count, check_flag, check_fraction
from umbel.models.operators.base import Site, refuse

Pair = tuple[int, int]


def window_scores(queries: Tensor, keys: Tensor, kernel: Pair, dilation: Pair = (1, 1)) -> Tensor:
    """Return the inner product of each place's query with each key of its window, [B, K, H, W]; 0 off the map.

    Args:
        queries: [B, C, H, W].
        keys: [B, C, H, W].
        kernel: Rows and columns of a window, odd.
        dilation: Places from one row of it, and from one column of it, to the next.
    """
    # Place by place of the window: of K copies of a map, all but the sums would be thrown away.
    return torch.stack([(queries * moved).sum(1) for moved in _moved(keys, kernel, dilation)], dim=1)


def window_sum(weights: Tensor, values: Tensor, kernel: Pair, dilation: Pair = (1, 1)) -> Tensor:
    """Return the sum of each place's window of `values` [B, C, H, W] by its `weights` [B, K, H, W], [B, C, H, W]."""
    total = torch.zeros_like(values)
    for share, moved in zip(weights.unbind(1), _moved(values, kernel, dilation), strict=True):
        total = total + share[:, None] * moved
    return total


def off_map(height: int, width: int, kernel: Pair, dilation: Pair, like: Tensor) -> Tensor:
    """Return what masks a window's places off the map: 0 within and -infinity without, [1, K, H, W]."""
    inside = like.new_zeros(1, 1, height, width)
    return torch.cat(list(_moved(inside, kernel, dilation, float("-inf"))), dim=1)


def roll_heads(image_map: Tensor, shifts: Sequence[Pair]) -> Tensor:
    """Roll each head's channels of a map [B, C, H, W] around its edges by its rows and columns."""
    heads = image_map.chunk(len(shifts), dim=1)
    return torch.cat([head.roll(shift, dims=(2, 3)) for head, shift in zip(heads, shifts, strict=True)], dim=1)


def _moved(image_map: Tensor, kernel: Pair, dilation: Pair, fill: float = 0.0) -> Iterator[Tensor]:
    """Yield the map as each place of a window sees it, with `fill` off the map."""
    height, width = image_map.shape[2:]
    tall, wide = (step * (side // 2) for side, step in zip(kernel, dilation, strict=True))
    padded = F.pad(image_map, (wide, wide, tall, tall), value=fill)
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            top, left = row * dilation[0], column * dilation[1]
            yield padded[:, :, top : top + height, left : left + width]


class MSAConv(nn.Module):
    """Attention within the windows of `conv`, its shortcut, `conv` and ReLU: [B, C, H, W] to the map that `conv` gives.

    Args:
        conv: The convolution, without groups, of odd sides. It may have a bias; the authors' has none.
        heads: A, a divisor of C. One is the authors' operator.
        shifts: Rows and columns by which each head's keys and values are rolled around the map's edges: a query then
            looks at the window so far up and to the left. None rolls nothing.
        mask: Whether places off the map are left out, and not keys with a logit of 0.
        dropout: Probability that a weight of the attention is dropped.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        heads: int = 1,
        shifts: Sequence[Pair] | None = None,
        mask: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.shifts = None if shifts is None else tuple(shifts)
        self.mask = mask
        self.dropout = dropout
        self.window: tuple[Pair, Pair] = (_pair(conv.kernel_size), _pair(conv.dilation))
        weight = conv.weight
        self.qkv = nn.Conv2d(conv.in_channels, 3 * conv.in_channels, 1, device=weight.device, dtype=weight.dtype)
        self.conv = conv

    def attend(self, x: Tensor) -> Tensor:
        """Return the attended values [B, C, H, W] of a map [B, C, H, W]."""
        batch, dim, height, width = x.shape
        qkv = self.qkv(x)
        # As the authors' operator: the softmax is not trusted to half precision.
        queries, keys, values = qkv.to(torch.promote_types(qkv.dtype, torch.float32)).chunk(3, dim=1)
        if self.shifts is not None:
            keys, values = (roll_heads(part, self.shifts) for part in (keys, values))
        by_head = (batch * self.heads, dim // self.heads, height, width)
        queries, keys, values = (part.reshape(by_head) for part in (queries, keys, values))
        scores = window_scores(queries * (dim // self.heads) ** -0.5, keys, *self.window)
        if self.mask:
            scores = scores + off_map(height, width, *self.window, like=scores)
        weights = F.dropout(scores.softmax(dim=1), self.dropout, self.training)
        return window_sum(weights, values, *self.window).reshape(x.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, O, H', W'] of a map [B, C, H, W]; H' and W' are those of the convolution."""
        return F.relu(self.conv(x + self.attend(x)))


def _pair(sides: tuple[int, ...]) -> Pair:
    return int(sides[0]), int(sides[1])


def msa_conv(site: Site, *, heads: int = 1, mask: bool = False, dropout: float = 0.0) -> nn.Module:
    """Attention within a convolution's window, then the convolution and ReLU: 3 C^2 + 3 C parameters more.

    Stands for any convolution without groups and with odd sides. It keeps the convolution with its weights, and with
    its bias where it has one. C are its input channels. A map that ends in ReLU has no negative values: what stands
    behind the convolution should not need them.

    Args:
        site: The place.
        heads: Attention heads; one is the published operator. Layers whose input channels they do not divide stay.
        mask: Whether the attention leaves out what lies off the map; published are keys of zeros there.
        dropout: Probability that a weight of the attention is dropped; the authors' default is 0.1.

    Raises:
        Refusal: An option is out of range.
        UnfitError: The convolution has groups or an even side, is 1 x 1, or has channels that `heads` do not divide.
    """
    check_count("model.operators.msa_conv.heads", heads)
    check_flag("model.operators.msa_conv.mask", mask)
    check_fraction("model.operators.msa_conv.dropout", dropout)
    conv = site.conv
    if not site.dense:
        raise refuse(site, "msa_conv", "a convolution without groups", f"{conv.groups} groups")
    if not all(side % 2 for side in conv.kernel_size) or max(conv.kernel_size) == 1:
        raise refuse(site, "msa_conv", "a convolution of odd sides, 3 or more", f"{list(conv.kernel_size)}")
    if conv.in_channels % heads:
        raise refuse(site, "msa_conv", f"a convolution of a multiple of {heads} channels", conv.in_channels)
    return MSAConv(conv, heads, mask=mask, dropout=float(dropout))
