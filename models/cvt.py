"""CvT: a transformer whose queries, keys and values are made by convolutions.

Source: Wu et al. 2021, "CvT: Introducing Convolutions to Vision Transformers" (arXiv 2103.15808): table 2
for the sizes, section 3.1 for the embedding, section 3.2 and equation 2 for the projection. Written from
the paper.

Shapes: B batch, I input channels, H and W sides of a map, C channels of a stage, N = H W tokens (one more
with the class token), M tokens of keys and values, A heads, D features (C of the last stage), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.refusal import Refusal
from umbel.models.base import Block, Model, check_count, check_counts, check_divides, check_fraction
from umbel.models.layers import drop_path, join_heads, quick_gelu, split_heads, to_map, to_tokens


@dataclass(frozen=True)
class StageSizes:
    """The numbers of one stage.

    Attributes:
        dim: C, channels.
        depth: Number of blocks.
        heads: A, attention heads; divides `dim`.
        kernel: Side of the embedding's convolution.
        stride: Its stride.
        padding: Its padding.
    """

    dim: int
    depth: int
    heads: int
    kernel: int
    stride: int
    padding: int

    def side_after(self, side: int) -> int:
        """Return the side of this stage's map when the map before it has `side`."""
        return (side + 2 * self.padding - self.kernel) // self.stride + 1


class ConvProjection(nn.Module):
    """Depthwise 3 x 3 convolution and batch norm over the map: the convolutional half of a projection."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size=3, stride=stride, padding=1, groups=dim, bias=False)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, image_map: Tensor) -> Tensor:
        """Return tokens [B, ceil(H / stride) ceil(W / stride), C] of a map [B, C, H, W]."""
        return to_tokens(self.norm(self.conv(image_map)))


class Attention(nn.Module):
    """Multi-head attention with convolutional projections (section 3.2; keys and values at stride 2)."""

    def __init__(self, dim: int, heads: int, with_cls: bool) -> None:
        super().__init__()
        self.heads = heads
        self.with_cls = with_cls
        # The full width, not that of a head: so the published weights were trained.
        self.scale = dim**-0.5
        self.conv_q = ConvProjection(dim, stride=1)
        self.conv_k = ConvProjection(dim, stride=2)
        self.conv_v = ConvProjection(dim, stride=2)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Return attended tokens [B, N, C] of tokens [B, N, C]; the class token, if any, is the first."""
        cls, image_map = tokens[:, :1], to_map(tokens[:, 1:] if self.with_cls else tokens, height, width)
        projected = [self.conv_q(image_map), self.conv_k(image_map), self.conv_v(image_map)]
        if self.with_cls:
            projected = [torch.cat((cls, part), dim=1) for part in projected]
        # [B, N or M, C] -> [B, A, N or M, C / A]
        q, k, v = (
            split_heads(linear(part), self.heads)[0]
            for linear, part in zip((self.q, self.k, self.v), projected, strict=True)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        attended: Tensor = self.out(join_heads(mixed))
        return attended


class CvTBlock(Block):
    """Pre-norm block: x += Attention(LN x); x += MLP(LN x)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, with_cls: bool, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, with_cls)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, mlp_ratio * dim)
        self.fc2 = nn.Linear(mlp_ratio * dim, dim)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Return tokens [B, N, C] of tokens [B, N, C] that lie on a map of `height` x `width`."""
        branch = self.attention(self.norm1(tokens), height, width)
        tokens = tokens + drop_path(branch, self.drop_rate, self.training)
        branch = self.fc2(quick_gelu(self.fc1(self.norm2(tokens))))
        return tokens + drop_path(branch, self.drop_rate, self.training)


class Stage(nn.Module):
    """Convolutional token embedding (section 3.1) with layer norm, an optional class token, and blocks."""

    def __init__(self, in_channels: int, sizes: StageSizes, mlp_ratio: int, with_cls: bool, drop_rate: float) -> None:
        super().__init__()
        self.embed = nn.Conv2d(in_channels, sizes.dim, sizes.kernel, sizes.stride, sizes.padding)
        self.norm = nn.LayerNorm(sizes.dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, sizes.dim)) if with_cls else None
        # The rate rises from 0 at the first block to `drop_rate` at the last; an only block is the last.
        rates = [*(drop_rate * i / (sizes.depth - 1) for i in range(sizes.depth - 1)), drop_rate]
        self.blocks = nn.ModuleList(CvTBlock(sizes.dim, sizes.heads, mlp_ratio, with_cls, rate) for rate in rates)

    def forward(self, image_map: Tensor) -> tuple[Tensor, int, int]:
        """Return tokens [B, N, C], H and W of this stage, of a map [B, C', H', W'] of the stage before."""
        embedded = self.embed(image_map)
        height, width = embedded.shape[2:]
        tokens = self.norm(to_tokens(embedded))
        if self.cls is not None:
            tokens = torch.cat((self.cls.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        for block in self.blocks:
            tokens = block(tokens, height, width)
        return tokens, height, width


class CvT(Model):
    """Three stages, the last with a class token; the features are the layer-normalised class token.

    Nothing but the batch norm ties the parameters to a size of image: there is no positional encoding. A
    model built for another size has the same names and shapes.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        stages: Sequence[StageSizes],
        mlp_ratio: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = stages[-1].dim
        self.in_channels = in_channels
        self.image_size = image_size
        inputs = (in_channels, *(stage.dim for stage in stages))
        last = len(stages) - 1
        self.stages = nn.ModuleList(
            # Stochastic depth and the class token belong to the last stage alone.
            Stage(inputs[i], stage, mlp_ratio, with_cls=i == last, drop_rate=drop_rate if i == last else 0.0)
            for i, stage in enumerate(stages)
        )
        self.norm = nn.LayerNorm(self.num_features)
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        tokens = x
        for i, stage in enumerate(self.stages):
            tokens, height, width = stage(x)
            if i < len(self.stages) - 1:
                x = to_map(tokens, height, width)
        # An index, where `squeeze` would drop the batch axis too when B is 1.
        features: Tensor = self.norm(tokens[:, 0])
        return features


def _initialise(module: nn.Module) -> None:
    """Give linear layers and class tokens a truncated normal of deviation 0.02, as vision transformers do."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Stage) and module.cls is not None:
        nn.init.trunc_normal_(module.cls, std=0.02)


def _published(num_classes: int, image_size: int, in_channels: int, depths: Sequence[int], drop_rate: float) -> CvT:
    """Build a CvT of table 2, which differ in their depths."""
    stages = tuple(
        StageSizes(dim, depth, heads, kernel, stride, padding)
        for dim, depth, heads, kernel, stride, padding in zip(
            (64, 192, 384), depths, (1, 3, 6), (7, 3, 3), (4, 2, 2), (2, 1, 1), strict=True
        )
    )
    side = image_size
    for stage in stages:
        side = stage.side_after(side)
    if side < 2:
        raise Refusal(
            f"model.image_size: the published CvT needs images of 19 px or more, found {image_size}.",
            key="model.image_size",
            remedy="Use 224, or the model cvt_tiny32 for small images.",
        )
    check_fraction("model.sizes.drop_path", drop_rate)
    model = CvT(num_classes, image_size, in_channels, stages, mlp_ratio=4, drop_rate=drop_rate)
    model.apply(_initialise)
    return model


def cvt_13(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.1) -> CvT:
    """CvT-13: 13 blocks, 20.0 M parameters at 1000 classes.

    Below 35 px the last stage has a single key and value beside the class token: its batch norm then sees one
    value a channel and image, and cannot train on a batch of one.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 19 or more.
        in_channels: I, 1 for grey and 3 for colour.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 within the last stage.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published(num_classes, image_size, in_channels, (1, 2, 10), drop_path)


def cvt_21(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.1) -> CvT:
    """CvT-21: 21 blocks, 31.6 M parameters at 1000 classes.

    Arguments, errors and the note on images below 35 px are those of `cvt_13`.
    """
    return _published(num_classes, image_size, in_channels, (1, 4, 16), drop_path)


def _tiny_strides(image_size: int) -> tuple[int, int, int]:
    """Return strides that leave the last stage 4 x 4 tokens, and a small image its pixels in the first.

    Keys and values are strided once more, so that they keep 2 x 2: with fewer there is nothing to attend
    to, and batch norm has one value a channel, which it refuses in a batch of one.
    """
    halvings, side = 0, image_size
    while halvings < 3 and (side + 1) // 2 >= 4:
        halvings, side = halvings + 1, (side + 1) // 2
    return ((1, 1, 1), (1, 2, 1), (1, 2, 2), (2, 2, 2))[halvings]


def cvt_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (24, 48, 96),
    depths: Sequence[int] = (1, 1, 1),
    heads: Sequence[int] = (1, 2, 4),
    mlp_ratio: int = 2,
    strides: Sequence[int] | None = None,
    drop_path: float = 0.0,
) -> CvT:
    """A small CvT: 0.16 M parameters at 10 classes.

    For images of 8 to 32 px; not in the paper. Every embedding is a 3 x 3 convolution, so that the parameters have the
    same shapes at every size of image. With the default strides a batch of one trains at every size. Weights start as
    torch starts them: from the deviation of 0.02 that suits the published sizes, this one learns markedly slower in its
    first epochs.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the three stages.
        depths: Blocks of the three stages.
        heads: Attention heads of the three stages; each divides its channels.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        strides: Strides of the three embeddings; None leaves 4 x 4 tokens or more (sides of the maps at
            28 px: 14, 7, 4; at 8 px: 8, 4, 4).
        drop_path: Stochastic depth of the last block; it rises linearly from 0 within the last stage.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    if image_size < 4:
        raise Refusal(
            f"model.image_size: cvt_tiny32 needs images of 4 px or more, found {image_size}.",
            key="model.image_size",
            remedy="Use 28 or 32.",
        )
    dims = check_counts("model.sizes.dims", dims, 3)
    depths = check_counts("model.sizes.depths", depths, 3)
    heads = check_counts("model.sizes.heads", heads, 3)
    strides = _tiny_strides(image_size) if strides is None else check_counts("model.sizes.strides", strides, 3)
    check_count("model.sizes.mlp_ratio", mlp_ratio)
    check_fraction("model.sizes.drop_path", drop_path)
    for dim, head in zip(dims, heads, strict=True):
        check_divides("model.sizes.heads", head, [dim])
    stages = tuple(
        StageSizes(dim, depth, head, kernel=3, stride=stride, padding=1)
        for dim, depth, head, stride in zip(dims, depths, heads, strides, strict=True)
    )
    return CvT(num_classes, image_size, in_channels, stages, mlp_ratio, drop_path)
