"""Local-global convolution: a convolution, and a branch that lets every place hear of the whole map.

Source: Yuan et al. 2023, "Positive Label Is All You Need for Multi-Label Classification" (arXiv 2306.16016), whose
module supplements the convolutions of a trained network, and the authors' code for the sizes. Of a map x, the branch is

    l = ReLU(P_1 x)                  h = [l, mean of l over the map]
    g = softmax over the map of P_2 h       s = sigmoid(P_3 h)                 one map a head each
    branch = norm(P_4 (x + s sum over the map of g P_5 x))                     channels of a head share its g and s

with 1 x 1 convolutions P, P_4 with the stride of the convolution beside it. The norm is batch norm, as published
(`model.norm` puts another in its place); its weights begin as N(0, 1e-4^2) and its biases at 0, so that the whole
begins as the convolution alone.

Shapes: B batch, C input channels, O output channels, H and W sides of the input map, A heads, M channels of l.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.base import check_count
from umbel.models.operators.base import Site, refuse

START = 1e-4  # deviation of the norm's weights at the start


def gather_and_spread(values: Tensor, gather: Tensor, spread: Tensor) -> Tensor:
    """Return what the places of a map tell each other by way of one vector a head, [B, C, H, W].

    Args:
        values: [B, C, H, W]; the first C / A channels are the first head's.
        gather: Logits of each place's share in its head's vector, [B, A, H, W].
        spread: Logits of how much of its head's vector a place takes, [B, A, H, W].
    """
    batch, dim, height, width = values.shape
    heads = gather.shape[1]
    shares = gather.reshape(batch, heads, height * width, 1).softmax(dim=2)
    pooled = values.reshape(batch, heads, dim // heads, height * width) @ shares
    taken = pooled * torch.sigmoid(spread).reshape(batch, heads, 1, height * width)
    return taken.reshape(values.shape)


class GlobalBranch(nn.Module):
    """The branch: [B, C, H, W] to [B, O, ceil(H / stride), ceil(W / stride)].

    Args:
        inputs: C.
        outputs: O.
        stride: Rows and columns from one place that is kept to the next.
        heads: A, a divisor of C.
        reduction: M is C / reduction, rounded down.
    """

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int], heads: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, inputs // reduction)
        self.reduce = nn.Conv2d(inputs, hidden, 1)
        self.gather = nn.Conv2d(2 * hidden, heads, 1)
        self.spread = nn.Conv2d(2 * hidden, heads, 1)
        self.value = nn.Conv2d(inputs, inputs, 1)
        self.out = nn.Conv2d(inputs, outputs, 1, stride)
        self.norm = nn.BatchNorm2d(outputs)
        nn.init.normal_(self.norm.weight, std=START)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch's map [B, O, H', W'] of a map [B, C, H, W]."""
        local = F.relu(self.reduce(x))
        both = torch.cat((local, local.mean(dim=(2, 3), keepdim=True).expand_as(local)), dim=1)
        heard = gather_and_spread(self.value(x), self.gather(both), self.spread(both))
        branch: Tensor = self.norm(self.out(x + heard))
        return branch


class LocalGlobalConv(nn.Module):
    """conv(x) + branch(x)."""

    def __init__(self, conv: nn.Conv2d, heads: int = 8, reduction: int = 4) -> None:
        super().__init__()
        self.conv = conv
        stride = int(conv.stride[0]), int(conv.stride[1])
        self.branch = GlobalBranch(conv.in_channels, conv.out_channels, stride, heads, reduction).to(conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, O, H', W'] of a map [B, C, H, W]; H' and W' are those of the convolution."""
        summed: Tensor = self.conv(x) + self.branch(x)
        return summed


def local_global(site: Site, *, heads: int = 8, reduction: int = 4) -> nn.Module:
    """A convolution beside a branch that sees the whole map: 1.25 C^2 + C O parameters more, and some.

    It keeps the convolution with its weights and begins as good as equal to it. C are its input and O its output
    channels. The branch ends in batch norm, also in a model that had none: say `model.norm` for another.

    Args:
        site: The place.
        heads: Vectors by which the places tell of themselves, each for its share of the channels. Layers whose input
            channels they do not divide stay as they are.
        reduction: By how much the branch's channels for its weights are fewer than the input channels.

    Raises:
        Refusal: An option is out of range.
        UnfitError: The convolution loses places at the border or gives a map of one place, or `heads` do not divide
            its channels.
    """
    check_count("model.operators.local_global.heads", heads)
    check_count("model.operators.local_global.reduction", reduction)
    conv = site.conv
    if conv.in_channels % heads:
        raise refuse(site, "local_global", f"a convolution of a multiple of {heads} channels", conv.in_channels)
    sides = tuple(-(-side // step) for side, step in zip((site.height, site.width), conv.stride, strict=True))
    if site.output_size != sides:
        raise refuse(site, "local_global", "a convolution whose stride alone shrinks the map", f"{site.output_size}")
    if sides == (1, 1):
        raise refuse(site, "local_global", "a convolution that gives more than one place", "a map of 1 x 1")
    return LocalGlobalConv(conv, heads, reduction)
