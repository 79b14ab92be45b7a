"""RaftMLP: an MLP over each column of a map, one over each row and one over the channels, for groups of channels.

Source: Tatsunami & Taki 2022, "RaftMLP: How Much Can Be Done Without Attention and with Less Spatial Locality?" (arXiv
2108.04384): section 3 for the raft-token-mixing block and the multi-scale patch embedding, its tables for the sizes.
Written from the equations. The embedding's one linear layer on patches of several sizes is a sum of convolutions, one
a size; they start as that layer would.

Shapes: B batch, I input channels, H and W sides of a map, C channels of a level, R rafts (groups of channels), E =
C / R channels of a raft, D features (C of the last level), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.refusal import Refusal
from umbel.models.base import (
    Block,
    Model,
    check_count,
    check_counts,
    check_divides,
    check_fraction,
    check_image_size,
    check_lists,
)
from umbel.models.layers import Mlp, drop_path, drop_rates


@dataclass(frozen=True)
class LevelSizes:
    """The numbers of one level.

    Attributes:
        dim: C, channels.
        depth: Number of blocks.
        patch: Stride of the embedding.
        kernels: Sides of the patches that the embedding sees, all around the centre of one of the stride's size.
    """

    dim: int
    depth: int
    patch: int
    kernels: tuple[int, ...]


class MultiScaleEmbed(nn.Module):
    """A linear layer on patches of several sizes about one centre, with zeros beyond the border.

    A map that the stride does not divide gains zeros at its end.
    """

    def __init__(self, inputs: int, dim: int, patch: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.patch = patch
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, dim, kernel, patch, (kernel - patch) // 2, bias=number == 0)
            for number, kernel in enumerate(kernels)
        )
        bound = (inputs * sum(kernel**2 for kernel in kernels)) ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, image_map: Tensor) -> Tensor:
        """Return a map [B, ceil(H / patch), ceil(W / patch), C] of a map [B, C', H, W]."""
        missing = [-side % self.patch for side in image_map.shape[2:]]
        if any(missing):
            image_map = F.pad(image_map, (0, missing[1], 0, missing[0]))
        embedded: Tensor = self.convs[0](image_map)
        for conv in self.convs[1:]:
            embedded = embedded + conv(image_map)
        return embedded.permute(0, 2, 3, 1)


class RaftMix(nn.Module):
    """MLP over one axis of a map and the R rafts together, the same for each other place and channel of a raft.

    Channel c is channel c % E of raft c // E. The MLP's inputs are in the order (raft, place).

    Args:
        side: Places along the axis.
        rafts: R.
        expansion: Hidden width of the MLP as a multiple of its inputs.
        vertical: Whether the axis is H, and not W.
    """

    def __init__(self, side: int, rafts: int, expansion: int, vertical: bool) -> None:
        super().__init__()
        self.rafts = rafts
        # [B, H, W, R, E] to [B, W, E, R, H] or [B, H, E, R, W], and back.
        self.there, self.back = ((0, 2, 4, 3, 1), (0, 4, 1, 3, 2)) if vertical else ((0, 1, 4, 3, 2), (0, 1, 4, 3, 2))
        self.mlp = Mlp(rafts * side, expansion * rafts * side)

    def forward(self, image_map: Tensor) -> Tensor:
        """Return a map [B, H, W, C] of a map [B, H, W, C]."""
        # No -1: it says nothing about an empty batch.
        rafts = (self.rafts, image_map.shape[3] // self.rafts)
        lines = image_map.view(*image_map.shape[:3], *rafts).permute(self.there)
        mixed: Tensor = self.mlp(lines.flatten(3))
        return mixed.view(lines.shape).permute(self.back).flatten(3)


class RaftBlock(Block):
    """x += columns(LN x); x += rows(LN x); x += MLP(LN x)."""

    def __init__(
        self, dim: int, side: int, rafts: int, token_expansion: int, channel_expansion: int, drop_rate: float
    ) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.norm1 = nn.LayerNorm(dim)
        self.columns = RaftMix(side, rafts, token_expansion, vertical=True)
        self.norm2 = nn.LayerNorm(dim)
        self.rows = RaftMix(side, rafts, token_expansion, vertical=False)
        self.norm3 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, channel_expansion * dim)

    def forward(self, image_map: Tensor) -> Tensor:
        """Return a map [B, H, W, C] of a map [B, H, W, C]."""
        image_map = image_map + drop_path(self.columns(self.norm1(image_map)), self.drop_rate, self.training)
        image_map = image_map + drop_path(self.rows(self.norm2(image_map)), self.drop_rate, self.training)
        return image_map + drop_path(self.mlp(self.norm3(image_map)), self.drop_rate, self.training)


class RaftMLP(Model):
    """Levels of raft blocks, and the mean of the layer-normalised map as features.

    The MLPs over places tie the parameters to the size of image. No batch norm: a batch of one trains.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        levels: Sequence[LevelSizes],
        *,
        rafts: int,
        token_expansion: int,
        channel_expansion: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = levels[-1].dim
        self.in_channels = in_channels
        self.image_size = image_size
        self.embeds = nn.ModuleList()
        self.levels = nn.ModuleList()
        side, inputs = image_size, in_channels
        rates = drop_rates([level.depth for level in levels], drop_rate)
        for level, level_rates in zip(levels, rates, strict=True):
            self.embeds.append(MultiScaleEmbed(inputs, level.dim, level.patch, level.kernels))
            side, inputs = -(-side // level.patch), level.dim
            self.levels.append(
                nn.Sequential(
                    *(RaftBlock(inputs, side, rafts, token_expansion, channel_expansion, r) for r in level_rates)
                )
            )
        self.norm = nn.LayerNorm(inputs)
        self.head = nn.Linear(inputs, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        for embed, level in zip(self.embeds, self.levels, strict=True):
            x = level(embed(x)).permute(0, 3, 1, 2)
        features: Tensor = self.norm(x.permute(0, 2, 3, 1)).mean(dim=(1, 2))
        return features


def _published(
    name: str, num_classes: int, image_size: int, in_channels: int, dims: Sequence[int], drop_rate: float
) -> RaftMLP:
    """Build a RaftMLP of the paper; they differ in their channels."""
    kernels = ((4, 8), (2, 4), (2, 4), (2,))
    return RaftMLP(
        num_classes,
        check_image_size(name, image_size, 32),
        in_channels,
        [LevelSizes(*sizes) for sizes in zip(dims, (2, 2, 6, 2), (4, 2, 2, 2), kernels, strict=True)],
        rafts=2,
        token_expansion=2,
        channel_expansion=4,
        drop_rate=check_fraction("model.sizes.drop_path", drop_rate),
    )


def raftmlp_s(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.1) -> RaftMLP:
    """RaftMLP-S: 9.87 M parameters at 1000 classes.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 32; the number of parameters depends on it.
        in_channels: I, 1 for grey and 3 for colour.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published("raftmlp_s", num_classes, image_size, in_channels, (64, 128, 256, 512), drop_path)


def raftmlp_m(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.1) -> RaftMLP:
    """RaftMLP-M: 21.4 M parameters at 1000 classes.

    Arguments and errors are those of `raftmlp_s`.
    """
    return _published("raftmlp_m", num_classes, image_size, in_channels, (96, 192, 384, 768), drop_path)


def raftmlp_l(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.1) -> RaftMLP:
    """RaftMLP-L: 36.2 M parameters at 1000 classes.

    Its second level has the 192 channels of RaftMLP-M, not twice those of its first: so the published configuration
    says, and so the published count comes out. Arguments and errors are those of `raftmlp_s`.
    """
    return _published("raftmlp_l", num_classes, image_size, in_channels, (128, 192, 512, 1024), drop_path)


def raftmlp_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (64, 128),
    depths: Sequence[int] = (1, 2),
    patches: Sequence[int] = (4, 2),
    kernels: Sequence[Sequence[int]] = ((4, 6), (2,)),
    rafts: int = 2,
    token_expansion: int = 2,
    channel_expansion: int = 4,
    drop_path: float = 0.0,
) -> RaftMLP:
    """A small RaftMLP: 0.35 M parameters at 10 classes.

    For images of 8 to 32 px; not in the paper. The authors' configuration for CIFAR-10 has dims 128 and 256, depths 2
    and 2, patches 2 and 2, kernels (4, 8) and (2, 4), and four rafts: 2.09 M parameters at 32 px, and 6.03 M at the 224
    px to which they enlarge its images.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of the first patch; the number of parameters depends on
            it. A later map that its patch does not divide is padded.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the levels.
        depths: Blocks of the levels.
        patches: Strides of the levels' embeddings.
        kernels: For each level the sides of the patches that its embedding sees; each is the stride and an even number.
        rafts: R, groups of channels that are mixed along with an axis; divides all of `dims`.
        token_expansion: Hidden width of the MLPs over columns and rows as a multiple of their inputs.
        channel_expansion: Hidden width of the MLP over channels as a multiple of them.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    dims = check_counts("model.sizes.dims", dims)
    depths = check_counts("model.sizes.depths", depths, len(dims))
    patches = check_counts("model.sizes.patches", patches, len(dims))
    check_image_size("raftmlp_tiny32", image_size, patches[0])
    level_kernels = check_lists("model.sizes.kernels", kernels, len(dims))
    for patch, sides in zip(patches, level_kernels, strict=True):
        if any(kernel < patch or (kernel - patch) % 2 for kernel in sides):
            raise Refusal(
                f"model.sizes.kernels should be the stride {patch} (model.sizes.patches) and an even number, found "
                f"{sides!r}.",
                key="model.sizes.kernels",
                remedy=f"Use {patch} or {patch + 2}.",
            )
    return RaftMLP(
        num_classes,
        image_size,
        in_channels,
        [LevelSizes(*sizes) for sizes in zip(dims, depths, patches, level_kernels, strict=True)],
        rafts=check_divides("model.sizes.rafts", rafts, dims),
        token_expansion=check_count("model.sizes.token_expansion", token_expansion),
        channel_expansion=check_count("model.sizes.channel_expansion", channel_expansion),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
