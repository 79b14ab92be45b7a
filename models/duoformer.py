"""DuoFormer: a residual network whose maps at several scales make tokens, attended within each patch and among patches.

Source: Tang et al. 2024, "DuoFormer: Leveraging Hierarchical Visual Representations by Local and Global Attention"
(arXiv 2407.13920). A re-implementation from the description; no published count of parameters is known to us. What
was not clear, and is decided:

* A patch has the tokens of its square of each map, row-major, the coarsest map first, behind its scale token.
* The scale token is made from the maps' means over the patch, side by side, by a linear layer. The description makes it
  by downsampling and projecting them, and not clearly how; by 3 x 3 convolutions, as a public implementation has it,
  that would be more than 40 M parameters beside ResNet-50. With `learned_scale` it is one vector for all patches.
* Attention among patches is pre-norm with a shortcut and without an MLP. That implementation has neither norm nor
  shortcut, and from the usual start of the weights passes on less than a third at each layer.
* Two scales of four are the default: with all four, an image of 224 px has 49 x 86 tokens.
* The positions of patches are a learned grid, for other sizes of image averaged (`pooling_matrix`), so that parameters
  have the same shapes at every size. The trunk is trained with the rest, from fresh weights.

Shapes: B batch, I input channels, H and W sides of a map, C channels, P side of the grid of patches, N = P P patches, S
tokens of a patch besides the scale token, D channels of tokens and features, A heads, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.refusal import Refusal
from umbel.models.base import (
    Block,
    Model,
    check_count,
    check_counts,
    check_divides,
    check_flag,
    check_fraction,
    check_image_size,
)
from umbel.models.fit import GroupBlock, to_groups
from umbel.models.layers import (
    SelfAttention,
    drop_path,
    drop_rates,
    initialise_linear,
    pad_evenly,
    pooling_matrix,
    to_tokens,
)
from umbel.models.resnet_trunk import Bottleneck, MakeBlock, Trunk, basic_block


def gather_patches(maps: Sequence[Tensor], patches: int) -> Tensor:
    """Return the tokens of each patch at all scales, [B, N, S, D].

    Args:
        maps: Maps [B, D, H, W], in the order in which a patch has its tokens.
        patches: P, which divides H = W of all maps; a patch has the square of H / P x H / P places, row-major.
    """
    return torch.cat([to_groups(image_map, image_map.shape[2] // patches) for image_map in maps], dim=2)


class LearnedToken(nn.Module):
    """One vector for all patches, whatever is in them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(dim))
        nn.init.trunc_normal_(self.token, std=0.02)

    def forward(self, patches: Tensor) -> Tensor:
        """Return tokens [B, N, D] for patches [B, N, ...]."""
        return self.token.expand(*patches.shape[:2], -1)


class PatchBlock(Block):
    """x += Attention(LN x) among patches."""

    def __init__(self, dim: int, heads: int, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.attention = SelfAttention(dim, heads)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, 1 + N, D] of tokens [B, 1 + N, D]."""
        return tokens + drop_path(self.attention(self.norm(tokens)), self.drop_rate, self.training)


class DuoFormer(Model):
    """A trunk, attention among the scales of each patch, attention among patches, and the class token as feature.

    Args:
        num_classes: K.
        image_size: H = W of an image; the edges are padded with zeros up to `padded_size`.
        in_channels: I.
        trunk: Gives the maps; the last `scales` are used, and the last of all has a place for each patch.
        dims: C of these maps, the finest first.
        grid: Side of the grid of patches that has a learned position each.
        padded_size: Side of the image that goes into the trunk.
        stride: What the trunk divides it by.
        dim: D.
        heads: A.
        depth: Blocks of attention within patches, and as many among patches.
        mlp_ratio: Hidden width of an MLP as a multiple of D.
        learned_scale: The scale token is one vector for all patches, and not made from the maps.
        drop_rate: Stochastic depth of the last block; it rises linearly from 0.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        *,
        trunk: Trunk,
        dims: Sequence[int],
        grid: int,
        padded_size: int,
        stride: int,
        dim: int,
        heads: int,
        depth: int,
        mlp_ratio: int,
        learned_scale: bool,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = dim
        self.in_channels = in_channels
        self.image_size = image_size
        self.padding = padded_size - image_size
        self.patches = padded_size // stride
        self.trunk = trunk
        self.projections = nn.ModuleList(nn.Conv2d(channels, dim, 1) for channels in dims)
        self.scale_token: nn.Module = LearnedToken(dim) if learned_scale else nn.Linear(sum(dims), dim)
        self.scale_position = nn.Parameter(torch.empty(1 + sum(4**scale for scale in range(len(dims))), dim))
        self.cls = nn.Parameter(torch.empty(1, 1, dim))
        self.position = nn.Parameter(torch.empty(dim, grid, grid))
        scale_rates, patch_rates = drop_rates([depth, depth], drop_rate)
        self.scale_blocks = nn.Sequential(*(GroupBlock(dim, heads, mlp_ratio, rate) for rate in scale_rates))
        self.patch_blocks = nn.Sequential(*(PatchBlock(dim, heads, rate) for rate in patch_rates))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.register_buffer("pooling", pooling_matrix(grid, self.patches), persistent=False)
        self.pooling: Tensor
        for parameter in (self.scale_position, self.cls, self.position):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.head = nn.Linear(dim, num_classes)

    def tokens(self, x: Tensor) -> Tensor:
        """Return the tokens of each patch, the scale token first, [B, N, 1 + S, D] of images [B, I, H, W]."""
        maps = self.trunk(pad_evenly(x, self.padding))[-len(self.projections) :]
        projected = [project(each) for project, each in zip(self.projections, maps, strict=True)]
        gathered = gather_patches(projected[::-1], self.patches)
        means = [F.avg_pool2d(each, each.shape[2] // self.patches) for each in maps]
        scale_tokens = self.scale_token(to_tokens(torch.cat(means, dim=1)))[:, :, None]
        return torch.cat((scale_tokens, gathered), dim=2)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        patches = self.scale_blocks(self.tokens(x) + self.scale_position)[:, :, 0]
        position = to_tokens((self.pooling @ self.position @ self.pooling.T)[None])
        tokens = torch.cat((self.cls.expand(x.shape[0], -1, -1), patches + position), dim=1)
        features: Tensor = self.norm(self.patch_blocks(tokens)[:, 0])
        return features


def _check_scales(scales: int, stages: int) -> int:
    """Return `scales` if it is a number of the trunk's stages; raise `Refusal` otherwise."""
    if check_count("model.sizes.scales", scales) > stages:
        raise Refusal(
            f"model.sizes.scales: the trunk has {stages} stages, found {scales}.",
            key="model.sizes.scales",
            remedy=f"Use {stages}.",
        )
    return scales


def _published(
    name: str,
    num_classes: int,
    image_size: int,
    in_channels: int,
    dims: Sequence[int],
    depths: Sequence[int],
    make: MakeBlock,
    scales: int,
    learned_scale: bool,
    drop_rate: float,
) -> DuoFormer:
    """Build a DuoFormer of the paper: 12 blocks of either attention with 12 heads on 768 channels."""
    # At 32 px the trunk's last map is one place, whose batch norm cannot train on one image.
    check_image_size(name, image_size, 32, 64)
    _check_scales(scales, 4)
    model = DuoFormer(
        num_classes,
        image_size,
        in_channels,
        trunk=Trunk(in_channels, 64, dims, depths, make, pooled=True),
        dims=dims[-scales:],
        grid=7,
        padded_size=image_size,
        stride=32,
        dim=768,
        heads=12,
        depth=12,
        mlp_ratio=4,
        learned_scale=check_flag("model.sizes.learned_scale", learned_scale),
        drop_rate=check_fraction("model.sizes.drop_path", drop_rate),
    )
    initialise_linear(model)
    return model


def duoformer_r18(
    num_classes: int,
    image_size: int = 224,
    in_channels: int = 3,
    *,
    scales: int = 2,
    learned_scale: bool = False,
    drop_path: float = 0.0,
) -> DuoFormer:
    """DuoFormer on ResNet-18: 126.6 M parameters at 1000 classes.

    No published count is known to us. The blocks are as wide as ViT-B's, and there are 12 of either attention.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 32 from 64 on.
        in_channels: I, 1 for grey and 3 for colour.
        scales: How many of the trunk's four maps make tokens, from the coarsest on: 1, 5, 21 or 85 tokens a patch.
        learned_scale: The scale token is one vector for all patches, and not made from the maps.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    dims, depths = (64, 128, 256, 512), (2, 2, 2, 2)
    return _published(
        "duoformer_r18",
        num_classes,
        image_size,
        in_channels,
        dims,
        depths,
        basic_block,
        scales,
        learned_scale,
        drop_path,
    )


def duoformer_r50(
    num_classes: int,
    image_size: int = 224,
    in_channels: int = 3,
    *,
    scales: int = 2,
    learned_scale: bool = False,
    drop_path: float = 0.0,
) -> DuoFormer:
    """DuoFormer on ResNet-50: 142.5 M parameters at 1000 classes.

    Arguments, errors and the note on counts are those of `duoformer_r18`.
    """
    dims, depths = (256, 512, 1024, 2048), (3, 4, 6, 3)
    return _published(
        "duoformer_r50",
        num_classes,
        image_size,
        in_channels,
        dims,
        depths,
        Bottleneck,
        scales,
        learned_scale,
        drop_path,
    )


def duoformer_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (16, 32, 64),
    depths: Sequence[int] = (1, 1, 1),
    scales: int = 3,
    dim: int = 64,
    heads: int = 4,
    depth: int = 2,
    mlp_ratio: int = 2,
    learned_scale: bool = False,
    drop_path: float = 0.0,
) -> DuoFormer:
    """A small DuoFormer: 0.20 M parameters at 10 classes.

    For images of 28 and 32 px; not in the paper. A trunk of basic blocks halves an image of 32 px to 16, 8 and 4; the
    4 x 4 patches have 1 + 4 + 16 tokens. With `scales` 2, without the 16, a step takes less than half the time. Images
    are padded with zeros until patches tile them, to four patches or more. Parameters have the same shapes at every
    size of image, and a batch of one trains at every size.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the trunk's stages.
        depths: Blocks of the trunk's stages.
        scales: How many of their maps make tokens, from the coarsest on.
        dim: D, channels of a token.
        heads: A, attention heads; divides `dim`.
        depth: Blocks of attention within patches, and as many among patches.
        mlp_ratio: Hidden width of an MLP as a multiple of `dim`.
        learned_scale: The scale token is one vector for all patches, and not made from the maps.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("duoformer_tiny32", image_size, 1, least=4)
    dims = check_counts("model.sizes.dims", dims)
    depths = check_counts("model.sizes.depths", depths, len(dims))
    check_count("model.sizes.dim", dim)
    _check_scales(scales, len(dims))
    stride = 2 ** len(dims)
    return DuoFormer(
        num_classes,
        image_size,
        in_channels,
        trunk=Trunk(in_channels, dims[0], dims, depths, basic_block, pooled=False),
        dims=dims[-scales:],
        grid=4,
        # With one place on the last map batch norm could not train on one image.
        padded_size=stride * max(2, -(-image_size // stride)),
        stride=stride,
        dim=dim,
        heads=check_divides("model.sizes.heads", heads, [dim], "model.sizes.dim"),
        depth=check_count("model.sizes.depth", depth),
        mlp_ratio=check_count("model.sizes.mlp_ratio", mlp_ratio),
        learned_scale=check_flag("model.sizes.learned_scale", learned_scale),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
