"""ConvNeXt with dilated convolutions of learnable spacings (DCLS) in the place of its 7 x 7 depthwise ones.

Source: Khalfaoui-Hassani et al. 2023, "Dilated Convolution with Learnable Spacings" (arXiv 2112.03740), for the
networks, their counts of elements and the positions that a stage shares; Liu et al. 2022, "A ConvNet for the 2020s"
(arXiv 2201.03545), for ConvNeXt, which `mixer=conv` builds. Written from the papers; the operator is
`umbel.models.operators.dcls`.

The blocks of a stage share their positions: one tensor [2, C, 1, N] a stage, which the state has once for each block
and a message once. So N = 34 elements a kernel make as many parameters as 7 x 7 do. What a mean of positions says, and
how they are learned here, is in `umbel.models.operators.dcls`.

Deviation: `convnext_dcls_tiny32` shrinks its maps by 3 x 3 convolutions in place of 2 x 2 (and by none once a map is
2 x 2), starts its layer scale at 1 and its weights as torch starts them.

Shapes: B batch, I input channels, H and W sides of a map, C channels of a stage, S side of a DCLS kernel, N elements of
it, D features (C of the last stage), K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from umbel.core.refusal import Refusal
from umbel.models.base import Block, Model, check_count, check_counts, check_fraction, check_image_size, check_positive
from umbel.models.layers import (
    LayerNorm2d,
    LayerScale,
    Mlp,
    depthwise,
    drop_path,
    drop_rates,
    halving_strides,
    initialise_linear,
    to_map,
    to_tokens,
)
from umbel.models.operators.dcls import VERSIONS, DclsConv

# Returns the depthwise layers of a stage, given its channels and its number of blocks.
Mixers = Callable[[int, int], Sequence[nn.Module]]


def conv_mixers(dim: int, depth: int, kernel: int = 7) -> list[nn.Module]:
    """Return the depthwise convolutions of a ConvNeXt stage of `depth` blocks with C = `dim` channels."""
    return [depthwise(dim, kernel) for _ in range(depth)]


def dcls_mixers(dim: int, depth: int, size: int, count: int, version: str, std: float | None) -> list[nn.Module]:
    """Return the DCLS layers of a stage, which share their positions.

    Args:
        dim: C.
        depth: Blocks of the stage.
        size: S.
        count: N.
        version: `v1` or `gauss`.
        std: Deviation of the elements' truncated normal; None draws them as torch draws a convolution with N weights.
    """
    layers: list[DclsConv] = []
    for _ in range(depth):
        weight = torch.empty(dim, 1, count)
        bound = count**-0.5
        weight = nn.init.uniform_(weight, -bound, bound) if std is None else nn.init.trunc_normal_(weight, std=std)
        padding = (size // 2, size // 2)
        twin = layers[0] if layers else None
        layers.append(DclsConv(weight, torch.zeros(dim), size, (1, 1), padding, dim, version, twin))
    return [*layers]


class ConvNeXtBlock(Block):
    """x += scale * MLP(LN(mixer x)), with a single shortcut.

    Args:
        mixer: What mixes the places of a map and keeps its shape: a depthwise convolution in ConvNeXt.
        dim: C.
        mlp_ratio: Hidden width of the MLP as a multiple of C.
        layer_scale: Where the factors on the branch begin.
        drop_rate: Stochastic depth.
    """

    def __init__(self, mixer: nn.Module, dim: int, mlp_ratio: int, layer_scale: float, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.mixer = mixer
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp_ratio * dim)
        self.scale = LayerScale(dim, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        height, width = x.shape[2:]
        branch = self.scale(self.mlp(self.norm(to_tokens(self.mixer(x)))))
        return x + drop_path(to_map(branch, height, width), self.drop_rate, self.training)


class ConvNeXt(Model):
    """A strided stem and stages of blocks; the features are the normalised mean over the last map.

    Args:
        num_classes: K.
        image_size: H and W of an image.
        in_channels: I.
        dims: Channels of each stage.
        depths: Blocks of each stage.
        mixers: Makes the depthwise layers of a stage.
        mlp_ratio: Hidden width of an MLP as a multiple of its channels.
        kernels: Side of the convolution that opens each stage.
        strides: Its stride. A 2 x 2 and a 4 x 4 kernel tile the map, a 3 x 3 kernel is padded.
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
        mixers: Mixers,
        mlp_ratio: int,
        kernels: Sequence[int],
        strides: Sequence[int],
        layer_scale: float,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = dims[-1]
        self.in_channels = in_channels
        self.image_size = image_size
        stages: list[nn.Module] = []
        inputs = in_channels
        for number, rates in enumerate(drop_rates(depths, drop_rate)):
            dim, kernel = dims[number], kernels[number]
            shrink = nn.Conv2d(inputs, dim, kernel, strides[number], (kernel - 1) // 2 if kernel % 2 else 0)
            # The stem's map is normalised, of later stages what goes into the convolution.
            norm = LayerNorm2d(dim if number == 0 else inputs, eps=1e-6)
            layers = mixers(dim, len(rates))
            blocks = [
                ConvNeXtBlock(mixer, dim, mlp_ratio, layer_scale, rate)
                for mixer, rate in zip(layers, rates, strict=True)
            ]
            stages.append(nn.Sequential(*((shrink, norm) if number == 0 else (norm, shrink)), *blocks))
            inputs = dim
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(inputs, eps=1e-6)
        self.head = nn.Linear(inputs, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        features: Tensor = self.norm(self.stages(x).mean(dim=(2, 3)))
        return features


def _check_choice(key: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise Refusal(f"model.sizes.{key} should be {' or '.join(known)}, found {value!r}.", key=f"model.sizes.{key}")
    return value


def _mixers(mixer: str, size: int, count: int, version: str, std: float | None) -> Mixers:
    """Return what makes the depthwise layers: DCLS, or the 7 x 7 convolutions of ConvNeXt."""
    _check_choice("mixer", mixer, ("dcls", "conv"))
    _check_choice("version", version, VERSIONS)
    if mixer == "conv":
        return conv_mixers
    return partial(dcls_mixers, size=size, count=count, version=version, std=std)


# name -> depths of the stages, N
PUBLISHED: dict[str, tuple[tuple[int, ...], int]] = {
    "convnext_dcls_tiny": ((3, 3, 9, 3), 34),
    "convnext_dcls_small": ((3, 3, 27, 3), 40),
}


def _published(
    name: str,
    num_classes: int,
    image_size: int,
    in_channels: int,
    mixer: str,
    version: str,
    layer_scale: float,
    drop_rate: float,
) -> ConvNeXt:
    """Build a network of the paper: S = 17, and truncated normals of deviation 0.02 to begin with."""
    check_image_size(name, image_size, 32)
    depths, count = PUBLISHED[name]
    model = ConvNeXt(
        num_classes,
        image_size,
        in_channels,
        dims=(96, 192, 384, 768),
        depths=depths,
        mixers=_mixers(mixer, 17, count, version, std=0.02),
        mlp_ratio=4,
        kernels=(4, 2, 2, 2),
        strides=(4, 2, 2, 2),
        layer_scale=check_positive("model.sizes.layer_scale", layer_scale),
        drop_rate=check_fraction("model.sizes.drop_path", drop_rate),
    )
    initialise_linear(model, kinds=(nn.Linear, nn.Conv2d))
    return model


def convnext_dcls_tiny(
    num_classes: int,
    image_size: int = 224,
    in_channels: int = 3,
    *,
    mixer: str = "dcls",
    version: str = "v1",
    layer_scale: float = 1e-6,
    drop_path: float = 0.1,
) -> ConvNeXt:
    """ConvNeXt-T-dcls: 28.6 M parameters at 1000 classes.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 32.
        in_channels: I, 1 for grey and 3 for colour.
        mixer: `dcls`, or `conv` for ConvNeXt itself with 7 x 7 depthwise convolutions.
        version: How an element spreads over pixels: `v1`, bilinear, or `gauss`, with learned widths that a stage
            shares too.
        layer_scale: Where the factors on the branches begin. With the published 1e-6 a block begins as the
            identity; take 1e-2 for short federated runs from scratch.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published(
        "convnext_dcls_tiny", num_classes, image_size, in_channels, mixer, version, layer_scale, drop_path
    )


def convnext_dcls_small(
    num_classes: int,
    image_size: int = 224,
    in_channels: int = 3,
    *,
    mixer: str = "dcls",
    version: str = "v1",
    layer_scale: float = 1e-6,
    drop_path: float = 0.4,
) -> ConvNeXt:
    """ConvNeXt-S-dcls: 50.2 M parameters at 1000 classes.

    Arguments and errors are those of `convnext_dcls_tiny`.
    """
    return _published(
        "convnext_dcls_small", num_classes, image_size, in_channels, mixer, version, layer_scale, drop_path
    )


def convnext_dcls_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (32, 64, 128),
    depths: Sequence[int] = (2, 2, 2),
    mlp_ratio: int = 2,
    mixer: str = "dcls",
    size: int = 7,
    count: int = 9,
    version: str = "v1",
    layer_scale: float = 1.0,
    drop_path: float = 0.0,
) -> ConvNeXt:
    """A small ConvNeXt-dcls: 0.28 M parameters at 10 classes.

    For images of 28 and 32 px; not in the paper. Parameters have the same shapes at every size of image, and a batch of
    one trains at every size.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the three stages.
        depths: Blocks of the three stages.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        mixer: `dcls`, or `conv` for ConvNeXt itself with 7 x 7 depthwise convolutions.
        size: S, odd, 3 or more.
        count: N.
        version: How an element spreads over pixels: `v1`, bilinear, or `gauss`, with learned widths that a stage
            shares too.
        layer_scale: Where the factors on the branches begin.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("convnext_dcls_tiny32", image_size, 1, least=4)
    if check_count("model.sizes.size", size) % 2 == 0 or size < 3:
        raise Refusal(
            f"model.sizes.size should be odd, 3 or more, found {size}.",
            key="model.sizes.size",
            remedy=f"Use {max(3, size + 1)}.",
        )
    check_count("model.sizes.count", count)
    return ConvNeXt(
        num_classes,
        image_size,
        in_channels,
        dims=check_counts("model.sizes.dims", dims, 3),
        depths=check_counts("model.sizes.depths", depths, 3),
        mixers=_mixers(mixer, size, count, version, std=None),
        mlp_ratio=check_count("model.sizes.mlp_ratio", mlp_ratio),
        kernels=(3, 3, 3),
        strides=halving_strides(image_size, 3),
        layer_scale=check_positive("model.sizes.layer_scale", layer_scale),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
