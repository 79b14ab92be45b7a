"""InceptionNeXt: ConvNeXt's large depthwise kernel split into an identity, a square and two bands.

Source: Yu et al. 2023, "InceptionNeXt: When Inception Meets ConvNeXt" (arXiv 2303.16900): equations 1 and 2 for the
block, equations 4 to 6 for the operator, section 3.4 and table 3 for the sizes. Written from the equations.

Deviation: `inception_next_tiny32` shrinks its maps by 3 x 3 convolutions in place of 2 x 2 (and by none once a map is
2 x 2), so that any size of image works, and starts its layer scale at 1.

Shapes: B batch, I input channels, H and W sides of a map, C channels of a stage, D features (a multiple of the last
stage's channels: the hidden layer of the published head), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.refusal import Refusal
from umbel.models.base import Block, Model, check_count, check_counts, check_fraction, check_image_size, check_positive
from umbel.models.layers import LayerScale, depthwise, drop_path, drop_rates, halving_strides, initialise_linear


class InceptionConv(nn.Module):
    """Four branches over the channels, in this order: identity, 3 x 3, 1 x `band` and `band` x 1, the three depthwise.

    Each convolution has the fraction `ratio` of the channels, rounded down; the identity has the rest (equation 4).
    """

    def __init__(self, dim: int, band: int, ratio: float) -> None:
        super().__init__()
        branch = int(dim * ratio)
        self.shares = [dim - 3 * branch, branch, branch, branch]
        self.square = depthwise(branch)
        self.horizontal = nn.Conv2d(branch, branch, (1, band), padding=(0, band // 2), groups=branch)
        self.vertical = nn.Conv2d(branch, branch, (band, 1), padding=(band // 2, 0), groups=branch)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        same, square, horizontal, vertical = torch.split(x, self.shares, dim=1)
        return torch.cat((same, self.square(square), self.horizontal(horizontal), self.vertical(vertical)), dim=1)


class InceptionNeXtBlock(Block):
    """x += scale * MLP(BN(InceptionConv x)), with a single shortcut (equation 2)."""

    def __init__(self, dim: int, band: int, ratio: float, mlp_ratio: int, layer_scale: float, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.mixer = InceptionConv(dim, band, ratio)
        self.norm = nn.BatchNorm2d(dim)
        self.fc1 = nn.Conv2d(dim, mlp_ratio * dim, 1)
        self.fc2 = nn.Conv2d(mlp_ratio * dim, dim, 1)
        self.scale = LayerScale(dim, layer_scale, spatial=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        branch = self.scale(self.fc2(F.gelu(self.fc1(self.norm(self.mixer(x))))))
        return x + drop_path(branch, self.drop_rate, self.training)


class InceptionNeXt(Model):
    """A strided stem and stages of blocks; the features are the published head's normalised hidden layer.

    Args:
        num_classes: K.
        image_size: H and W of an image.
        in_channels: I.
        dims: Channels of each stage.
        depths: Blocks of each stage.
        mlp_ratios: Hidden width of a stage's MLPs as a multiple of its channels.
        kernels: Side of the convolution that opens each stage.
        strides: Its stride. A 2 x 2 and a 4 x 4 kernel tile the map, a 3 x 3 kernel is padded.
        band: Length of the band kernels, odd.
        ratio: Fraction of the channels of each of the three convolutions.
        head_ratio: D as a multiple of the last stage's channels.
        layer_scale: Where the factors on the branches begin.
        drop_rate: Stochastic depth of the last block; it rises linearly from 0.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        dims: Sequence[int],
        depths: Sequence[int],
        mlp_ratios: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        band: int,
        ratio: float,
        head_ratio: int,
        layer_scale: float,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = head_ratio * dims[-1]
        self.in_channels = in_channels
        self.image_size = image_size
        stages: list[nn.Module] = []
        inputs = in_channels
        for number, rates in enumerate(drop_rates(depths, drop_rate)):
            dim, kernel = dims[number], kernels[number]
            shrink = nn.Conv2d(inputs, dim, kernel, strides[number], (kernel - 1) // 2 if kernel % 2 else 0)
            # The stem's map is normalised, of later stages what goes into the convolution.
            norm = nn.BatchNorm2d(dim if number == 0 else inputs)
            blocks = (InceptionNeXtBlock(dim, band, ratio, mlp_ratios[number], layer_scale, rate) for rate in rates)
            stages.append(nn.Sequential(*((shrink, norm) if number == 0 else (norm, shrink)), *blocks))
            inputs = dim
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, self.num_features)
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        pooled = self.stages(x).mean(dim=(2, 3))
        features: Tensor = self.norm(F.gelu(self.fc(pooled)))
        return features


# name -> channels of the first stage, depths, length of the bands, fraction of the channels of each convolution
PUBLISHED: dict[str, tuple[int, tuple[int, ...], int, float]] = {
    "inception_next_atto": (40, (2, 2, 6, 2), 9, 0.25),
    "inception_next_tiny": (96, (3, 3, 9, 3), 11, 0.125),
    "inception_next_small": (96, (3, 3, 27, 3), 11, 0.125),
}


def _published(
    name: str, num_classes: int, image_size: int, in_channels: int, layer_scale: float, drop_rate: float
) -> InceptionNeXt:
    """Build an InceptionNeXt of table 3: the channels double, and the MLPs are narrower in the last stage."""
    check_image_size(name, image_size, 32)
    dim, depths, band, ratio = PUBLISHED[name]
    model = InceptionNeXt(
        num_classes,
        image_size,
        in_channels,
        dims=[dim * 2**stage for stage in range(4)],
        depths=depths,
        mlp_ratios=(4, 4, 4, 3),
        kernels=(4, 2, 2, 2),
        strides=(4, 2, 2, 2),
        band=band,
        ratio=ratio,
        head_ratio=3,
        layer_scale=check_positive("model.sizes.layer_scale", layer_scale),
        drop_rate=check_fraction("model.sizes.drop_path", drop_rate),
    )
    initialise_linear(model)
    initialise_linear(model, kinds=(nn.Conv2d,))
    return model


def inception_next_atto(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, layer_scale: float = 1e-6, drop_path: float = 0.1
) -> InceptionNeXt:
    """InceptionNeXt-A: 4.16 M parameters at 1000 classes.

    1.2 M of them are the head's hidden layer and classifier. At 32 px the last map is one pixel: its batch norm then
    cannot train on a batch of one.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 32.
        in_channels: I, 1 for grey and 3 for colour.
        layer_scale: Where the factors on the branches begin. With the published 1e-6 a block begins as the
            identity; take 1e-2 for short federated runs from scratch.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published("inception_next_atto", num_classes, image_size, in_channels, layer_scale, drop_path)


def inception_next_tiny(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, layer_scale: float = 1e-6, drop_path: float = 0.1
) -> InceptionNeXt:
    """InceptionNeXt-T: 28.1 M parameters at 1000 classes.

    Arguments, errors and the note on 32 px are those of `inception_next_atto`.
    """
    return _published("inception_next_tiny", num_classes, image_size, in_channels, layer_scale, drop_path)


def inception_next_small(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, layer_scale: float = 1e-6, drop_path: float = 0.3
) -> InceptionNeXt:
    """InceptionNeXt-S: 49.4 M parameters at 1000 classes.

    Arguments, errors and the note on 32 px are those of `inception_next_atto`.
    """
    return _published("inception_next_small", num_classes, image_size, in_channels, layer_scale, drop_path)


def inception_next_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (32, 64, 128),
    depths: Sequence[int] = (2, 2, 2),
    mlp_ratio: int = 2,
    head_ratio: int = 1,
    band: int = 7,
    ratio: float = 0.25,
    layer_scale: float = 1.0,
    drop_path: float = 0.0,
) -> InceptionNeXt:
    """A small InceptionNeXt: 0.29 M parameters at 10 classes.

    For images of 28 and 32 px; not in the paper. Parameters have the same shapes at every size of image, and a batch of
    one trains at every size.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the three stages.
        depths: Blocks of the three stages.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        head_ratio: D as a multiple of the last stage's channels.
        band: Length of the band kernels, odd.
        ratio: Fraction of the channels of each of the three convolutions, up to a third.
        layer_scale: Where the factors on the branches begin.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("inception_next_tiny32", image_size, 1, least=4)
    dims = check_counts("model.sizes.dims", dims, 3)
    if check_count("model.sizes.band", band) % 2 == 0:
        raise Refusal(
            f"model.sizes.band should be odd, found {band}.", key="model.sizes.band", remedy=f"Use {band + 1}."
        )
    check_fraction("model.sizes.ratio", ratio)
    branches = [int(dim * ratio) for dim in dims]
    if not all(0 < 3 * branch <= dim for branch, dim in zip(branches, dims, strict=True)):
        raise Refusal(
            f"model.sizes.ratio: {ratio} of {list(dims)} channels (model.sizes.dims) gives convolutions {branches}; "
            "each should have one or more, and three together no more than all.",
            key="model.sizes.ratio",
            remedy="Use 0.25.",
        )
    return InceptionNeXt(
        num_classes,
        image_size,
        in_channels,
        dims=dims,
        depths=check_counts("model.sizes.depths", depths, 3),
        mlp_ratios=[check_count("model.sizes.mlp_ratio", mlp_ratio)] * 3,
        kernels=(3, 3, 3),
        strides=halving_strides(image_size, 3),
        band=band,
        ratio=ratio,
        head_ratio=check_count("model.sizes.head_ratio", head_ratio),
        layer_scale=check_positive("model.sizes.layer_scale", layer_scale),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
