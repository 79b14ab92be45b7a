"""CAS-ViT: a transformer whose attention is a sum of gated queries and keys, convolved and multiplied by the values.

Source: Zhang et al. 2024, "CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient Mobile
Applications" (arXiv 2408.03703): the equations of the additive similarity and of the token mixer (CATM), the figure of
the block, the table of the variants. Written from the equations.

The published counts, 3.20, 5.76, 12.42 and 21.76 M, are those of networks with two linear heads on the same features,
the second for a teacher's labels; the logits are the mean of both, as in the paper's evaluation.

Deviations: the logits are that mean in training too, where the paper has a loss for each head. `cas_vit_tiny32` has a
stem of one convolution, no second head, and stops halving a map once it is 2 x 2, so that a batch of one trains.

Shapes: B batch, I input channels, H and W sides of a map, C channels of a stage, D features (C of the last stage), K
classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.base import Block, Model, check_count, check_counts, check_flag, check_fraction, check_image_size
from umbel.models.layers import depthwise, drop_path, drop_rates, halving_strides, initialise_linear, strided


class AdditiveMixer(nn.Module):
    """The token mixer: DW(DW(gate(q) + gate(k)) * v), with no product of a query and a key.

    gate(t) is chan(spat(t)): spat multiplies every place by sigmoid(PW(ReLU(BN(DW t)))), one number a place; chan every
    channel by sigmoid(PW of the map's mean).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        # Queries and keys have weights of their own, side by side in layers of two groups: half as many operations.
        # Under `model.norm=group` or `layer` they are normalised together.
        self.local = depthwise(2 * dim)
        self.norm = nn.BatchNorm2d(2 * dim)
        self.spatial = nn.Conv2d(2 * dim, 2, 1, groups=2, bias=False)
        self.channel = nn.Conv2d(2 * dim, 2 * dim, 1, groups=2, bias=False)
        self.similarity = depthwise(dim)
        self.out = depthwise(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        both, v = self.qkv(x).split((2 * self.dim, self.dim), dim=1)
        places = torch.sigmoid(self.spatial(F.relu(self.norm(self.local(both)))))
        both = both * places.repeat_interleave(self.dim, dim=1)
        both = both * torch.sigmoid(self.channel(both.mean(dim=(2, 3), keepdim=True)))
        q, k = both.chunk(2, dim=1)
        mixed: Tensor = self.out(self.similarity(q + k) * v)
        return mixed


class CASBlock(Block):
    """x += PW(GELU(DW(BN(PW x)))); x += AdditiveMixer(BN x); x += PW(GELU(PW(BN x)))."""

    def __init__(self, dim: int, mlp_ratio: int, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.local = nn.Sequential(
            nn.Conv2d(dim, dim, 1), nn.BatchNorm2d(dim), depthwise(dim), nn.GELU(), nn.Conv2d(dim, dim, 1)
        )
        self.norm1 = nn.BatchNorm2d(dim)
        self.mixer = AdditiveMixer(dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.fc1 = nn.Conv2d(dim, mlp_ratio * dim, 1)
        self.fc2 = nn.Conv2d(mlp_ratio * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        x = x + self.local(x)
        x = x + drop_path(self.mixer(self.norm1(x)), self.drop_rate, self.training)
        branch = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + drop_path(branch, self.drop_rate, self.training)


class CASViT(Model):
    """A strided stem, stages of blocks, batch norm and the mean over the map.

    Args:
        num_classes: K.
        image_size: H and W of an image.
        in_channels: I.
        dims: Channels of each stage.
        depths: Blocks of each stage.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        stem_dims: Channels of the stem's convolutions, at stride 2 each; the last is the first stage's.
        strides: Strides of the convolutions between the stages.
        drop_rate: Stochastic depth of the last block; it rises linearly from 0.
        second_head: Have two heads and give the mean of their logits.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        dims: Sequence[int],
        depths: Sequence[int],
        mlp_ratio: int,
        stem_dims: Sequence[int],
        strides: Sequence[int],
        drop_rate: float,
        second_head: bool = False,
    ) -> None:
        super().__init__()
        self.num_features = dims[-1]
        self.in_channels = in_channels
        self.image_size = image_size
        inputs = in_channels
        stem: list[nn.Module] = []
        for dim in stem_dims:
            stem += [*strided(inputs, dim), nn.ReLU()]
            inputs = dim
        self.stem = nn.Sequential(*stem)
        stages: list[nn.Module] = []
        for number, (dim, rates) in enumerate(zip(dims, drop_rates(depths, drop_rate), strict=True)):
            between = strided(inputs, dim, stride=strides[number - 1]) if number else []
            stages.append(nn.Sequential(*between, *(CASBlock(dim, mlp_ratio, rate) for rate in rates)))
            inputs = dim
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(inputs)
        self.second_head = nn.Linear(inputs, num_classes) if second_head else None
        self.head = nn.Linear(inputs, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        features: Tensor = self.norm(self.stages(self.stem(x))).mean(dim=(2, 3))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K] of images [B, I, H, W]: with two heads the mean of theirs, in training too."""
        features = self.features(x)
        logits: Tensor = self.head(features)
        return logits if self.second_head is None else (logits + self.second_head(features)) / 2


# name -> channels of each stage, depths
PUBLISHED: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "cas_vit_xs": ((48, 56, 112, 220), (2, 2, 4, 2)),
    "cas_vit_s": ((48, 64, 128, 256), (3, 3, 6, 3)),
    "cas_vit_m": ((64, 96, 192, 384), (3, 3, 6, 3)),
    "cas_vit_t": ((96, 128, 256, 512), (3, 3, 6, 3)),
}


def _published(
    name: str, num_classes: int, image_size: int, in_channels: int, second_head: bool, drop_rate: float
) -> CASViT:
    """Build a CAS-ViT of the paper, which differ in their channels and depths."""
    check_image_size(name, image_size, 32)
    dims, depths = PUBLISHED[name]
    model = CASViT(
        num_classes,
        image_size,
        in_channels,
        dims=dims,
        depths=depths,
        mlp_ratio=4,
        stem_dims=(dims[0] // 2, dims[0]),
        strides=(2, 2, 2),
        drop_rate=check_fraction("model.sizes.drop_path", drop_rate),
        second_head=check_flag("model.sizes.second_head", second_head),
    )
    initialise_linear(model)
    return model


def cas_vit_xs(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, second_head: bool = True, drop_path: float = 0.1
) -> CASViT:
    """CAS-ViT-XS: 10 blocks, two heads, 3.20 M parameters at 1000 classes.

    One head, 0.22 M parameters fewer, is the choice for methods that work on the classifier: they see the first alone.
    At 32 px the last map is one pixel: its batch norm then cannot train on a batch of one.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 32.
        in_channels: I, 1 for grey and 3 for colour.
        second_head: Have two heads, as the published count has; the logits are the mean of theirs.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published("cas_vit_xs", num_classes, image_size, in_channels, second_head, drop_path)


def cas_vit_s(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, second_head: bool = True, drop_path: float = 0.1
) -> CASViT:
    """CAS-ViT-S: 15 blocks, two heads, 5.76 M parameters at 1000 classes.

    Arguments, errors and the notes on the heads (0.26 M each) and on 32 px are those of `cas_vit_xs`.
    """
    return _published("cas_vit_s", num_classes, image_size, in_channels, second_head, drop_path)


def cas_vit_m(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, second_head: bool = True, drop_path: float = 0.1
) -> CASViT:
    """CAS-ViT-M: 15 blocks, two heads, 12.42 M parameters at 1000 classes.

    Arguments, errors and the notes on the heads (0.39 M each) and on 32 px are those of `cas_vit_xs`.
    """
    return _published("cas_vit_m", num_classes, image_size, in_channels, second_head, drop_path)


def cas_vit_t(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, second_head: bool = True, drop_path: float = 0.1
) -> CASViT:
    """CAS-ViT-T: 15 blocks, two heads, 21.76 M parameters at 1000 classes.

    Arguments, errors and the notes on the heads (0.51 M each) and on 32 px are those of `cas_vit_xs`.
    """
    return _published("cas_vit_t", num_classes, image_size, in_channels, second_head, drop_path)


def cas_vit_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (24, 32, 64, 96),
    depths: Sequence[int] = (1, 1, 2, 1),
    mlp_ratio: int = 2,
    drop_path: float = 0.0,
) -> CASViT:
    """A small CAS-ViT: 0.31 M parameters at 10 classes.

    For images of 28 and 32 px; not in the paper. It has one head. Parameters have the same shapes at every size of
    image, and a batch of one trains at every size.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the four stages.
        depths: Blocks of the four stages.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("cas_vit_tiny32", image_size, 1, least=4)
    dims = check_counts("model.sizes.dims", dims, 4)
    return CASViT(
        num_classes,
        image_size,
        in_channels,
        dims=dims,
        depths=check_counts("model.sizes.depths", depths, 4),
        mlp_ratio=check_count("model.sizes.mlp_ratio", mlp_ratio),
        stem_dims=dims[:1],
        strides=halving_strides(-(-image_size // 2), 3),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
