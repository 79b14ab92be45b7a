"""UniFormer: blocks of convolutions in the first two stages, of self-attention in the last two.

Source: Li et al. 2022, "UniFormer: Unifying Convolution and Self-attention for Visual Recognition" (arXiv 2201.09450):
section 3 for the blocks (position, relation, feed-forward), table 2 for the sizes. UniFormer-XXS halves the tokens of
its attention as Evo-ViT does (models/slow_fast.py). Written from the equations; of XXS the papers leave to the reader
what `SlowFastBlock` and `HourglassUniFormer` say. The blocks that clips have too are in models/uniformer_blocks.py.

Shapes: B batch, I input channels, H and W sides of a map, C channels of a stage, D features (C of the last stage),
K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
from umbel.models.layers import (
    LayerNorm2d,
    drop_rates,
    halving_strides,
    initialise_linear,
)
from umbel.models.slow_fast import SlowFastBlock
from umbel.models.uniformer_blocks import GlobalBlock, LocalBlock


def _embed(inputs: int, dim: int, kernel: int, stride: int) -> nn.Sequential:
    """Return the embedding before a stage: patches if `kernel` is `stride`, else overlapping ones."""
    return nn.Sequential(nn.Conv2d(inputs, dim, kernel, stride, (kernel - stride + 1) // 2), LayerNorm2d(dim))


def _stem(inputs: int, dim: int) -> nn.Sequential:
    """Return the embedding before the first stage of XXS: two overlapping convolutions, each halving the map."""
    return nn.Sequential(
        nn.Conv2d(inputs, dim // 2, 3, 2, 1),
        nn.BatchNorm2d(dim // 2),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, 2, 1),
        nn.BatchNorm2d(dim),
    )


class UniFormer(Model):
    """Two stages of local blocks and two of global ones; the features are the mean of the batch-normalised map.

    Nothing ties the parameters to a size of image.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        dims: Sequence[int],
        depths: Sequence[int],
        *,
        head_dim: int,
        mlp_ratio: int,
        kernels: Sequence[int],
        strides: Sequence[int],
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = dims[-1]
        self.in_channels = in_channels
        self.image_size = image_size
        self.stages = nn.ModuleList()
        for i, (dim, rates) in enumerate(zip(dims, drop_rates(depths, drop_rate), strict=True)):
            blocks: list[Block] = [
                LocalBlock(dim, mlp_ratio, rate) if i < 2 else GlobalBlock(dim, dim // head_dim, mlp_ratio, rate)
                for rate in rates
            ]
            embed = _embed(dims[i - 1] if i else in_channels, dim, kernels[i], strides[i])
            self.stages.append(nn.Sequential(embed, *blocks))
        self.norm = nn.BatchNorm2d(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        for stage in self.stages:
            x = stage(x)
        features: Tensor = self.norm(x).mean(dim=(2, 3))
        return features


class HourglassUniFormer(Model):
    """UniFormer-XXS: an overlapping stem, and global blocks that are slow-fast ones with a class token.

    The first global block takes all tokens and starts the scores. Into the last stage the class token goes through a
    linear layer, the scores as means over the patches. The features are the mean of the batch-normalised map, as in
    `UniFormer`.

    A second head, on the layer-normalised class token, trains along: in training mode the logits are the mean of the
    two heads' (the paper adds the losses of both), in evaluation those of the first head alone.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        dims: Sequence[int],
        depths: Sequence[int],
        *,
        head_dim: int,
        mlp_ratio: int,
        keep: float,
        class_head: bool,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = dims[-1]
        self.in_channels = in_channels
        self.image_size = image_size
        later = (_embed(before, dim, 2, 2) for before, dim in pairwise(dims))
        self.embeds = nn.ModuleList((_stem(in_channels, dims[0]), *later))
        rates = drop_rates(depths, drop_rate)
        self.local_stages = nn.ModuleList(
            nn.Sequential(*(LocalBlock(dims[i], mlp_ratio, rate) for rate in rates[i])) for i in (0, 1)
        )
        self.third, self.fourth = (
            nn.ModuleList(
                SlowFastBlock(dims[i], dims[i] // head_dim, mlp_ratio, 1.0 if (i, j) == (2, 0) else keep, rate)
                for j, rate in enumerate(rates[i])
            )
            for i in (2, 3)
        )
        self.cls = nn.Parameter(torch.zeros(1, 1, dims[2]))
        self.widen = nn.Linear(dims[2], dims[3])
        self.norm = nn.BatchNorm2d(dims[3])
        self.class_head = nn.Sequential(nn.LayerNorm(dims[3]), nn.Linear(dims[3], num_classes)) if class_head else None
        self.head = nn.Linear(dims[3], num_classes)

    def _trunk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, D] and the class token [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        for embed, stage in zip(self.embeds[:2], self.local_stages, strict=True):
            x = stage(embed(x))
        x = self.embeds[2](x)
        cls = self.cls.expand(x.shape[0], -1, -1)
        scores = x.new_zeros(x.shape[0], x.shape[2] * x.shape[3])
        for block in self.third:
            x, cls, scores = block(x, cls, scores)
        scores = F.avg_pool2d(scores.view(x.shape[0], 1, *x.shape[2:]), 2).flatten(1)
        x, cls = self.embeds[3](x), self.widen(cls)
        for block in self.fourth:
            x, cls, scores = block(x, cls, scores)
        return self.norm(x).mean(dim=(2, 3)), cls[:, 0]

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        return self._trunk(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K] of images [B, I, H, W]: in training the mean of two heads', else the first's."""
        if self.class_head is None or not self.training:
            return super().forward(x)  # by `features`, which may be compiled
        features, cls = self._trunk(x)
        logits: Tensor = (self.head(features) + self.class_head(cls)) / 2
        return logits


def _published(
    name: str, num_classes: int, image_size: int, in_channels: int, depths: Sequence[int], drop_rate: float
) -> UniFormer:
    """Build UniFormer-S or -B, which differ in their depths."""
    model = UniFormer(
        num_classes,
        check_image_size(name, image_size, 32, 64),
        in_channels,
        (64, 128, 320, 512),
        depths,
        head_dim=64,
        mlp_ratio=4,
        kernels=(4, 2, 2, 2),
        strides=(4, 2, 2, 2),
        drop_rate=check_fraction("model.sizes.drop_path", drop_rate),
    )
    initialise_linear(model)
    return model


def uniformer_s(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.1) -> UniFormer:
    """UniFormer-S: depths 3, 4, 8, 3; 21.5 M parameters at 1000 classes.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 32 from 64 on.
        in_channels: I, 1 for grey and 3 for colour.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published("uniformer_s", num_classes, image_size, in_channels, (3, 4, 8, 3), drop_path)


def uniformer_b(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.3) -> UniFormer:
    """UniFormer-B: depths 5, 8, 20, 7; 49.8 M parameters at 1000 classes.

    Arguments and errors are those of `uniformer_s`.
    """
    return _published("uniformer_b", num_classes, image_size, in_channels, (5, 8, 20, 7), drop_path)


def uniformer_xxs(
    num_classes: int,
    image_size: int = 128,
    in_channels: int = 3,
    *,
    keep: float = 0.5,
    class_head: bool = True,
    drop_path: float = 0.0,
) -> HourglassUniFormer:
    """UniFormer-XXS: 10.2 M parameters at 1000 classes.

    It has depths 2, 5, 8, 2 and is made for 128 px. 9.8 M parameters are left without the head for training.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 32 from 64 on; published are 128, 160, 192, 224.
        in_channels: I, 1 for grey and 3 for colour.
        keep: Share of the tokens that attention and MLP take one by one; 1 takes them all.
        class_head: Train a second head on the class token, which the published count has and evaluation does without.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("uniformer_xxs", image_size, 32, 64)
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise Refusal(
            f"model.sizes.keep should be a number above 0 and up to 1, found {keep!r}.", key="model.sizes.keep"
        )
    model = HourglassUniFormer(
        num_classes,
        image_size,
        in_channels,
        (56, 112, 224, 448),
        (2, 5, 8, 2),
        head_dim=28,
        mlp_ratio=3,
        keep=keep,
        class_head=check_flag("model.sizes.class_head", class_head),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
    initialise_linear(model)
    nn.init.trunc_normal_(model.cls, std=0.02)
    return model


def uniformer_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (32, 48, 96, 128),
    depths: Sequence[int] = (1, 1, 2, 1),
    head_dim: int = 16,
    mlp_ratio: int = 2,
    drop_path: float = 0.0,
) -> UniFormer:
    """A small UniFormer: 0.48 M parameters at 10 classes.

    For images of 28 and 32 px; not in the paper. Every embedding is a 3 x 3 convolution of stride 2, of stride 1 where
    the map would not keep 2 x 2: a batch of one trains at every size of image, and the parameters have the same shapes.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the four stages.
        depths: Blocks of the four stages.
        head_dim: Channels of an attention head; divides those of the last two stages.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("uniformer_tiny32", image_size, 1, least=4)
    dims = check_counts("model.sizes.dims", dims, 4)
    return UniFormer(
        num_classes,
        image_size,
        in_channels,
        dims,
        check_counts("model.sizes.depths", depths, 4),
        head_dim=check_divides("model.sizes.head_dim", head_dim, dims[2:]),
        mlp_ratio=check_count("model.sizes.mlp_ratio", mlp_ratio),
        kernels=(3, 3, 3, 3),
        strides=halving_strides(image_size, 4),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
