"""DualToken-ViT: local tokens from a convolution, and global tokens on a small grid that pass through all blocks.

Source: Chu et al. 2023, "DualToken-ViT: Position-aware Efficient Vision Transformer with Dual Token Fusion" (arXiv
2309.12424), sections 3.1 to 3.3; the layout in three stages, the stem, the merging of patches and the attention behind
the MLP are those of Huang et al. 2022, "LightViT" (arXiv 2207.05557). A re-implementation from the description: there
is no published code, and the published counts of parameters cannot be confirmed. What was not clear, and is decided:

* The description weighs the two global tokens by alpha, about 0.1, and not clearly which side has it. Here G' = alpha
  Attention(X) + (1 - alpha) MLP(G), so that alpha = 0 leaves the MLP alone; alpha is a constant.
* A step of the downsampling is a depthwise 3 x 3 and a pointwise convolution, then the mean of 2 x 2 places: the
  pointwise one accounts for the 0.1 M parameters that the steps have in the paper's ablation. Where maps do not halve
  down to the grid, areas are averaged at the end (`pooling_matrix`), so that any size of image has the same parameters.
* Whatever goes into attention or an MLP is layer-normalised first, the global tokens too. The Conv Encoder has no layer
  scale, its expansion is ConvNeXt's, and the MLP of the global tokens does not widen them: against attention in its
  place this saves 1.0 M parameters, and the paper has 1.1 M.
* The features are the mean of the normalised tokens of the last map; LightViT's hidden layer in front of the classifier
  is not mentioned, and left out.
* Of the paper's networks the smaller (T, 0.5 G operations) is left out: its widths and depths are not in the
  description. The larger (S) is given LightViT-T's.

Shapes: B batch, I input channels, H and W sides of a map, C channels of a stage, N = H W tokens, P side of the grid of
global tokens, M = P P their number, A heads, D features (C of the last stage), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from umbel.core.refusal import Refusal
from umbel.models.base import Model, check_count, check_counts, check_divides, check_fraction, check_image_size
from umbel.models.dual_token_blocks import DualTokenBlock, MergePatches, StageSizes
from umbel.models.layers import drop_rates, initialise_linear, to_map, to_tokens


class Stage(nn.Module):
    """Blocks of one size of map, behind a merging of patches if channels `merges` come in."""

    def __init__(self, merges: int | None, dim: int, blocks: Sequence[DualTokenBlock]) -> None:
        super().__init__()
        self.merge = None if merges is None else MergePatches(merges, dim)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, global_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return a map [B, C', H', W'] and global tokens [B, M, C'] of a map [B, C, H, W] and tokens [B, M, C]."""
        if self.merge is not None:
            x, global_tokens = self.merge(x, global_tokens)
        for block in self.blocks:
            x, global_tokens = block(x, global_tokens)
        return x, global_tokens


def conv_stem(inputs: int, dim: int, strides: Sequence[int]) -> nn.Sequential:
    """Return LightViT's stem: a 3 x 3 convolution at stride 2, depthwise ones at `strides`, and one more at stride 2.

    All but the last give half of `dim` channels, and are followed by batch norm and GELU.
    """
    hidden = max(1, dim // 2)
    layers = [nn.Conv2d(inputs, hidden, 3, 2, 1, bias=False), nn.BatchNorm2d(hidden), nn.GELU()]
    for stride in strides:
        conv = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        layers += [conv, nn.BatchNorm2d(hidden), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(hidden, dim, 3, 2, 1))


class DualTokenViT(Model):
    """A stem, stages of blocks through which learned global tokens pass, and the mean of the normalised tokens.

    Args:
        num_classes: K.
        image_size: H = W of an image.
        in_channels: I.
        stages: Their numbers.
        stem_strides: Strides of the depthwise convolutions of the stem.
        grid: P.
        kernel: Side of the Conv Encoder's kernel, odd.
        expansion: Hidden width of the Conv Encoder as a multiple of its channels.
        alpha: Share of what the image says in the global tokens.
        drop_rate: Stochastic depth of the last block; it rises linearly from 0.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        *,
        stages: Sequence[StageSizes],
        stem_strides: Sequence[int],
        grid: int,
        kernel: int,
        expansion: int,
        alpha: float,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = stages[-1].dim
        self.in_channels = in_channels
        self.image_size = image_size
        side = image_size
        for stride in (2, *stem_strides, 2):
            side = -(-side // stride)
        self.stem = conv_stem(in_channels, stages[0].dim, stem_strides)
        self.stem_norm = nn.LayerNorm(stages[0].dim)
        self.global_tokens = nn.Parameter(torch.empty(grid**2, stages[0].dim))
        nn.init.trunc_normal_(self.global_tokens, std=0.02)
        self.stages = nn.ModuleList()
        merges = None
        for sizes, rates in zip(stages, drop_rates([sizes.depth for sizes in stages], drop_rate), strict=True):
            side = side if merges is None else -(-side // 2)
            blocks = [DualTokenBlock(sizes, side, grid, kernel, expansion, alpha, rate) for rate in rates]
            self.stages.append(Stage(merges, sizes.dim, blocks))
            merges = sizes.dim
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        x = self.stem(x)
        x = to_map(self.stem_norm(to_tokens(x)), *x.shape[2:])
        global_tokens = self.global_tokens.expand(x.shape[0], -1, -1)
        for stage in self.stages:
            x, global_tokens = stage(x, global_tokens)
        features: Tensor = self.norm(to_tokens(x)).mean(dim=1)
        return features


def dual_token_vit_s(
    num_classes: int,
    image_size: int = 224,
    in_channels: int = 3,
    *,
    expansion: int = 4,
    alpha: float = 0.1,
    drop_path: float = 0.1,
) -> DualTokenViT:
    """DualToken-ViT-S (paper 11.9): 14.3 M parameters at 1000 classes.

    Widths, depths, heads and MLPs are LightViT-T's, whose layout the paper takes. Its 11.9 M (11.4 M where the MLPs mix
    the global tokens) are rounded and cannot be confirmed, nor which of our decisions make the difference of 2.4 M.
    With an `expansion` of 2 it is 0.4 M; but the Conv Encoder is said to be ConvNeXt's block, which has 4.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 32.
        in_channels: I, 1 for grey and 3 for colour.
        expansion: Hidden width of the Conv Encoder as a multiple of its channels.
        alpha: Share of what the image says in the global tokens, below 1; the rest is what they were.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    rows = zip((64, 128, 256), (2, 6, 6), (2, 4, 8), (8, 4, 4), (2, 1, 0), strict=True)
    model = DualTokenViT(
        num_classes,
        check_image_size("dual_token_vit_s", image_size, 32),
        in_channels,
        stages=[StageSizes(*row) for row in rows],
        stem_strides=(1, 1, 2),
        grid=7,
        kernel=7,
        expansion=check_count("model.sizes.expansion", expansion),
        alpha=check_fraction("model.sizes.alpha", alpha),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
    initialise_linear(model)
    return model


def dual_token_vit_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (40, 80),
    depths: Sequence[int] = (1, 2),
    heads: Sequence[int] = (2, 4),
    mlp_ratio: int = 2,
    grid: int = 4,
    kernel: int = 5,
    expansion: int = 2,
    alpha: float = 0.1,
    drop_path: float = 0.0,
) -> DualTokenViT:
    """A small DualToken-ViT: 0.30 M parameters at 10 classes.

    For images of 28 and 32 px; not in the paper. The stem halves the sides twice, each later stage once. Parameters
    have the same shapes at every size of image, and a batch of one trains at every size.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the stages.
        depths: Blocks of the stages.
        heads: Attention heads of the stages; each divides its channels.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        grid: P, so that there are P P global tokens.
        kernel: Side of the Conv Encoder's kernel, odd.
        expansion: Hidden width of the Conv Encoder as a multiple of its channels.
        alpha: Share of what the image says in the global tokens, below 1; the rest is what they were.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("dual_token_vit_tiny32", image_size, 1, least=4)
    dims = check_counts("model.sizes.dims", dims)
    depths = check_counts("model.sizes.depths", depths, len(dims))
    heads = check_counts("model.sizes.heads", heads, len(dims))
    for dim, head in zip(dims, heads, strict=True):
        check_divides("model.sizes.heads", head, [dim])
    check_count("model.sizes.mlp_ratio", mlp_ratio)
    check_count("model.sizes.grid", grid)
    if check_count("model.sizes.kernel", kernel) % 2 == 0:
        raise Refusal(
            f"model.sizes.kernel should be odd, found {kernel}.", key="model.sizes.kernel", remedy=f"Use {kernel + 1}."
        )
    return DualTokenViT(
        num_classes,
        image_size,
        in_channels,
        stages=[
            # At 32 px the maps have sides 8, 4, ...: one halving takes the first to a grid of 4.
            StageSizes(dim, depth, head, mlp_ratio, steps=len(dims) - 1 - number)
            for number, (dim, depth, head) in enumerate(zip(dims, depths, heads, strict=True))
        ],
        stem_strides=(1,),
        grid=grid,
        kernel=kernel,
        expansion=check_count("model.sizes.expansion", expansion),
        alpha=check_fraction("model.sizes.alpha", alpha),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
