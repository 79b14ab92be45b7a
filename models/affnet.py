"""AFFNet: tokens mixed by filters of the frequency domain that are computed from the spectrum they filter.

Source: Huang et al. 2023, "Adaptive Frequency Filters As Efficient Global Token Mixers" (arXiv 2307.14008), section
3; Guibas et al. 2022 (arXiv 2111.13587) for the block-diagonal complex perceptron with soft shrinkage. Written from
the equations. Filter blocks have layer norm over channels and places at once, all else has batch norm, which others
report of the published weights. Activations are SiLU; hard swish is reported as well, and the count does not tell.

The product with a mask in the frequency domain is a circular convolution of the map with a kernel as large as the map,
another one for each image and channel.

Deviation: `affnet_tiny32` has smaller strides, no inverted residuals before the first stage, and filters whose weights
start larger: from 0.02 the mask of a small group is nothing but its bias.

Shapes: B batch, I input channels, H and W sides of a map, C channels, G groups of c = C / G channels of the filter's
perceptron, F = W / 2 + 1 (rounded down) frequencies along the width, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.base import Block, Model, check_count, check_counts, check_fraction, check_image_size, check_positive
from umbel.models.layers import ConvNorm, drop_path, drop_rates, halving_strides, no_autocast

GROUPS = 8


class FrequencyFilter(nn.Module):
    """x + irfft2(M(X) X) with X = rfft2(x) and M a perceptron over the channels of each frequency.

    Weights are [2, G, c, c] and biases [2, G, c]: real parts, then imaginary parts. All of it is computed in float32,
    or in float64 for a map in float64.

    Args:
        dim: C, a multiple of 8.
        shrink: Parts of the mask up to this size become 0, larger ones move towards 0 by it.
        std: Deviation of the weights and biases at the start.
    """

    def __init__(self, dim: int, shrink: float = 0.01, std: float = 0.02) -> None:
        super().__init__()
        self.shrink = shrink
        width = dim // GROUPS
        self.weight1 = nn.Parameter(torch.randn(2, GROUPS, width, width) * std)
        self.bias1 = nn.Parameter(torch.randn(2, GROUPS, width) * std)
        self.weight2 = nn.Parameter(torch.randn(2, GROUPS, width, width) * std)
        self.bias2 = nn.Parameter(torch.randn(2, GROUPS, width) * std)

    def mask(self, spectrum: Tensor) -> Tensor:
        """Return the complex filter M [B, C, H, F] of a spectrum [B, C, H, F]."""
        batch, channels, height, width = spectrum.shape
        grouped = spectrum.view(batch, GROUPS, channels // GROUPS, height, width)
        # Real and imaginary parts side by side within a group: the complex products are one grouped 1 x 1 convolution.
        parts = torch.cat((grouped.real, grouped.imag), dim=2).flatten(1, 2)
        parts = F.silu(_complex_linear(parts, self.weight1, self.bias1))
        parts = F.softshrink(_complex_linear(parts, self.weight2, self.bias2), self.shrink)
        real, imag = parts.view(batch, GROUPS, 2, channels // GROUPS, height, width).unbind(2)
        return torch.complex(real, imag).reshape(batch, channels, height, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        if not x.shape[0]:
            return x  # of which the Fourier transform of a CPU is an error
        # There is no Fourier transform in half precision.
        exact = x if x.dtype == torch.float64 else x.float()
        with no_autocast(x):
            spectrum = torch.fft.rfft2(exact, norm="ortho")
            filtered = torch.fft.irfft2(self.mask(spectrum) * spectrum, s=x.shape[2:], norm="ortho")
        mixed: Tensor = x + filtered.to(x.dtype)
        return mixed


def _complex_linear(parts: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return W x + b a group, of parts [B, G 2 c, H, F]: in each group the real and then the imaginary ones."""
    real, imag = weight.to(parts.dtype).unbind(0)
    # (R + i J)(x + i y) = (R x - J y) + i (J x + R y), and weights are [G, in, out].
    matrix = torch.cat((torch.cat((real, imag), dim=2), torch.cat((-imag, real), dim=2)), dim=1)
    kernel = matrix.transpose(1, 2).flatten(0, 1)[:, :, None, None]
    return F.conv2d(parts, kernel, bias.to(parts.dtype).transpose(0, 1).flatten(), groups=GROUPS)


class InvertedResidual(Block):
    """1 x 1 to the hidden width, 3 x 3 depthwise, 1 x 1 back (Sandler et al. 2018); a shortcut if the shape stays.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        hidden: Channels in between.
        stride: Of the depthwise convolution.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, stride: int = 1) -> None:
        super().__init__()
        self.shortcut = stride == 1 and inputs == outputs
        self.expand = ConvNorm(inputs, hidden)
        self.depthwise = ConvNorm(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.reduce = ConvNorm(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, outputs, H / stride, W / stride] of a map [B, inputs, H, W]."""
        branch: Tensor = self.reduce(F.silu(self.depthwise(F.silu(self.expand(x)))))
        return x + branch if self.shortcut else branch


class FilterBlock(Block):
    """x += Filter(LN(InvertedResidual(LN x))): channels are mixed first, then tokens, with a single shortcut."""

    def __init__(self, dim: int, hidden: int, std: float, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        # Layer norm over channels and places of an image at once.
        self.norm1 = nn.GroupNorm(1, dim)
        self.channels = InvertedResidual(dim, dim, hidden)
        self.norm2 = nn.GroupNorm(1, dim)
        self.filter = FrequencyFilter(dim, std=std)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        branch = self.filter(self.norm2(self.channels(self.norm1(x))))
        return x + drop_path(branch, self.drop_rate, self.training)


class FilterStage(nn.Module):
    """Filter blocks, and a 1 x 1 convolution that fuses what goes in with what comes out."""

    def __init__(self, dim: int, hidden: int, std: float, rates: Sequence[float]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(FilterBlock(dim, hidden, std, rate) for rate in rates))
        self.norm = nn.GroupNorm(1, dim)
        self.project = ConvNorm(dim, dim)
        self.fuse = ConvNorm(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        mixed = self.project(self.norm(self.blocks(x)))
        return F.silu(self.fuse(torch.cat((x, mixed), dim=1)))


class AFFNet(Model):
    """A convolutional stem, stages of filter blocks, a 1 x 1 convolution; the features are the mean of the map.

    Args:
        num_classes: Logits.
        image_size: H and W of an image.
        in_channels: I.
        stem: Channels of the strided convolution that opens the network.
        early: (channels, stride) of each inverted residual before the stages.
        dims: Channels of each stage.
        depths: Filter blocks of each stage.
        strides: Stride of the inverted residual that opens each stage.
        expand: Hidden width of these inverted residuals as a multiple of the channels that come in.
        ffn_ratio: The same of a filter block's.
        num_features: D, channels of the last 1 x 1 convolution.
        std: Deviation of the filters' weights at the start.
        drop_rate: Stochastic depth of the last filter block; it rises linearly from 0.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        stem: int,
        early: Sequence[tuple[int, int]],
        dims: Sequence[int],
        depths: Sequence[int],
        strides: Sequence[int],
        expand: int,
        ffn_ratio: int,
        num_features: int,
        std: float,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.in_channels = in_channels
        self.image_size = image_size
        layers: list[nn.Module] = [ConvNorm(in_channels, stem, kernel=3, stride=2), nn.SiLU()]
        inputs = stem
        for dim, stride in early:
            layers.append(InvertedResidual(inputs, dim, expand * inputs, stride))
            inputs = dim
        self.stem = nn.Sequential(*layers)
        stages: list[nn.Module] = []
        for dim, stride, rates in zip(dims, strides, drop_rates(depths, drop_rate), strict=True):
            stages.append(InvertedResidual(inputs, dim, expand * inputs, stride))
            stages.append(FilterStage(dim, ffn_ratio * dim, std, rates))
            inputs = dim
        self.stages = nn.Sequential(*stages)
        self.expand = ConvNorm(inputs, num_features)
        self.head = nn.Linear(num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        return F.silu(self.expand(self.stages(self.stem(x)))).mean(dim=(2, 3))


# name -> channels before the first stage and of each stage, hidden width of inverted residuals as a multiple
PUBLISHED: dict[str, tuple[int, tuple[int, ...], int]] = {
    "affnet_et": (48, (64, 104, 144), 2),
    "affnet_t": (48, (96, 160, 192), 4),
    "affnet_s": (64, (128, 256, 320), 4),
}


def _published(name: str, num_classes: int, image_size: int, in_channels: int, drop_rate: float) -> AFFNet:
    """Build an AFFNet of the paper, which differ in their widths."""
    check_image_size(name, image_size, 1, least=32)
    width, dims, expand = PUBLISHED[name]
    return AFFNet(
        num_classes,
        image_size,
        in_channels,
        stem=16,
        early=((32, 1), (width, 2), (width, 1), (width, 1)),
        dims=dims,
        depths=(2, 4, 3),
        strides=(2, 2, 2),
        expand=expand,
        ffn_ratio=2,
        num_features=min(4 * dims[-1], 960),
        std=0.02,
        drop_rate=check_fraction("model.sizes.drop_path", drop_rate),
    )


def affnet_et(num_classes: int, image_size: int = 256, in_channels: int = 3, *, drop_path: float = 0.0) -> AFFNet:
    """AFFNet-ET: 9 filter blocks, 1.44 M parameters at 1000 classes.

    At 32 px the last map is one pixel: a Fourier transform of it mixes nothing, and its batch norm cannot train on a
    batch of one.

    Args:
        num_classes: The number of logits.
        image_size: The side of an image in pixels, 32 or more.
        in_channels: I, 1 for grey and 3 for colour.
        drop_path: Stochastic depth of the last filter block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published("affnet_et", num_classes, image_size, in_channels, drop_path)


def affnet_t(num_classes: int, image_size: int = 256, in_channels: int = 3, *, drop_path: float = 0.0) -> AFFNet:
    """AFFNet-T: 9 filter blocks, 2.65 M parameters at 1000 classes.

    Arguments, errors and the note on 32 px are those of `affnet_et`.
    """
    return _published("affnet_t", num_classes, image_size, in_channels, drop_path)


def affnet_s(num_classes: int, image_size: int = 256, in_channels: int = 3, *, drop_path: float = 0.0) -> AFFNet:
    """AFFNet, the largest: 9 filter blocks, 5.57 M parameters at 1000 classes.

    Arguments, errors and the note on 32 px are those of `affnet_et`.
    """
    return _published("affnet_s", num_classes, image_size, in_channels, drop_path)


def affnet_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    stem: int = 16,
    dims: Sequence[int] = (32, 64, 96),
    depths: Sequence[int] = (1, 2, 1),
    expand: int = 2,
    ffn_ratio: int = 2,
    head_ratio: int = 2,
    filter_std: float = 0.1,
    drop_path: float = 0.0,
) -> AFFNet:
    """A small AFFNet: 0.19 M parameters at 10 classes.

    For images of 28 and 32 px; not in the paper. The stages' maps are 16, 8 and 4 px wide at 32 px. Parameters have the
    same shapes at every size of image, and a batch of one trains at every size.

    Args:
        num_classes: The number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        stem: Channels of the strided convolution that opens the network.
        dims: Channels of the three stages, multiples of 8.
        depths: Filter blocks of the three stages.
        expand: Hidden width of the inverted residual that opens a stage as a multiple of the channels that come in.
        ffn_ratio: The same of a filter block's.
        head_ratio: D as a multiple of the last stage's channels.
        filter_std: Deviation of the filters' weights at the start.
        drop_path: Stochastic depth of the last filter block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("affnet_tiny32", image_size, 1, least=4)
    dims = check_counts("model.sizes.dims", dims, 3, multiple=GROUPS)
    return AFFNet(
        num_classes,
        image_size,
        in_channels,
        stem=check_count("model.sizes.stem", stem),
        early=(),
        dims=dims,
        depths=check_counts("model.sizes.depths", depths, 3),
        strides=(1, *halving_strides(-(-image_size // 2), 2)),
        expand=check_count("model.sizes.expand", expand),
        ffn_ratio=check_count("model.sizes.ffn_ratio", ffn_ratio),
        num_features=check_count("model.sizes.head_ratio", head_ratio) * dims[-1],
        std=check_positive("model.sizes.filter_std", filter_std),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
