"""MaxViT: in each block a convolution, attention within windows, and attention over a grid that spans the map.

Source: Tu et al. 2022, "MaxViT: Multi-Axis Vision Transformer" (arXiv 2204.01697): section 3.2 and equation 1 for
the attention, section 3.3 and table 1 for the network, the appendix for MBConv (equations 5 and 6) and the head.
Written from the equations. Deviation: convolutions at stride 2 are padded evenly, where the published networks pad
the right and lower edges alone.

Shapes: B batch, I input channels, H and W sides of a map, C channels of a stage, P side of a window and of a grid,
N = P^2 the tokens of one, A heads, D features (C of the last stage), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.base import Block, Model, check_count, check_counts, check_divides, check_fraction, check_image_size
from umbel.models.layers import (
    SqueezeExcite,
    drop_path,
    drop_rates,
    from_windows,
    initialise_linear,
    join_heads,
    pad_evenly,
    relative_index,
    split_heads,
    to_windows,
)

# Of the published networks, which were trained in TensorFlow.
NORM_EPS = 1e-3


@dataclass(frozen=True)
class StageSizes:
    """The numbers of one stage.

    Attributes:
        dim: C, channels.
        depth: Number of blocks.
    """

    dim: int
    depth: int


def gelu(x: Tensor) -> Tensor:
    """Return GELU by its approximation with tanh, as in the published networks."""
    return F.gelu(x, approximate="tanh")


def to_grid(image_map: Tensor, side: int) -> Tensor:
    """Cut a map [B, H, W, C] into grids of far places, [B (H / P) (W / P), P, P, C]; P divides H and W.

    A grid has one place in each of P x P cells of the map, each time the same place of the cell.
    """
    batch, height, width, channels = image_map.shape
    # [B, P, H / P, P, W / P, C] -> [B, H / P, W / P, P, P, C]
    cut = image_map.view(batch, side, height // side, side, width // side, channels)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, side, side, channels)


def from_grid(grids: Tensor, height: int, width: int) -> Tensor:
    """Invert `to_grid`: return the map [B, H, W, C]."""
    side, channels = grids.shape[1], grids.shape[3]
    cut = grids.view(-1, height // side, width // side, side, side, channels)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(-1, height, width, channels)


class MBConv(nn.Module):
    """Shortcut(x) + PW(SE(DW3(PW(BN x)))), with batch norm and GELU behind the first two convolutions.

    A stride is that of the depthwise convolution, and the shortcut pools. Where channels change, the shortcut ends in
    a 1 x 1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, drop_rate: float) -> None:
        super().__init__()
        self.stride = stride
        self.drop_rate = drop_rate
        hidden = expansion * outputs
        self.shortcut: nn.Module = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.norm = nn.BatchNorm2d(inputs, eps=NORM_EPS)
        self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden, eps=NORM_EPS)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden, eps=NORM_EPS)
        self.excite = SqueezeExcite(hidden, max(1, outputs // 4), activation=F.silu)
        self.project = nn.Conv2d(hidden, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C', H / stride, W / stride] of a map [B, C, H, W]."""
        branch = gelu(self.norm1(self.expand(self.norm(x))))
        branch = self.project(self.excite(gelu(self.norm2(self.depthwise(branch)))))
        shortcut: Tensor = self.shortcut(x if self.stride == 1 else F.avg_pool2d(x, self.stride))
        return shortcut + drop_path(branch, self.drop_rate, self.training)


class RelativeAttention(nn.Module):
    """Softmax(Q K^T / sqrt(C / A) + bias) V within groups of P x P tokens (equation 1), its bias relative."""

    index: Tensor

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.empty((2 * side - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        self.register_buffer("index", relative_index(side), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return attended groups [G, N, C] of G groups [G, N, C]."""
        q, k, v = split_heads(self.qkv(tokens), self.heads, 3)
        bias = self.bias[self.index].permute(2, 0, 1).to(q.dtype)
        attended: Tensor = self.out(join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)))
        return attended


class AxisAttention(nn.Module):
    """x += Attention(LN x) within windows or grids; x += MLP(LN x)."""

    def __init__(self, dim: int, heads: int, side: int, grid: bool, mlp_ratio: int, drop_rate: float) -> None:
        super().__init__()
        self.side = side
        self.grid = grid
        self.drop_rate = drop_rate
        self.norm1 = nn.LayerNorm(dim)
        self.attention = RelativeAttention(dim, heads, side)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, mlp_ratio * dim)
        self.fc2 = nn.Linear(mlp_ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, H, W, C] of a map [B, H, W, C]."""
        height, width = x.shape[1:3]
        groups = (to_grid if self.grid else to_windows)(self.norm1(x), self.side)
        attended = self.attention(groups.flatten(1, 2)).view(groups.shape)
        branch = (from_grid if self.grid else from_windows)(attended, height, width)
        x = x + drop_path(branch, self.drop_rate, self.training)
        branch = self.fc2(gelu(self.fc1(self.norm2(x))))
        return x + drop_path(branch, self.drop_rate, self.training)


class MaxViTBlock(Block):
    """MBConv, attention within windows, attention over grids."""

    def __init__(
        self, inputs: int, dim: int, stride: int, *, side: int, head_dim: int, expansion: int, mlp_ratio: int,
        drop_rate: float,
    ) -> None:  # fmt: skip
        super().__init__()
        heads = dim // head_dim
        self.conv = MBConv(inputs, dim, stride, expansion, drop_rate)
        self.window = AxisAttention(dim, heads, side, grid=False, mlp_ratio=mlp_ratio, drop_rate=drop_rate)
        self.grid = AxisAttention(dim, heads, side, grid=True, mlp_ratio=mlp_ratio, drop_rate=drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C', H / stride, W / stride] of a map [B, C, H, W]."""
        mixed: Tensor = self.grid(self.window(self.conv(x).permute(0, 2, 3, 1)))
        return mixed.permute(0, 3, 1, 2)


class MaxViT(Model):
    """A stem that halves the sides, stages that halve them again, and tanh(Linear(LN(mean))) as features.

    The tables of relative biases have the size of a window, which follows the image: models for different sizes of
    image need not share shapes.

    Args:
        num_classes: K.
        image_size: H = W of an image; the edges are padded with zeros up to `padded_size`.
        in_channels: I.
        stem: Channels of the stem.
        stages: Their numbers.
        side: P, of windows and of grids.
        head_dim: Channels of a head; divides those of all stages.
        expansion: Hidden width of an MBConv as a multiple of its outputs.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        drop_rate: Stochastic depth of the last block.
        padded_size: None for `image_size`.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        *,
        stem: int,
        stages: Sequence[StageSizes],
        side: int,
        head_dim: int,
        expansion: int,
        mlp_ratio: int,
        drop_rate: float,
        padded_size: int | None = None,
    ) -> None:
        super().__init__()
        self.num_features = stages[-1].dim
        self.in_channels = in_channels
        self.image_size = image_size
        self.padding = (padded_size or image_size) - image_size
        self.embed1 = nn.Conv2d(in_channels, stem, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(stem, eps=NORM_EPS)
        self.embed2 = nn.Conv2d(stem, stem, 3, padding=1)
        self.stages = nn.ModuleList()
        inputs = stem
        for stage, rates in zip(stages, drop_rates([stage.depth for stage in stages], drop_rate), strict=True):
            blocks = nn.Sequential()
            for i, rate in enumerate(rates):
                blocks.append(
                    MaxViTBlock(
                        inputs, stage.dim, 2 if i == 0 else 1,
                        side=side, head_dim=head_dim, expansion=expansion, mlp_ratio=mlp_ratio, drop_rate=rate,
                    )
                )  # fmt: skip
                inputs = stage.dim
            self.stages.append(blocks)
        self.norm = nn.LayerNorm(self.num_features)
        self.hidden = nn.Linear(self.num_features, self.num_features)
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        x = self.embed2(gelu(self.norm1(self.embed1(pad_evenly(x, self.padding)))))
        for stage in self.stages:
            x = stage(x)
        return torch.tanh(self.hidden(self.norm(x.mean(dim=(2, 3)))))


def _published(
    name: str, num_classes: int, image_size: int, in_channels: int, drop_rate: float, dims: Sequence[int]
) -> MaxViT:
    """Build a published MaxViT with depths 2, 2, 5, 2."""
    # At 32 px the windows would be single tokens, with nothing to attend to.
    check_image_size(name, image_size, 32, 64)
    check_fraction("model.sizes.drop_path", drop_rate)
    model = MaxViT(
        num_classes,
        image_size,
        in_channels,
        stem=64,
        stages=[StageSizes(dim, depth) for dim, depth in zip(dims, (2, 2, 5, 2), strict=True)],
        side=image_size // 32,
        head_dim=32,
        expansion=4,
        mlp_ratio=4,
        drop_rate=drop_rate,
    )
    initialise_linear(model)
    return model


def maxvit_tiny(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.2) -> MaxViT:
    """MaxViT-T: channels 64 to 512; 30.9 M parameters at 1000 classes.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 32 from 64 on. Windows and grids follow it.
        in_channels: I, 1 for grey and 3 for colour.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published("maxvit_tiny", num_classes, image_size, in_channels, drop_path, (64, 128, 256, 512))


def maxvit_small(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.3) -> MaxViT:
    """MaxViT-S: channels 96 to 768; 68.9 M parameters at 1000 classes.

    Arguments and errors are those of `maxvit_tiny`.
    """
    return _published("maxvit_small", num_classes, image_size, in_channels, drop_path, (96, 192, 384, 768))


def maxvit_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    stem: int = 16,
    dims: Sequence[int] = (32, 64),
    depths: Sequence[int] = (1, 1),
    head_dim: int = 16,
    expansion: int = 2,
    mlp_ratio: int = 4,
    drop_path: float = 0.0,
) -> MaxViT:
    """A small MaxViT: 0.16 M parameters at 10 classes.

    For images of 8 to 32 px; not in the paper. Windows and grids have the size of the last map: with two stages 4 x 4
    at 25 to 32 px. The image is padded with zeros until they fit, so that 28 and 32 px have the same shapes of
    parameters. It learns best from small steps: an Adam rate of 5e-4 to 1e-3.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 8 or more.
        in_channels: I, 1 for grey and 3 for colour.
        stem: Channels of the stem.
        dims: Channels of the stages; each halves the sides of the one before, from half of the image's on.
        depths: Blocks of the stages.
        head_dim: Channels of an attention head; divides those of all stages.
        expansion: Hidden width of an MBConv as a multiple of its outputs.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("maxvit_tiny32", image_size, 1, 8)
    dims = check_counts("model.sizes.dims", dims)
    num_stages = len(dims)
    depths = check_counts("model.sizes.depths", depths, num_stages)
    # The side of the last map is that of windows and grids; 1 would leave a token alone.
    fraction = 2 ** (num_stages + 1)
    side = max(2, -(-image_size // fraction))
    return MaxViT(
        num_classes,
        image_size,
        in_channels,
        stem=check_count("model.sizes.stem", stem),
        stages=[StageSizes(dim, depth) for dim, depth in zip(dims, depths, strict=True)],
        side=side,
        head_dim=check_divides("model.sizes.head_dim", head_dim, dims),
        expansion=check_count("model.sizes.expansion", expansion),
        mlp_ratio=check_count("model.sizes.mlp_ratio", mlp_ratio),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
        padded_size=side * fraction,
    )
