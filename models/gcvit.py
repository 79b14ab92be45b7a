"""GC ViT: attention within windows, in turn with queries of the window and with queries of the whole map.

Source: Hatamizadeh et al. 2023, "Global Context Vision Transformers" (arXiv 2206.09959): section 3.1 and equation 1
for the fused convolution, section 3.2 and equation 2 for the global queries, section 3.3 and equation 3 for the
attention, the appendix's tables for the sizes. Written from the equations.

Shapes: B batch, I input channels, H and W sides of a map, C channels of a stage, P side of a window, N = P^2 its
tokens, M windows of a map, A heads, D features (C of the last stage), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.refusal import Refusal
from umbel.models.base import Block, Model, check_count, check_counts, check_divides, check_fraction, check_image_size
from umbel.models.layers import (
    LayerNorm2d,
    LayerScale,
    Mlp,
    SqueezeExcite,
    depthwise,
    drop_path,
    drop_rates,
    from_windows,
    initialise_linear,
    join_heads,
    max_pool,
    pad_evenly,
    relative_index,
    split_heads,
    to_windows,
)


@dataclass(frozen=True)
class StageSizes:
    """The numbers of one stage.

    Attributes:
        dim: C, channels.
        depth: Number of blocks; the even ones attend within the window, the odd ones to it from the whole map.
        heads: A, attention heads; divides `dim`.
        window: P, side of a window; divides the side of the map.
        pools: Halvings that take the side of the map to the side of a window.
    """

    dim: int
    depth: int
    heads: int
    window: int
    pools: int


class FusedMBConv(nn.Module):
    """x + PW(SE(GELU(DW3 x))), equation 1; no biases."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = depthwise(dim, bias=False)
        self.excite = SqueezeExcite(dim, dim // 4, bias=False, activation=F.gelu)
        self.pointwise = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        branch: Tensor = self.pointwise(self.excite(F.gelu(self.depthwise(x))))
        return x + branch


class Reduce(nn.Module):
    """Halve the sides of a map: layer norm, a fused convolution, a 3 x 3 convolution at stride 2, layer norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(inputs)
        self.fused = FusedMBConv(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm2 = LayerNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C', H / 2, W / 2] of a map [B, C, H, W]."""
        reduced: Tensor = self.norm2(self.conv(self.fused(self.norm1(x))))
        return reduced


class GlobalQuery(nn.Module):
    """Shrink the map of a stage to the size of one window (equation 2): the queries of all its windows.

    Args:
        dim: C.
        heads: A.
        pools: Number of fused convolutions that are each followed by a pooling; with 0 there is one, without.
    """

    def __init__(self, dim: int, heads: int, pools: int) -> None:
        super().__init__()
        self.heads = heads
        self.pools = pools
        self.extract = nn.ModuleList(FusedMBConv(dim) for _ in range(max(1, pools)))

    def forward(self, x: Tensor) -> Tensor:
        """Return queries [B, A, N, C / A] of a map [B, C, H, W] with 2^pools P as its sides."""
        for fused in self.extract:
            x = fused(x)
            if self.pools:
                x = max_pool(x)
        return x.reshape(x.shape[0], self.heads, x.shape[1] // self.heads, x.shape[2] * x.shape[3]).transpose(2, 3)


class WindowAttention(nn.Module):
    """Softmax(Q K^T / sqrt(C / A) + bias) V within each window (equation 3), its bias relative.

    Args:
        dim: C.
        heads: A.
        window: P.
        with_global: The queries come from outside, the same for all windows of an image.
    """

    index: Tensor

    def __init__(self, dim: int, heads: int, window: int, with_global: bool) -> None:
        super().__init__()
        self.heads = heads
        self.with_global = with_global
        self.project = nn.Linear(dim, (2 if with_global else 3) * dim)
        self.out = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        self.register_buffer("index", relative_index(window), persistent=False)

    def forward(self, windows: Tensor, queries: Tensor) -> Tensor:
        """Return attended windows [B M, N, C] of windows [B M, N, C] and global queries [B, A, N, C / A]."""
        *own, k, v = split_heads(self.project(windows), self.heads, 2 if self.with_global else 3)
        if self.with_global:
            per_image = windows.shape[0] // queries.shape[0] if queries.shape[0] else 1
            q = queries.to(k.dtype).unsqueeze(1).expand(-1, per_image, -1, -1, -1).flatten(0, 1)
        else:
            (q,) = own
        bias = self.bias[self.index].permute(2, 0, 1).to(k.dtype)
        attended: Tensor = self.out(join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)))
        return attended


class GCViTBlock(Block):
    """x += Attention(LN x) within windows; x += MLP(LN x); each branch scaled where there is a layer-scale."""

    def __init__(
        self, sizes: StageSizes, mlp_ratio: int, with_global: bool, scale: float | None, drop_rate: float
    ) -> None:
        super().__init__()
        dim = sizes.dim
        self.window = sizes.window
        self.drop_rate = drop_rate
        self.norm1 = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, sizes.heads, sizes.window, with_global)
        self.scale1: nn.Module = nn.Identity() if scale is None else LayerScale(dim, scale)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio * dim)
        self.scale2: nn.Module = nn.Identity() if scale is None else LayerScale(dim, scale)

    def forward(self, x: Tensor, queries: Tensor) -> Tensor:
        """Return a map [B, H, W, C] of a map [B, H, W, C] and global queries [B, A, N, C / A]."""
        height, width = x.shape[1:3]
        windows = to_windows(self.norm1(x), self.window)
        attended = self.attention(windows.flatten(1, 2), queries)
        branch = from_windows(attended.view(windows.shape), height, width)
        x = x + drop_path(self.scale1(branch), self.drop_rate, self.training)
        return x + drop_path(self.scale2(self.mlp(self.norm2(x))), self.drop_rate, self.training)


class Stage(nn.Module):
    """A reduction (none in the first stage), the global queries of its map, and blocks."""

    def __init__(
        self, inputs: int | None, sizes: StageSizes, mlp_ratio: int, scale: float | None, rates: Sequence[float]
    ) -> None:
        super().__init__()
        self.reduce: nn.Module = nn.Identity() if inputs is None else Reduce(inputs, sizes.dim)
        self.query = GlobalQuery(sizes.dim, sizes.heads, sizes.pools)
        self.blocks = nn.ModuleList(
            GCViTBlock(sizes, mlp_ratio, with_global=i % 2 == 1, scale=scale, drop_rate=rate)
            for i, rate in enumerate(rates)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of the map [B, C', H', W'] of the stage before."""
        x = self.reduce(x)
        # Once a stage, from its input: all global blocks share the queries.
        queries = self.query(x)
        x = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x, queries)
        return x.permute(0, 3, 1, 2)


class GCViT(Model):
    """A stem that quarters the sides, stages, and the mean of the layer-normalised map as features.

    The tables of relative biases have the size of a window, which follows the image: models for different sizes of
    image need not share shapes. No batch norm: a batch of one trains.

    Args:
        num_classes: K.
        image_size: H = W of an image; the edges are padded with zeros, evenly, up to `padded_size`.
        in_channels: I.
        stages: Their numbers.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        scale: Where layer-scale begins; None has none.
        drop_rate: Stochastic depth of the last block.
        padded_size: None for `image_size`.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        stages: Sequence[StageSizes],
        *,
        mlp_ratio: int,
        scale: float | None,
        drop_rate: float,
        padded_size: int | None = None,
    ) -> None:
        super().__init__()
        self.num_features = stages[-1].dim
        self.in_channels = in_channels
        self.image_size = image_size
        self.padding = (padded_size or image_size) - image_size
        self.embed = nn.Conv2d(in_channels, stages[0].dim, 3, stride=2, padding=1)
        self.reduce = Reduce(stages[0].dim, stages[0].dim)
        inputs = (None, *(stage.dim for stage in stages))
        rates = drop_rates([stage.depth for stage in stages], drop_rate)
        self.stages = nn.ModuleList(
            Stage(inputs[i], stage, mlp_ratio, scale, stage_rates)
            for i, (stage, stage_rates) in enumerate(zip(stages, rates, strict=True))
        )
        self.norm = LayerNorm2d(self.num_features)
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        x = self.reduce(self.embed(pad_evenly(x, self.padding)))
        for stage in self.stages:
            x = stage(x)
        features: Tensor = self.norm(x).mean(dim=(2, 3))
        return features


# name -> channels of the first stage, depths, heads, mlp_ratio, where layer-scale begins
PUBLISHED: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], int, float | None]] = {
    "gcvit_xxtiny": (64, (2, 2, 6, 2), (2, 4, 8, 16), 3, None),
    "gcvit_xtiny": (64, (3, 4, 6, 5), (2, 4, 8, 16), 3, None),
    "gcvit_tiny": (64, (3, 4, 19, 5), (2, 4, 8, 16), 3, None),
    "gcvit_small": (96, (3, 4, 19, 5), (3, 6, 12, 24), 2, 1e-5),
}


def _published(name: str, num_classes: int, image_size: int, in_channels: int, drop_rate: float) -> GCViT:
    """Build a published GC ViT, whose windows are 1/32 of the image's side, and 1/16 in the third stage."""
    dim, depths, heads, mlp_ratio, scale = PUBLISHED[name]
    # At 32 px the windows would be single tokens, with nothing to attend to.
    check_image_size(name, image_size, 32, 64)
    check_fraction("model.sizes.drop_path", drop_rate)
    stages = [
        StageSizes(dim * 2**i, depth, head, image_size // fraction, pools)
        for i, (depth, head, fraction, pools) in enumerate(
            zip(depths, heads, (32, 32, 16, 32), (3, 2, 0, 0), strict=True)
        )
    ]
    model = GCViT(num_classes, image_size, in_channels, stages, mlp_ratio=mlp_ratio, scale=scale, drop_rate=drop_rate)
    initialise_linear(model)
    return model


def gcvit_xxtiny(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.2) -> GCViT:
    """GC ViT-XXT: depths 2, 2, 6, 2; 12.0 M parameters at 1000 classes.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 32 from 64 on. The windows follow it.
        in_channels: I, 1 for grey and 3 for colour.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published("gcvit_xxtiny", num_classes, image_size, in_channels, drop_path)


def gcvit_xtiny(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.2) -> GCViT:
    """GC ViT-XT: depths 3, 4, 6, 5; 20.0 M parameters at 1000 classes.

    Arguments and errors are those of `gcvit_xxtiny`.
    """
    return _published("gcvit_xtiny", num_classes, image_size, in_channels, drop_path)


def gcvit_tiny(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.2) -> GCViT:
    """GC ViT-T: depths 3, 4, 19, 5; 28.2 M parameters at 1000 classes.

    Arguments and errors are those of `gcvit_xxtiny`.
    """
    return _published("gcvit_tiny", num_classes, image_size, in_channels, drop_path)


def gcvit_small(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.3) -> GCViT:
    """GC ViT-S: depths 3, 4, 19, 5; 51.1 M parameters at 1000 classes.

    Its first stage has 96 channels, and its layer-scale begins at 1e-5.

    Arguments and errors are those of `gcvit_xxtiny`.
    """
    return _published("gcvit_small", num_classes, image_size, in_channels, drop_path)


def gcvit_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (48, 96),
    depths: Sequence[int] = (2, 2),
    heads: Sequence[int] = (2, 4),
    mlp_ratio: int = 2,
    drop_path: float = 0.0,
) -> GCViT:
    """A small GC ViT: 0.27 M parameters at 10 classes.

    For images of 8 to 32 px; not in the paper. All stages have windows of the size of the last map: with two stages 4 x
    4 at 25 to 32 px. The image is padded with zeros until they fit, so that 28 and 32 px have the same shapes of
    parameters.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 8 or more.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the stages; each halves the sides of the one before, from a quarter of the image's on.
        depths: Blocks of the stages, two or more: every second one attends from the whole map.
        heads: Attention heads of the stages; each divides its channels.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("gcvit_tiny32", image_size, 1, 8)
    dims = check_counts("model.sizes.dims", dims)
    num_stages = len(dims)
    depths = check_counts("model.sizes.depths", depths, num_stages)
    heads = check_counts("model.sizes.heads", heads, num_stages)
    check_count("model.sizes.mlp_ratio", mlp_ratio)
    check_fraction("model.sizes.drop_path", drop_path)
    for dim, depth, head in zip(dims, depths, heads, strict=True):
        if depth < 2:
            raise Refusal(
                f"model.sizes.depths: a stage needs 2 blocks or more, one of each kind, found {depth}.",
                key="model.sizes.depths",
            )
        if dim < 4:
            raise Refusal(
                f"model.sizes.dims: the excitation of a stage needs 4 channels or more, found {dim}.",
                key="model.sizes.dims",
            )
        check_divides("model.sizes.heads", head, [dim])
    # The side of the last map is that of the windows; 1 would leave a token alone.
    fraction = 2 ** (num_stages + 1)
    window = max(2, -(-image_size // fraction))
    stages = [
        StageSizes(dim, depth, head, window, pools=num_stages - 1 - i)
        for i, (dim, depth, head) in enumerate(zip(dims, depths, heads, strict=True))
    ]
    return GCViT(
        num_classes, image_size, in_channels, stages,
        mlp_ratio=mlp_ratio, scale=None, drop_rate=drop_path, padded_size=window * fraction,
    )  # fmt: skip
