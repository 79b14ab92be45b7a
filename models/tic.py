"""TiC: a transformer whose layers are MSA-Convs, with heads that look in different directions and pooling in between.

Source: Zhang et al. 2023, "TiC: Exploring Vision Transformer in Convolution" (arXiv 2310.04134). The layer is the
authors' operator (`umbel.models.operators.msa_conv`). They have published neither the code of the network nor weights,
so the network is built anew from what the paper says of it, and only in a size of our own; how its two mechanisms are
meant in detail could not be checked against code. Here they are:

* multi-directional cyclic shift: in every second block, head i rolls its keys and values around the edges of the map in
  direction i of `DIRECTIONS`, so that its window lies elsewhere than its query;
* inter-pooling: 2 x 2 means between the stages, so that a window spans twice as much (`pooling`; without it the
  MSA-Conv that opens a stage is strided).

A block is x += MSAConv(LN x). Layer norm alone: no batch norm, and a batch of one trains.

Shapes: B batch, I input channels, H and W sides of a map, C channels of a stage, A heads, D features (C of the last
stage), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from umbel.core.refusal import Refusal
from umbel.models.base import (
    Block,
    Model,
    check_count,
    check_counts,
    check_divides,
    check_flag,
    check_fraction,
    check_image_size,
)
from umbel.models.layers import LayerNorm2d, drop_path, drop_rates, halving_strides
from umbel.models.operators.msa_conv import MSAConv

# Rows and columns of the eight neighbours of a place: the four that share a side with it come first.
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))


@dataclass(frozen=True)
class Sizes:
    """The numbers of a TiC.

    Attributes:
        dims: C of each stage.
        depths: Blocks of each stage.
        heads: A, a divisor of all of `dims`.
        kernel: Side of the windows, odd.
        dilations: Dilation of the first block of a stage, the second, and so on; after the last the first again.
        shift: How far every second block looks, as a fraction of the map's side; 0 shifts nothing.
        pooling: Whether stages are parted by pooling, and not by a stride.
    """

    dims: Sequence[int]
    depths: Sequence[int]
    heads: int
    kernel: int
    dilations: Sequence[int]
    shift: float
    pooling: bool


def shifts_of(heads: int, side: int, fraction: float) -> list[tuple[int, int]] | None:
    """Return the rows and columns by which each head rolls a map of `side`; None where nothing is rolled.

    At least one place: a fraction of a small map would be none.
    """
    if fraction == 0:
        return None
    far = max(1, round(fraction * side))
    turns = (DIRECTIONS[head % len(DIRECTIONS)] for head in range(heads))
    return [(far * rows, far * columns) for rows, columns in turns]


def _layer(
    inputs: int, outputs: int, sizes: Sizes, dilation: int, shifts: Sequence[tuple[int, int]] | None, stride: int = 1
) -> MSAConv:
    """Return an MSA-Conv whose convolution keeps the map at stride 1."""
    padding = dilation * (sizes.kernel // 2)
    conv = nn.Conv2d(inputs, outputs, sizes.kernel, stride, padding, dilation, bias=False)
    return MSAConv(conv, sizes.heads, shifts)


class TiCBlock(Block):
    """x += MSAConv(LN x)."""

    def __init__(self, layer: MSAConv, dim: int, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.norm = LayerNorm2d(dim)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        return x + drop_path(self.layer(self.norm(x)), self.drop_rate, self.training)


class Shrink(nn.Module):
    """What opens a stage: pooling, if any, layer norm, and an MSA-Conv to the stage's channels."""

    def __init__(self, layer: MSAConv, dim: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        self.norm = LayerNorm2d(dim)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of half the sides; an odd side counts half a place more."""
        if self.pool > 1:
            # A window that the border cuts off is the mean of what it has.
            x = F.avg_pool2d(x, self.pool, ceil_mode=True)
        shrunk: Tensor = self.layer(self.norm(x))
        return shrunk


class TiC(Model):
    """A strided 3 x 3 convolution, stages of blocks, and the mean of the layer-normalised last map as features.

    Nothing ties the parameters to a size of image.
    """

    def __init__(self, num_classes: int, image_size: int, in_channels: int, sizes: Sizes, drop_rate: float) -> None:
        super().__init__()
        self.num_features = sizes.dims[-1]
        self.in_channels = in_channels
        self.image_size = image_size
        strides = halving_strides(image_size, len(sizes.dims))
        rates = drop_rates(sizes.depths, drop_rate)
        side, inputs = image_size, in_channels
        stages: list[nn.Module] = []
        for number, (dim, stride) in enumerate(zip(sizes.dims, strides, strict=True)):
            side = -(-side // stride)
            if number == 0:
                opening: list[nn.Module] = [nn.Conv2d(inputs, dim, 3, stride, 1), LayerNorm2d(dim)]
            else:
                pool, conv_stride = (stride, 1) if sizes.pooling else (1, stride)
                opening = [Shrink(_layer(inputs, dim, sizes, 1, None, conv_stride), inputs, pool)]
            blocks = [
                TiCBlock(
                    _layer(
                        dim,
                        dim,
                        sizes,
                        sizes.dilations[block % len(sizes.dilations)],
                        shifts_of(sizes.heads, side, sizes.shift) if block % 2 else None,
                    ),
                    dim,
                    rate,
                )
                for block, rate in enumerate(rates[number])
            ]
            stages.append(nn.Sequential(*opening, *blocks))
            inputs = dim
        self.stages = nn.Sequential(*stages)
        self.norm = LayerNorm2d(inputs)
        self.head = nn.Linear(inputs, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        features: Tensor = self.norm(self.stages(x)).mean(dim=(2, 3))
        return features


def tic_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (32, 64),
    depths: Sequence[int] = (2, 2),
    heads: int = 4,
    kernel: int = 3,
    dilations: Sequence[int] = (1, 2),
    shift: float = 0.25,
    pooling: bool = True,
    drop_path: float = 0.0,
) -> TiC:
    """A small TiC: 0.15 M parameters at 10 classes.

    For images of 28 and 32 px; not in the paper. Parameters have the same shapes at every size of image, and a batch of
    one trains.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the stages.
        depths: Blocks of the stages.
        heads: Attention heads; they divide the channels of all stages.
        kernel: Side of the windows, odd.
        dilations: Dilation of the blocks of a stage, in turn.
        shift: How far the heads of every second block look, as a fraction of the map's side; 0 shifts nothing.
        pooling: Whether 2 x 2 means part the stages, and not a stride of the convolution.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("tic_tiny32", image_size, 1, least=4)
    dims = check_counts("model.sizes.dims", dims)
    if check_count("model.sizes.kernel", kernel) % 2 == 0:
        raise Refusal(
            f"model.sizes.kernel should be odd, found {kernel}.", key="model.sizes.kernel", remedy=f"Use {kernel + 1}."
        )
    sizes = Sizes(
        dims=dims,
        depths=check_counts("model.sizes.depths", depths, len(dims)),
        heads=check_divides("model.sizes.heads", heads, dims),
        kernel=kernel,
        dilations=check_counts("model.sizes.dilations", dilations),
        shift=check_fraction("model.sizes.shift", shift),
        pooling=check_flag("model.sizes.pooling", pooling),
    )
    return TiC(num_classes, image_size, in_channels, sizes, check_fraction("model.sizes.drop_path", drop_path))
