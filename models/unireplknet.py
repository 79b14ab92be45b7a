"""UniRepLKNet: large depthwise kernels that train as a sum of dilated small ones and are folded into one afterwards.

Source: Ding et al. 2023, "UniRepLKNet: A Universal Perception Large-Kernel ConvNet" (arXiv 2311.15599): section 3 for
the block and the sizes, equation 1 for dilated re-parameterisation; Zhang et al. 2024, "Scaling Up Your Kernels" (arXiv
2410.08049) for the same network; Woo et al. 2023 (arXiv 2301.00808) for the response normalisation. Written from the
equations.

Clients train, and the server averages, the training structure; `fold` comes last, once. It divides by the deviations of
batch norm, so that folding and averaging do not commute: an average of folded models is another function.

Deviation: `unireplknet_tiny32` has a single convolution as its stem and shrinks its maps by none once they are 2 x 2.

Shapes: B batch, I input channels, H and W sides of a map, C channels of a stage, K side of a kernel, D features (C of
the last stage).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.refusal import Refusal
from umbel.models.base import Block, Model, check_count, check_counts, check_fraction, check_image_size, check_positive
from umbel.models.layers import (
    LayerNorm2d,
    LayerScale,
    SqueezeExcite,
    depthwise,
    drop_path,
    drop_rates,
    halving_strides,
    initialise_linear,
)

# K -> (side, dilation) of the small kernels beside the large one; none of them reaches over its edge.
DILATED: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
}


class DilatedConv(nn.Module):
    """The sum of a large depthwise convolution and of small dilated ones, each with a batch norm of its own."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        branches = [(kernel, 1), *DILATED[kernel]]
        self.convs = nn.ModuleList(depthwise(dim, side, dilation, bias=False) for side, dilation in branches)
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        total: Tensor = self.norms[0](self.convs[0](x))
        for conv, norm in zip(self.convs[1:], self.norms[1:], strict=True):
            total = total + norm(conv(x))
        return total


class ResponseNorm(nn.Module):
    """Global response normalisation of a map [B, H, W, C]; begins as the identity.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        # None in the folded form, where the linear layer behind has it in its bias.
        self.bias: nn.Parameter | None = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (weight G / mean(G) + 1) + bias with G the norm of each channel over the map."""
        response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        response = response / (response.mean(dim=3, keepdim=True) + 1e-6)
        x = x * (self.weight * response + 1)
        return x if self.bias is None else x + self.bias


class UniRepLKBlock(Block):
    """x += scale * BN(W2 GRN(GELU(W1 SE(BN(depthwise x))))), with a single shortcut."""

    def __init__(self, dim: int, kernel: int, mlp_ratio: int, layer_scale: float, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        # Kernels below 7 have no dilated ones beside them.
        self.mixer: nn.Module = DilatedConv(dim, kernel) if kernel in DILATED else depthwise(dim, kernel, bias=False)
        self.norm1: nn.Module = nn.BatchNorm2d(dim)
        self.excite = SqueezeExcite(dim, dim // 4)
        self.fc1 = nn.Linear(dim, mlp_ratio * dim)
        self.response = ResponseNorm(mlp_ratio * dim)
        self.fc2 = nn.Linear(mlp_ratio * dim, dim, bias=False)
        self.norm2: nn.Module = nn.BatchNorm2d(dim)
        self.scale: nn.Module = LayerScale(dim, layer_scale, spatial=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        mixed: Tensor = self.excite(self.norm1(self.mixer(x)))
        hidden = self.response(F.gelu(self.fc1(mixed.permute(0, 2, 3, 1))))
        branch = self.scale(self.norm2(self.fc2(hidden).permute(0, 3, 1, 2)))
        return x + drop_path(branch, self.drop_rate, self.training)


class UniRepLKNet(Model):
    """A strided stem and stages of blocks; the features are the layer-normalised mean of the last map.

    Args:
        num_classes: Logits.
        image_size: H and W of an image.
        in_channels: I.
        dims: Channels of each stage.
        kernels: Side of the depthwise kernel of each block of each stage.
        strides: Stride of the 3 x 3 convolution that opens each stage.
        deep_stem: A further strided convolution before the first stage's, with half its channels.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        layer_scale: Where the factors on the branches begin.
        drop_rate: Stochastic depth of the last block; it rises linearly from 0.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        dims: Sequence[int],
        kernels: Sequence[Sequence[int]],
        strides: Sequence[int],
        deep_stem: bool,
        mlp_ratio: int,
        layer_scale: float,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = dims[-1]
        self.in_channels = in_channels
        self.image_size = image_size
        stages: list[nn.Module] = []
        inputs = in_channels
        rates = drop_rates([len(stage) for stage in kernels], drop_rate)
        for dim, stage, stride, stage_rates in zip(dims, kernels, strides, rates, strict=True):
            layers: list[nn.Module] = []
            if deep_stem and not stages:
                layers = [nn.Conv2d(inputs, dim // 2, 3, 2, 1), LayerNorm2d(dim // 2, eps=1e-6), nn.GELU()]
                inputs = dim // 2
            layers += [nn.Conv2d(inputs, dim, 3, stride, 1), LayerNorm2d(dim, eps=1e-6)]
            layers += [
                UniRepLKBlock(dim, kernel, mlp_ratio, layer_scale, rate)
                for kernel, rate in zip(stage, stage_rates, strict=True)
            ]
            stages.append(nn.Sequential(*layers))
            inputs = dim
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        features: Tensor = self.norm(self.stages(x).mean(dim=(2, 3)))
        return features


def fold(model: Model) -> Model:
    """Return the deploy form of a UniRepLKNet: the same function in evaluation, without batch norm. `model` stays.

    Every block becomes one depthwise convolution, squeeze and excitation, and two linear layers: batch norm is folded
    into the convolutions, dilated kernels are spread and summed, and the second linear layer takes over the bias of the
    response normalisation, its batch norm and the layer scale. The result has other names in its state than `model`: to
    load one, fold a model of the same sizes first. Fold the averaged model; folded models must not be averaged.

    Raises:
        TypeError: `model` is not a UniRepLKNet.
        ValueError: It is folded already, or group norm stands where batch norm was, which depends on the image.
    """
    if not isinstance(model, UniRepLKNet):
        raise TypeError(f"fold needs a UniRepLKNet, found {type(model).__name__}")
    folded = deepcopy(model).eval()
    with torch.no_grad():
        for block in folded.modules():
            if isinstance(block, UniRepLKBlock):
                _fold_block(block)
    return folded


def merged_kernel(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the kernel [C, 1, K, K] and the bias [C], in float64, of what a block's depthwise part does in evaluation.

    Raises:
        ValueError: A norm in it is not a batch norm, or an operator has taken its place.
    """
    if not isinstance(conv, DilatedConv):
        if not isinstance(conv, nn.Conv2d):
            raise ValueError(f"expected a convolution to fold, found {type(conv).__name__} (key model.operators)")
        return conv.weight.double(), conv.weight.new_zeros(len(conv.weight), dtype=torch.float64)
    kernels, biases = [], []
    for branch, norm in zip(conv.convs, conv.norms, strict=True):
        assert isinstance(branch, nn.Conv2d)
        factor, bias = _affine(norm)
        kernels.append(_spread(branch.weight.double() * factor[:, None, None, None], branch.dilation[0]))
        biases.append(bias)
    reach = kernels[0].shape[-1]
    padded = [F.pad(kernel, [(reach - kernel.shape[-1]) // 2] * 4) for kernel in kernels]
    return torch.stack(padded).sum(dim=0), torch.stack(biases).sum(dim=0)


def _spread(kernel: Tensor, dilation: int) -> Tensor:
    """Return the kernel without dilation that does what `kernel` [C, 1, k, k] does with it (equation 1)."""
    side = dilation * (kernel.shape[-1] - 1) + 1
    spread = kernel.new_zeros(*kernel.shape[:2], side, side)
    spread[..., ::dilation, ::dilation] = kernel
    return spread


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return factor and summand of each channel, in float64, that a batch norm is in evaluation."""
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        kind = "one that was folded before" if isinstance(norm, nn.Identity) else f"a {type(norm).__name__} in it"
        raise ValueError(f"fold needs a UniRepLKNet with its batch norms and their running statistics, found {kind}")
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return factor, norm.bias.double() - factor * norm.running_mean.double()


def _fold_block(block: UniRepLKBlock) -> None:
    """Fold a block in place."""
    kernel, bias = merged_kernel(block.mixer)
    factor, summand = _affine(block.norm1)
    conv = depthwise(len(kernel), kernel.shape[-1]).to(block.fc1.weight)
    assert conv.bias is not None
    conv.weight.copy_(kernel * factor[:, None, None, None])
    conv.bias.copy_(bias * factor + summand)

    factor, summand = _affine(block.norm2)
    assert isinstance(block.scale, LayerScale) and block.response.bias is not None
    weight = block.fc2.weight.double()
    factor, summand = (part * block.scale.weight.flatten().double() for part in (factor, summand))
    linear = nn.Linear(block.fc2.in_features, block.fc2.out_features).to(weight.device, block.fc2.weight.dtype)
    linear.weight.copy_(weight * factor[:, None])
    linear.bias.copy_(weight @ block.response.bias.double() * factor + summand)

    block.mixer, block.fc2 = conv.eval(), linear.eval()
    block.response.bias = None
    block.norm1, block.norm2, block.scale = nn.Identity(), nn.Identity(), nn.Identity()


# name -> channels of the first stage, kernel of each block of each stage
PUBLISHED: dict[str, tuple[int, tuple[tuple[int, ...], ...]]] = {
    "unireplknet_a": (40, ((3,) * 2, (13,) * 2, (13,) * 6, (13,) * 2)),
    "unireplknet_f": (48, ((3,) * 2, (13,) * 2, (13,) * 6, (13,) * 2)),
    "unireplknet_p": (64, ((3,) * 2, (13,) * 2, (13,) * 6, (13,) * 2)),
    "unireplknet_n": (80, ((3,) * 2, (13,) * 2, (13,) * 8, (13,) * 2)),
    "unireplknet_t": (80, ((3,) * 3, (13,) * 3, (13, 3) * 9, (13,) * 3)),
}


def _published(
    name: str, num_classes: int, image_size: int, in_channels: int, layer_scale: float, drop_rate: float
) -> UniRepLKNet:
    """Build a UniRepLKNet of the paper: the channels double from stage to stage."""
    check_image_size(name, image_size, 1, least=32)
    dim, kernels = PUBLISHED[name]
    model = UniRepLKNet(
        num_classes,
        image_size,
        in_channels,
        dims=[dim * 2**stage for stage in range(4)],
        kernels=kernels,
        strides=(2, 2, 2, 2),
        deep_stem=True,
        mlp_ratio=4,
        layer_scale=check_positive("model.sizes.layer_scale", layer_scale),
        drop_rate=check_fraction("model.sizes.drop_path", drop_rate),
    )
    initialise_linear(model, kinds=(nn.Conv2d, nn.Linear))
    return model


def unireplknet_a(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, layer_scale: float = 1e-6, drop_path: float = 0.0
) -> UniRepLKNet:
    """UniRepLKNet-A: 4.65 M parameters at 1000 classes, 4.44 M folded.

    The published 4.4 M are those of the deploy form, `fold(model)`. At 32 px the last map is one pixel: its batch norm
    then cannot train on a batch of one.

    Args:
        num_classes: The number of logits.
        image_size: The side of an image in pixels, 32 or more.
        in_channels: I, 1 for grey and 3 for colour.
        layer_scale: Where the factors on the branches begin. With the published 1e-6 a block begins as the
            identity; take 1e-2 for short federated runs from scratch.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published("unireplknet_a", num_classes, image_size, in_channels, layer_scale, drop_path)


def unireplknet_f(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, layer_scale: float = 1e-6, drop_path: float = 0.0
) -> UniRepLKNet:
    """UniRepLKNet-F: 6.49 M parameters at 1000 classes, 6.24 M folded.

    Arguments, errors and notes are those of `unireplknet_a`; the published 6.2 M are those of `fold(model)`.
    """
    return _published("unireplknet_f", num_classes, image_size, in_channels, layer_scale, drop_path)


def unireplknet_p(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, layer_scale: float = 1e-6, drop_path: float = 0.1
) -> UniRepLKNet:
    """UniRepLKNet-P: 11.1 M parameters at 1000 classes, 10.7 M folded.

    Arguments, errors and notes are those of `unireplknet_a`; the published 10.7 M are those of `fold(model)`.
    """
    return _published("unireplknet_p", num_classes, image_size, in_channels, layer_scale, drop_path)


def unireplknet_n(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, layer_scale: float = 1e-6, drop_path: float = 0.1
) -> UniRepLKNet:
    """UniRepLKNet-N: 18.8 M parameters at 1000 classes, 18.3 M folded.

    Arguments, errors and notes are those of `unireplknet_a`; the published 18.3 M are those of `fold(model)`.
    """
    return _published("unireplknet_n", num_classes, image_size, in_channels, layer_scale, drop_path)


def unireplknet_t(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, layer_scale: float = 1e-6, drop_path: float = 0.2
) -> UniRepLKNet:
    """UniRepLKNet-T: 31.7 M parameters at 1000 classes, 31.0 M folded.

    Arguments, errors and notes are those of `unireplknet_a`; the published 31 M are those of `fold(model)`.
    """
    return _published("unireplknet_t", num_classes, image_size, in_channels, layer_scale, drop_path)


def unireplknet_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (24, 48, 96, 128),
    depths: Sequence[int] = (1, 1, 2, 1),
    kernel: int = 7,
    mlp_ratio: int = 4,
    layer_scale: float = 0.1,
    drop_path: float = 0.0,
) -> UniRepLKNet:
    """A small UniRepLKNet: 0.51 M parameters at 10 classes.

    For images of 28 and 32 px; not in the paper. The stages' maps are 16, 8, 4 and 2 px wide at 32 px. Kernels are 3 in
    the first and last stage and in every second block, and `kernel` in the others. A batch of one trains at every size.
    Folded, it has fewer parameters: see `fold`.

    Args:
        num_classes: The number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the four stages, 4 or more each.
        depths: Blocks of the four stages.
        kernel: Side of the large kernels: 7, 9, 11, 13, 15 or 17.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        layer_scale: Where the factors on the branches begin.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("unireplknet_tiny32", image_size, 1, least=4)
    dims = check_counts("model.sizes.dims", dims, 4)
    if min(dims) < 4:
        raise Refusal(
            f"model.sizes.dims: the excitation of a block needs 4 channels or more, found {list(dims)}.",
            key="model.sizes.dims",
        )
    depths = check_counts("model.sizes.depths", depths, 4)
    if kernel not in DILATED:
        raise Refusal(
            f"model.sizes.kernel should be one of {sorted(DILATED)}, found {kernel!r}.", key="model.sizes.kernel"
        )
    return UniRepLKNet(
        num_classes,
        image_size,
        in_channels,
        dims=dims,
        kernels=[
            [kernel if stage in (1, 2) and block % 2 == 0 else 3 for block in range(depth)]
            for stage, depth in enumerate(depths)
        ],
        strides=halving_strides(image_size, 4),
        deep_stem=False,
        mlp_ratio=check_count("model.sizes.mlp_ratio", mlp_ratio),
        layer_scale=check_positive("model.sizes.layer_scale", layer_scale),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
