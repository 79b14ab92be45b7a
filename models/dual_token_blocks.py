"""The parts of a DualToken-ViT: blocks of local and global tokens, downsampling in steps, and merging of patches.

`umbel.models.dual_token_vit` says where they are from and what was decided.

Shapes: B batch, H and W sides of a map, C channels of a stage, N = H W tokens, P side of the grid of global tokens,
M = P P their number, A heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.base import Block
from umbel.models.layers import (
    CrossAttention,
    Mlp,
    SelfAttention,
    depthwise,
    drop_path,
    pooling_matrix,
    to_map,
    to_tokens,
)


@dataclass(frozen=True)
class StageSizes:
    """The numbers of one stage.

    Attributes:
        dim: C, channels.
        depth: Number of blocks.
        heads: A, attention heads; divides `dim`.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        steps: Convolutions on the way from the map to the grid, each followed by a halving while the map has room.
    """

    dim: int
    depth: int
    heads: int
    mlp_ratio: int
    steps: int


class ConvEncoder(nn.Module):
    """ConvNeXt's branch: depthwise convolution, layer norm, and an MLP at every place."""

    def __init__(self, dim: int, kernel: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = depthwise(dim, kernel)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, expansion * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch as tokens [B, N, C] of a map [B, C, H, W]."""
        branch: Tensor = self.mlp(self.norm(to_tokens(self.depthwise(x))))
        return branch


class StepwiseDownsampling(nn.Module):
    """From a map to the grid of global tokens: convolve and halve, as often as the map has room, then average areas.

    Args:
        dim: C.
        side: H and W.
        grid: P.
        steps: Convolutions; those that find no room to halve leave the size as it is.
    """

    pooling: Tensor | None

    def __init__(self, dim: int, side: int, grid: int, steps: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Sequential(depthwise(dim), nn.Conv2d(dim, dim, 1)) for _ in range(steps))
        self.halves: list[bool] = []
        for _ in range(steps):
            self.halves.append(-(-side // 2) >= grid)
            side = -(-side // 2) if self.halves[-1] else side
        self.register_buffer("pooling", None if side == grid else pooling_matrix(side, grid), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, M, C] of a map [B, C, H, W]."""
        for step, halves in zip(self.steps, self.halves, strict=True):
            x = step(x)
            if halves:
                # An odd side ends in a half window, whose mean is over the places that are there.
                x = F.avg_pool2d(x, 2, ceil_mode=True)
        return to_tokens(x if self.pooling is None else self.pooling @ x @ self.pooling.T)


class BiDimAttention(nn.Module):
    """x s(channel) s(place): gates by what the mean of the normalised tokens says, and by it and the token (LightViT).

    Args:
        dim: C; a quarter of it is in between.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(1, dim // 4)
        self.norm = nn.LayerNorm(dim)
        self.reduce_all = nn.Linear(dim, hidden)
        self.reduce = nn.Linear(dim, hidden)
        self.channel = nn.Linear(hidden, dim)
        self.place = nn.Linear(2 * hidden, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, N, C] of tokens [B, N, C]."""
        normed = self.norm(tokens)
        whole = F.gelu(self.reduce_all(normed.mean(dim=1, keepdim=True)))
        each = F.gelu(self.reduce(normed))
        place = self.place(torch.cat((each, whole.expand_as(each)), dim=2))
        return tokens * torch.sigmoid(self.channel(whole)) * torch.sigmoid(place)


class DualTokenBlock(Block):
    """Local tokens, global tokens from them and those before, and both together (section 3.1).

        X = x + ConvEncoder(x)
        G' = alpha Attention(LN downsample(X)) + (1 - alpha) MLP(LN G)
        y = X + Attention(LN X to LN G')
        y += BiDimAttention(MLP(LN y))

    Args:
        sizes: Of the stage.
        side: H and W.
        grid: P.
        kernel: Side of the Conv Encoder's kernel, odd.
        expansion: Hidden width of the Conv Encoder as a multiple of its channels.
        alpha: Share of what the image says in the global tokens.
        drop_rate: Stochastic depth of each of the three branches.
    """

    def __init__(
        self, sizes: StageSizes, side: int, grid: int, kernel: int, expansion: int, alpha: float, drop_rate: float
    ) -> None:
        super().__init__()
        dim = sizes.dim
        self.alpha = alpha
        self.drop_rate = drop_rate
        self.encoder = ConvEncoder(dim, kernel, expansion)
        self.downsample = StepwiseDownsampling(dim, side, grid, sizes.steps)
        self.norm_image = nn.LayerNorm(dim, eps=1e-6)
        self.aggregate = SelfAttention(dim, sizes.heads)
        self.norm_global = nn.LayerNorm(dim, eps=1e-6)
        self.enrich = Mlp(dim, dim)
        self.norm_local = nn.LayerNorm(dim, eps=1e-6)
        self.norm_context = nn.LayerNorm(dim, eps=1e-6)
        self.broadcast = CrossAttention(dim, sizes.heads)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(Mlp(dim, sizes.mlp_ratio * dim), BiDimAttention(dim))

    def update(self, x: Tensor, global_tokens: Tensor) -> Tensor:
        """Return global tokens [B, M, C] of the map of local tokens [B, C, H, W] and the global tokens before."""
        seen = self.aggregate(self.norm_image(self.downsample(x)))
        kept = self.enrich(self.norm_global(global_tokens))
        updated: Tensor = self.alpha * seen + (1 - self.alpha) * kept
        return updated

    def forward(self, x: Tensor, global_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return a map [B, C, H, W] and global tokens [B, M, C] of the same."""
        height, width = x.shape[2:]
        tokens = to_tokens(x) + drop_path(self.encoder(x), self.drop_rate, self.training)
        global_tokens = self.update(to_map(tokens, height, width), global_tokens)
        branch = self.broadcast(self.norm_local(tokens), self.norm_context(global_tokens))
        tokens = tokens + drop_path(branch, self.drop_rate, self.training)
        tokens = tokens + drop_path(self.mlp(self.norm(tokens)), self.drop_rate, self.training)
        return to_map(tokens, height, width), global_tokens


class MergePatches(nn.Module):
    """Halve a map: Linear(LN of 2 x 2 places beside each other) + Linear(their maximum), and project global tokens."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * inputs)
        self.reduce = nn.Linear(4 * inputs, outputs, bias=False)
        self.shortcut = nn.Linear(inputs, outputs, bias=False)
        self.global_norm = nn.LayerNorm(inputs)
        self.project = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor, global_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return a map [B, C', H / 2, W / 2], rounded up, and tokens [B, M, C'], of [B, C, H, W] and [B, M, C]."""
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        corners = [to_tokens(x[:, :, row::2, column::2]) for row in (0, 1) for column in (0, 1)]
        # The maximum over a stack, because torch's pooling has no deterministic gradient on CUDA.
        largest = torch.stack(corners, dim=3).amax(dim=3)
        merged = self.reduce(self.norm(torch.cat(corners, dim=2))) + self.shortcut(largest)
        projected = self.project(self.global_norm(global_tokens))
        return to_map(merged, x.shape[2] // 2, x.shape[3] // 2), projected
