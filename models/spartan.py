"""SpaRTAN: convolutions of several dilations mix places, waves of amplitude and phase mix channels.

Source: Pay et al. 2025, "SpaRTAN: Spatial Reinforcement Token-based Aggregation Network for Visual Recognition" (arXiv
2507.10999). Written from the equations; what they leave open (the groups of the wave's convolution, convolutions
without bias before batch norm, no norm before the head, how weights start) is as the authors' published model has it.

The channel with the largest value at a place says which channel of the wave is added there to all others. The choice
has no derivative; what is chosen has. Where two channels are as good as equal, rounding decides.

Deviations: the complex product is written out in real numbers, and the choice is a masked sum in place of a gather, so
that neither needs float32 nor an operation without a deterministic implementation on CUDA. `spartan_tiny32` has a
single convolution as its stem, shrinks by 3 x 3 convolutions, and starts its layer scale at 1.

Shapes: B batch, I input channels, H and W sides of a map, C channels of a stage, E = e C channels of a wave, D features
(C of the last stage).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.base import Block, Model, check_counts, check_fraction, check_image_size, check_positive
from umbel.models.layers import LayerScale, SqueezeExcite, drop_path, drop_rates, halving_strides, strided

EPS = 1e-6


def _conv3(dim: int, groups: int, dilation: int = 1) -> nn.Conv2d:
    """Return a 3 x 3 convolution without bias that keeps the map."""
    return nn.Conv2d(dim, dim, 3, padding=dilation, dilation=dilation, groups=groups, bias=False)


def _weighted(dim: int, hidden: int, *convs: nn.Module) -> nn.Sequential:
    """Return convolutions to `dim` channels, batch norm, GELU, and squeeze and excitation by `hidden` channels."""
    return nn.Sequential(*convs, nn.BatchNorm2d(dim, eps=EPS), nn.GELU(), SqueezeExcite(dim, hidden))


class SpatialMixer(nn.Module):
    """Half of the channels, sharpened against their mean, through a near and a far convolution; both are joined.

    Args:
        dim: C, a multiple of 8.
        dense: Whether the 3 x 3 convolutions mix channels; else they are depthwise.
    """

    def __init__(self, dim: int, dense: bool) -> None:
        super().__init__()
        half = dim // 2
        groups = 1 if dense else half
        self.reduce = nn.Conv2d(dim, half, 1)
        self.contrast = LayerScale(half, 1e-5, spatial=True)
        self.near = _weighted(half, half // 4, _conv3(half, groups))
        self.far = _weighted(half, half // 4, _conv3(half, groups, dilation=2), _conv3(half, groups, dilation=2))
        self.join = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        half = self.reduce(x)
        half = half + self.contrast(half - half.mean(dim=(2, 3), keepdim=True))
        joined: Tensor = self.join(torch.cat((self.near(half), self.far(half)), dim=1))
        return joined


class WaveMixer(nn.Module):
    """Waves of E channels, the strongest added to all, turned pairwise in the complex plane, convolved and reduced.

    Args:
        dim: C, a multiple of 8.
        ratio: e.
        groups: Groups of the 3 x 3 convolution over the E channels; a divisor of E.
    """

    def __init__(self, dim: int, ratio: int, groups: int) -> None:
        super().__init__()
        wave = ratio * dim
        self.phase = nn.Conv2d(dim, wave, 1)
        self.amplitude = nn.Conv2d(dim, wave, 1)
        # Real and imaginary part of a factor for each pair of channels.
        self.turn = nn.Parameter(torch.randn(wave // 2, 2))
        self.mix = _weighted(wave, dim // 4, _conv3(wave, groups))
        self.reduce = nn.Conv2d(wave, dim, 1)

    def waves(self, x: Tensor) -> Tensor:
        """Return the waves [B, E, H, W] of a map [B, C, H, W] before they are convolved."""
        wave = self.amplitude(x) * F.gelu(self.phase(x))
        # [B, C, H, W], true at the largest channel of each place; of a wave's channels only the first C can be chosen.
        channel = torch.arange(x.shape[1], device=x.device)[:, None, None]
        strongest = channel == x.argmax(dim=1, keepdim=True)
        wave = wave + torch.where(strongest, wave[:, : x.shape[1]], 0).sum(dim=1, keepdim=True)
        real, imag = wave.unflatten(1, (-1, 2)).unbind(2)
        turn_real, turn_imag = self.turn[:, :, None, None].unbind(1)
        turned = (real * turn_real - imag * turn_imag, real * turn_imag + imag * turn_real)
        return torch.stack(turned, dim=2).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        mixed: Tensor = self.reduce(self.mix(self.waves(x)))
        return mixed


class SpartanBlock(Block):
    """x += scale * SpatialMixer(LN x); x += scale * WaveMixer(LN x), with layer norm over channels and places at once.

    Args:
        dim: C.
        ratio: e.
        dense: Whether the spatial mixer's 3 x 3 convolutions mix channels. The wave's is then depthwise, and else has
            C groups: the published sizes have it so.
        layer_scale: Where the factors on the branches begin.
        drop_rate: Stochastic depth.
    """

    def __init__(self, dim: int, ratio: int, dense: bool, layer_scale: float, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.norm1 = nn.GroupNorm(1, dim, eps=EPS)
        self.spatial = SpatialMixer(dim, dense)
        self.scale1 = LayerScale(dim, layer_scale, spatial=True)
        self.norm2 = nn.GroupNorm(1, dim, eps=EPS)
        self.wave = WaveMixer(dim, ratio, groups=ratio * dim if dense else dim)
        self.scale2 = LayerScale(dim, layer_scale, spatial=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        x = x + drop_path(self.scale1(self.spatial(self.norm1(x))), self.drop_rate, self.training)
        return x + drop_path(self.scale2(self.wave(self.norm2(x))), self.drop_rate, self.training)


class Spartan(Model):
    """A strided stem and stages of blocks; the features are the mean of the last map.

    Args:
        num_classes: Logits.
        image_size: H and W of an image.
        in_channels: I.
        dims: Channels of each stage, multiples of 8.
        depths: Blocks of each stage.
        ratios: e of each stage.
        num_dense: Stages, from the first, whose spatial mixers have dense convolutions.
        deep_stem: A further strided convolution before the stem's, with half its channels.
        kernel: Side of the convolution that opens each later stage: 2, which tiles the map, or 3, which is padded.
        strides: Stride of the stem's last convolution and of those.
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
        ratios: Sequence[int],
        num_dense: int,
        deep_stem: bool,
        kernel: int,
        strides: Sequence[int],
        layer_scale: float,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = dims[-1]
        self.in_channels = in_channels
        self.image_size = image_size
        layers: list[nn.Module] = []
        inputs = in_channels
        if deep_stem:
            layers += [*strided(inputs, dims[0] // 2, bias=False, eps=EPS), nn.GELU()]
            inputs = dims[0] // 2
        for stage, rates in enumerate(drop_rates(depths, drop_rate)):
            dim = dims[stage]
            layers += strided(inputs, dim, kernel if stage else 3, strides[stage], bias=False, eps=EPS)
            layers.append(nn.SiLU() if stage else nn.GELU())
            layers += [SpartanBlock(dim, ratios[stage], stage < num_dense, layer_scale, rate) for rate in rates]
            inputs = dim
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        features: Tensor = self.layers(x).mean(dim=(2, 3))
        return features


def _initialise(model: Spartan) -> None:
    """Give convolutions a normal of variance 2 / (k k C_out / groups), the head one of deviation 0.02, biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(model.head.weight, std=0.02)
    nn.init.zeros_(model.head.bias)


def spartan(
    num_classes: int,
    image_size: int = 224,
    in_channels: int = 3,
    *,
    layer_scale: float = 1e-5,
    drop_path: float = 0.1,
) -> Spartan:
    """SpaRTAN: 20 blocks, 3.82 M parameters at 1000 classes.

    At 32 px the last map is one pixel: its batch norm then cannot train on a batch of one.

    Args:
        num_classes: The number of logits.
        image_size: The side of an image in pixels, a multiple of 32.
        in_channels: I, 1 for grey and 3 for colour.
        layer_scale: Where the factors on the branches begin. With the published 1e-5 a block begins as the
            identity; take 1e-2 for short federated runs from scratch.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    model = Spartan(
        num_classes,
        check_image_size("spartan", image_size, 32),
        in_channels,
        dims=(32, 64, 128, 256),
        depths=(3, 3, 12, 2),
        ratios=(4, 4, 2, 2),
        num_dense=2,
        deep_stem=True,
        kernel=2,
        strides=(2, 2, 2, 2),
        layer_scale=check_positive("model.sizes.layer_scale", layer_scale),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
    _initialise(model)
    return model


def spartan_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (24, 48, 96),
    depths: Sequence[int] = (1, 1, 2),
    ratios: Sequence[int] = (2, 2, 2),
    layer_scale: float = 1.0,
    drop_path: float = 0.0,
) -> Spartan:
    """A small SpaRTAN: 0.26 M parameters at 10 classes.

    For images of 28 and 32 px; not in the paper. The stages' maps are 16, 8 and 4 px wide at 32 px. Parameters have the
    same shapes at every size of image, and a batch of one trains at every size.

    Args:
        num_classes: The number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the three stages, multiples of 8.
        depths: Blocks of the three stages.
        ratios: Channels of a wave as a multiple of the stage's, of the three stages.
        layer_scale: Where the factors on the branches begin.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return Spartan(
        num_classes,
        check_image_size("spartan_tiny32", image_size, 1, least=4),
        in_channels,
        dims=check_counts("model.sizes.dims", dims, 3, multiple=8),
        depths=check_counts("model.sizes.depths", depths, 3),
        ratios=check_counts("model.sizes.ratios", ratios, 3),
        num_dense=1,
        deep_stem=False,
        kernel=3,
        strides=halving_strides(image_size, 3),
        layer_scale=check_positive("model.sizes.layer_scale", layer_scale),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
