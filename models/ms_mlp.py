"""MS-MLP: convolutions of growing size over groups of channels that are shifted ever farther apart.

Source: Zheng et al. 2022, "Mixing and Shifting: Exploiting Global and Local Dependencies in Vision MLPs" (arXiv
2202.06510): section 3 for the mix-shift block, the appendix's tables for the sizes. Written from the equations. Each
group is shifted first and mixed then, as in the published networks; with a shift that wraps around and a convolution
that pads with zeros, the order shows at the border.

Shapes: B batch, I input channels, H and W sides of a map, C channels of a stage, G groups of channels, N = H W tokens,
D features (C of the last stage), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.refusal import Refusal
from umbel.models.base import (
    Block,
    Model,
    check_count,
    check_counts,
    check_fraction,
    check_image_size,
    check_lists,
    check_positive,
)
from umbel.models.layers import LayerNorm2d, LayerScale, drop_path, drop_rates, initialise_linear, to_map, to_tokens


@dataclass(frozen=True)
class StageSizes:
    """The numbers of one stage.

    Attributes:
        dim: C, channels.
        depth: Number of blocks.
        kernels: Side of the convolution of each of the G groups, odd.
    """

    dim: int
    depth: int
    kernels: tuple[int, ...]


def group_sizes(dim: int, groups: int) -> list[int]:
    """Return the channels of each group: all of ceil(C / G) but the last, which has what is left.

    Raises:
        Refusal: Nothing is left for the last groups.
    """
    size = -(-dim // groups)
    left = dim - size * (groups - 1)
    if left < 1:
        raise Refusal(
            f"model.sizes.dims: {dim} channels in groups of {size} do not make {groups} groups (model.sizes.kernels).",
            key="model.sizes.dims",
            remedy=f"Use {size * groups}.",
        )
    return [size] * (groups - 1) + [left]


class MixShift(nn.Module):
    """Sum over both axes of DW(roll(x)), each group of channels with a shift and a depthwise kernel of its own.

    Group g of G is shifted by g - G // 2 places, from -2 to 2 for five.

    Neighbouring groups with one size of kernel share a convolution, which also serves both axes: its first half of
    channels reads the map rolled along W, its second half the map rolled along H.
    """

    def __init__(self, dim: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.sizes = group_sizes(dim, len(kernels))
        self.shifts = [group - len(kernels) // 2 for group in range(len(kernels))]
        groups = zip(kernels, self.sizes, strict=True)
        runs = [(kernel, sum(size for _, size in run)) for kernel, run in groupby(groups, key=lambda group: group[0])]
        self.runs = [channels for _, channels in runs]
        self.convs = nn.ModuleList(
            nn.Conv2d(2 * channels, 2 * channels, kernel, padding=kernel // 2, groups=2 * channels)
            for kernel, channels in runs
        )

    def forward(self, image_map: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        groups = list(zip(torch.split(image_map, self.sizes, dim=1), self.shifts, strict=True))
        wide, high = (
            torch.split(torch.cat([group.roll(shift, dims=axis) for group, shift in groups], dim=1), self.runs, dim=1)
            for axis in (3, 2)
        )
        mixed = [
            conv(torch.cat(axes, dim=1)).chunk(2, dim=1)
            for conv, axes in zip(self.convs, zip(wide, high, strict=True), strict=True)
        ]
        return torch.cat([first + second for first, second in mixed], dim=1)


class MSBlock(Block):
    """x += LayerScale(MLP(LN(MixShift x))): space and channels are mixed within one residual branch."""

    def __init__(self, dim: int, kernels: Sequence[int], mlp_ratio: int, scale: float, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.mix = MixShift(dim, kernels)
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, mlp_ratio * dim)
        self.fc2 = nn.Linear(mlp_ratio * dim, dim)
        self.scale = LayerScale(dim, scale)

    def forward(self, image_map: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        tokens = self.norm(to_tokens(self.mix(image_map)))
        branch = self.scale(self.fc2(F.gelu(self.fc1(tokens))))
        return image_map + drop_path(to_map(branch, *image_map.shape[2:]), self.drop_rate, self.training)


def _halve(inputs: int, outputs: int, side: int) -> nn.Sequential:
    """Return the convolution of 2 x 2 patches between stages, and its norm; an odd side gains a zero at the start."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 2, stride=2, padding=side % 2), LayerNorm2d(outputs))


class MSMLP(Model):
    """Patches, stages of mix-shift blocks, and the mean of the layer-normalised tokens as features.

    Nothing ties the parameters to a size of image. No batch norm: a batch of one trains.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        stages: Sequence[StageSizes],
        *,
        patch: int,
        mlp_ratio: int,
        scale: float,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = stages[-1].dim
        self.in_channels = in_channels
        self.image_size = image_size
        self.embed = nn.Sequential(nn.Conv2d(in_channels, stages[0].dim, patch, patch), LayerNorm2d(stages[0].dim))
        self.stages = nn.ModuleList()
        side = image_size // patch
        rates = drop_rates([stage.depth for stage in stages], drop_rate)
        for i, (stage, stage_rates) in enumerate(zip(stages, rates, strict=True)):
            layers: list[nn.Module] = []
            if i:
                layers.append(_halve(stages[i - 1].dim, stage.dim, side))
                side = (side + 1) // 2
            layers += [MSBlock(stage.dim, stage.kernels, mlp_ratio, scale, rate) for rate in stage_rates]
            self.stages.append(nn.Sequential(*layers))
        self.norm = nn.LayerNorm(self.num_features)
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        x = self.embed(x)
        for stage in self.stages:
            x = stage(x)
        features: Tensor = self.norm(to_tokens(x)).mean(dim=1)
        return features


def _published(
    name: str, num_classes: int, image_size: int, in_channels: int, depth: int, scale: float, drop_rate: float
) -> MSMLP:
    """Build a published MS-MLP; they differ in the depth of the third stage."""
    check_image_size(name, image_size, 4, 32)
    check_positive("model.sizes.layer_scale", scale)
    check_fraction("model.sizes.drop_path", drop_rate)
    kernels = ((1, 1, 3, 5, 7), (1, 3, 3, 5, 7), (1, 5, 5, 5, 7), (1, 7, 7, 7, 7))
    stages = [StageSizes(96 * 2**i, depth if i == 2 else 3, stage_kernels) for i, stage_kernels in enumerate(kernels)]
    model = MSMLP(num_classes, image_size, in_channels, stages, patch=4, mlp_ratio=4, scale=scale, drop_rate=drop_rate)
    initialise_linear(model)
    return model


def ms_mlp_t(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, layer_scale: float = 1e-6, drop_path: float = 0.1
) -> MSMLP:
    """MS-MLP-T: depths 3, 3, 9, 3; 28.7 M parameters at 1000 classes.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 4 from 32 on.
        in_channels: I, 1 for grey and 3 for colour.
        layer_scale: Where the factors on the residual branches begin. From 1e-6, as published, the blocks stay the
            identity for as long as a short federated run lasts: take 1e-2 or more there.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published("ms_mlp_t", num_classes, image_size, in_channels, 9, layer_scale, drop_path)


def ms_mlp_s(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, layer_scale: float = 1e-6, drop_path: float = 0.4
) -> MSMLP:
    """MS-MLP-S: depths 3, 3, 27, 3; 50.3 M parameters at 1000 classes.

    Arguments and errors are those of `ms_mlp_t`.
    """
    return _published("ms_mlp_s", num_classes, image_size, in_channels, 27, layer_scale, drop_path)


def ms_mlp_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (40, 80, 160),
    depths: Sequence[int] = (1, 1, 2),
    kernels: Sequence[Sequence[int]] = ((1, 1, 3, 5, 5), (1, 1, 3, 3, 3), (1, 1, 1, 3, 3)),
    patch: int = 2,
    mlp_ratio: int = 2,
    layer_scale: float = 1.0,
    drop_path: float = 0.0,
) -> MSMLP:
    """A small MS-MLP: 0.31 M parameters at 10 classes.

    For images of 8 to 32 px; not in the paper.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of `patch` from 8 on.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the stages.
        depths: Blocks of the stages.
        kernels: For each stage the kernel of each of its groups of channels, odd; group g of G is shifted by
            g - G // 2.
        patch: Side of a patch of the embedding.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        layer_scale: Where the factors on the residual branches begin; the published 1e-6 needs long training.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_count("model.sizes.patch", patch)
    check_image_size("ms_mlp_tiny32", image_size, patch, 8)
    stage_kernels = check_lists("model.sizes.kernels", kernels)
    for sides in stage_kernels:
        if any(kernel % 2 == 0 for kernel in sides):
            raise Refusal(f"model.sizes.kernels should be odd numbers, found {list(sides)}.", key="model.sizes.kernels")
    dims = check_counts("model.sizes.dims", dims, len(stage_kernels))
    depths = check_counts("model.sizes.depths", depths, len(stage_kernels))
    check_count("model.sizes.mlp_ratio", mlp_ratio)
    check_fraction("model.sizes.drop_path", drop_path)
    check_positive("model.sizes.layer_scale", layer_scale)
    stages = [StageSizes(*numbers) for numbers in zip(dims, depths, stage_kernels, strict=True)]
    return MSMLP(
        num_classes, image_size, in_channels, stages,
        patch=patch, mlp_ratio=mlp_ratio, scale=layer_scale, drop_rate=drop_path,
    )  # fmt: skip
