"""FIT: attention within groups of patches, attention among latents of all groups, and reading and writing between.

Source: Chen and Li 2023, "FIT: Far-reaching Interleaved Transformers" (arXiv 2305.12689), the encoder. A
re-implementation from the description, which gives the layers and their order and no network for classification. What
it leaves open is decided here:

* The groups are squares of neighbouring patches, and an image is padded evenly with zeros until they tile it.
* A group's patches have learned positions, the same in each group. The latents begin as learned vectors, one for each
  place of a grid of groups; for another grid these are averaged (`pooling_matrix`), so that parameters have the same
  shapes at every size of image.
* Layers are pre-norm. Reading and writing are cross-attention alone, normalised on both sides, without an MLP; their
  inner width is that of the tokens that are changed.
* The last super-block does not write back: nothing would read it. The features are the mean of the normalised latents.

Shapes: B batch, I input channels, H and W sides of a map, P side of a group in patches, G groups, N = P P patches of a
group, M latents of a group, C channels of patches, L channels of latents (the features), A heads, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from umbel.core.refusal import Refusal
from umbel.models.base import Block, Model, check_count, check_divides, check_fraction, check_image_size, check_lists
from umbel.models.layers import (
    CrossAttention,
    LayerNorm2d,
    Mlp,
    SelfAttention,
    drop_path,
    drop_rates,
    initialise_linear,
    pad_evenly,
    pooling_matrix,
    to_windows,
)


def to_groups(image_map: Tensor, side: int) -> Tensor:
    """Cut a map [B, C, H, W] into groups of neighbours [B, G, N, C], groups and places row-major; P divides H and W."""
    batch, channels, height, width = image_map.shape
    windows = to_windows(image_map.permute(0, 2, 3, 1).contiguous(), side)
    # Sizes are written out: of an empty batch, a view with -1 says nothing.
    return windows.view(batch, height * width // side**2, side**2, channels)


class GroupBlock(Block):
    """x += Attention(LN x); x += MLP(LN x), where a token sees those of its own group."""

    # For `umbel.models.maps`: whoever has groups of neighbours says so. Latents are no places.
    map_layout = "none"

    def __init__(self, dim: int, heads: int, mlp_ratio: int, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp_ratio * dim)

    def forward(self, groups: Tensor) -> Tensor:
        """Return groups [B, G, N, C] of groups [B, G, N, C]."""
        branch = self.attention(self.norm1(groups).flatten(0, 1)).view(groups.shape)
        groups = groups + drop_path(branch, self.drop_rate, self.training)
        return groups + drop_path(self.mlp(self.norm2(groups)), self.drop_rate, self.training)


class CrossBlock(Block):
    """x += CrossAttention(LN x, LN y), where a token x sees the tokens y of its own group."""

    map_layout = "none"

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.context_norm = nn.LayerNorm(context_dim, eps=1e-6)
        self.attention = CrossAttention(dim, heads, context_dim)

    def forward(self, groups: Tensor, context: Tensor) -> Tensor:
        """Return groups [B, G, N, C] of groups [B, G, N, C] and `context` [B, G, M, context channels]."""
        attended = self.attention(self.norm(groups).flatten(0, 1), self.context_norm(context).flatten(0, 1))
        written: Tensor = groups + attended.view(groups.shape)
        return written


class SuperBlock(nn.Module):
    """Local layers on the patches of each group, latents that read from them, global layers on all latents, writing.

    Args:
        dim: C.
        latent_dim: L.
        heads: A, of local layers, of reading and of writing.
        latent_heads: A, of global layers.
        mlp_ratio: Hidden width of an MLP as a multiple of its channels.
        local_rates: Stochastic depth of each local layer.
        global_rates: Stochastic depth of each global layer.
        writes: Whether the patches look at the latents at the end.
    """

    def __init__(
        self,
        dim: int,
        latent_dim: int,
        heads: int,
        latent_heads: int,
        mlp_ratio: int,
        local_rates: Sequence[float],
        global_rates: Sequence[float],
        writes: bool,
    ) -> None:
        super().__init__()
        self.local_blocks = nn.Sequential(*(GroupBlock(dim, heads, mlp_ratio, rate) for rate in local_rates))
        self.read = CrossBlock(latent_dim, dim, heads)
        self.global_blocks = nn.Sequential(
            *(GroupBlock(latent_dim, latent_heads, mlp_ratio, rate) for rate in global_rates)
        )
        self.write = CrossBlock(dim, latent_dim, heads) if writes else None
        for block in (*self.local_blocks, self.write):
            if isinstance(block, GroupBlock | CrossBlock):
                block.map_layout = "groups"

    def forward(self, patches: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches [B, G, N, C] and latents [B, G, M, L] of the same."""
        patches = self.local_blocks(patches)
        latents = self.read(latents, patches)
        # The latents of an image are one group.
        latents = self.global_blocks(latents.flatten(1, 2)[:, None]).view(latents.shape)
        if self.write is not None:
            patches = self.write(patches, latents)
        return patches, latents


class FIT(Model):
    """Patches in groups, super-blocks, and the mean of the normalised latents as features.

    Args:
        num_classes: K.
        image_size: H = W of an image; the edges are padded with zeros until groups tile it.
        in_channels: I.
        patch: Side of a patch in pixels.
        group: P.
        grid: Side of the grid of groups that has a learned vector a latent.
        latents: M.
        dim: C.
        latent_dim: L.
        heads: A of what changes or reads patches.
        latent_heads: A of global layers.
        layers: Local and global layers of each super-block.
        mlp_ratio: Hidden width of an MLP as a multiple of its channels.
        drop_rate: Stochastic depth of the last layer; it rises linearly from 0, local and global layers in turn.
        deviation: Of the positions and the latents at the start.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        *,
        patch: int,
        group: int,
        grid: int,
        latents: int,
        dim: int,
        latent_dim: int,
        heads: int,
        latent_heads: int,
        layers: Sequence[Sequence[int]],
        mlp_ratio: int,
        drop_rate: float,
        deviation: float,
    ) -> None:
        super().__init__()
        self.num_features = latent_dim
        self.in_channels = in_channels
        self.image_size = image_size
        self.group = group
        groups = -(-image_size // (patch * group))
        self.padding = groups * patch * group - image_size
        self.embed = nn.Conv2d(in_channels, dim, patch, patch)
        self.embed_norm = LayerNorm2d(dim, eps=1e-6)
        self.position = nn.Parameter(torch.empty(group**2, dim))
        self.latents = nn.Parameter(torch.empty(grid, grid, latents * latent_dim))
        self.start = (groups**2, latents, latent_dim)
        rates = drop_rates([depth for pair in layers for depth in pair], drop_rate)
        self.super_blocks = nn.ModuleList(
            SuperBlock(
                dim, latent_dim, heads, latent_heads, mlp_ratio, rates[2 * i], rates[2 * i + 1], i < len(layers) - 1
            )
            for i in range(len(layers))
        )
        self.norm = nn.LayerNorm(latent_dim, eps=1e-6)
        self.register_buffer("pooling", pooling_matrix(grid, groups), persistent=False)
        self.pooling: Tensor
        nn.init.trunc_normal_(self.position, std=deviation)
        nn.init.trunc_normal_(self.latents, std=deviation)
        self.head = nn.Linear(latent_dim, num_classes)

    def first_latents(self) -> Tensor:
        """Return what the latents of an image begin from, [G, M, L]."""
        # Along one axis of the grid and then the other, with the M L channels in front.
        first: Tensor = (self.pooling @ self.latents.permute(2, 0, 1) @ self.pooling.T).flatten(1).T.reshape(self.start)
        return first

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, L] of images [B, I, H, W]."""
        self.check_input(x)
        image_map = self.embed_norm(self.embed(pad_evenly(x, self.padding)))
        patches = to_groups(image_map, self.group) + self.position
        latents = self.first_latents().expand(x.shape[0], -1, -1, -1)
        for super_block in self.super_blocks:
            patches, latents = super_block(patches, latents)
        features: Tensor = self.norm(latents).mean(dim=(1, 2))
        return features


def fit_s(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.1) -> FIT:
    """FIT in sizes of ours: 24.9 M parameters at 1000 classes.

    The paper has no network for classification: these sizes are our choice and nothing published compares with them.
    Patches of 8 px in groups of 7 x 7 with 8 latents each, so that an image of 224 px has 784 patches and 128 latents;
    three super-blocks of one local layer (192 channels) and four global layers (384 channels).

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 56.
        in_channels: I, 1 for grey and 3 for colour.
        drop_path: Stochastic depth of the last layer; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    model = FIT(
        num_classes,
        check_image_size("fit_s", image_size, 56),
        in_channels,
        patch=8,
        group=7,
        grid=4,
        latents=8,
        dim=192,
        latent_dim=384,
        heads=3,
        latent_heads=6,
        layers=((1, 4), (1, 4), (1, 4)),
        mlp_ratio=4,
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
        deviation=0.02,
    )
    initialise_linear(model)
    return model


def fit_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    patch: int = 4,
    group: int = 4,
    latents: int = 4,
    dim: int = 48,
    latent_dim: int = 64,
    heads: int = 4,
    layers: Sequence[Sequence[int]] = ((1, 2), (1, 2)),
    mlp_ratio: int = 2,
    drop_path: float = 0.0,
) -> FIT:
    """A small FIT: 0.22 M parameters at 10 classes.

    For images of 28 and 32 px; not in the paper. An image of 17 to 32 px has 4 groups of 16 patches, and 16 latents.
    Parameters have the same shapes at every size of image; there is no batch norm, so that a batch of one trains.
    Positions and latents begin as large as the normalised patches and linear layers as torch starts them: from the
    deviation of 0.02 that suits large sizes, this one learns slower in its first steps.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        patch: Side of a patch in pixels.
        group: P, side of a group in patches.
        latents: M, latents of a group.
        dim: C, channels of a patch.
        latent_dim: L, channels of a latent.
        heads: A, attention heads; divides `dim` and `latent_dim`.
        layers: Numbers of local and of global layers, a pair a super-block.
        mlp_ratio: Hidden width of an MLP as a multiple of its channels.
        drop_path: Stochastic depth of the last layer; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("fit_tiny32", image_size, 1, least=4)
    pairs = check_lists("model.sizes.layers", layers)
    if any(len(pair) != 2 for pair in pairs):
        raise Refusal(
            "model.sizes.layers should have two numbers a super-block, local layers and global ones, found "
            f"{[list(pair) for pair in pairs]}.",
            key="model.sizes.layers",
        )
    check_count("model.sizes.dim", dim)
    check_count("model.sizes.latent_dim", latent_dim)
    check_divides("model.sizes.heads", heads, [dim], "model.sizes.dim")
    return FIT(
        num_classes,
        image_size,
        in_channels,
        patch=check_count("model.sizes.patch", patch),
        group=check_count("model.sizes.group", group),
        grid=-(-32 // (patch * group)),
        latents=check_count("model.sizes.latents", latents),
        dim=dim,
        latent_dim=latent_dim,
        heads=heads,
        latent_heads=check_divides("model.sizes.heads", heads, [latent_dim], "model.sizes.latent_dim"),
        layers=pairs,
        mlp_ratio=check_count("model.sizes.mlp_ratio", mlp_ratio),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
        deviation=1.0,
    )
