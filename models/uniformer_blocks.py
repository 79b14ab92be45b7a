"""Blocks of UniFormer: the same on the map of an image and on that of a clip, whose convolutions reach over frames.

Source: Li et al. 2022, "UniFormer: Unified Transformer for Efficient Spatiotemporal Representation Learning" (arXiv
2201.04676), section 3, for clips; Li et al. 2022, "UniFormer: Unifying Convolution and Self-attention for Visual
Recognition" (arXiv 2201.09450), section 3, for both. Written from the equations.

Shapes: B batch, C channels, P places of a map, written as axes: H, W of an image, T, H, W of a clip; N = T H W tokens.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.base import Block
from umbel.models.layers import Mlp, SelfAttention, drop_path

# Axes of a map's places -> its layers.
_CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORMS: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def _depthwise(dim: int, kernel: int, dimensions: int) -> nn.Module:
    """Return a convolution of each channel alone that keeps the map: of odd `kernel` along every axis."""
    return _CONVOLUTIONS[dimensions](dim, dim, kernel, padding=kernel // 2, groups=dim)


class LocalBlock(Block):
    """x += DW3(x); x += PW(DW5(PW(BN x))); x += PW(GELU(PW(BN x))), with a bias in every convolution.

    Args:
        dim: C.
        mlp_ratio: Hidden width of the MLP as a multiple of C.
        drop_rate: Stochastic depth of the last two branches.
        dimensions: 2 for maps of images, 3 for those of clips: the kernels are 3 x 3 x 3 and 5 x 5 x 5 there.
    """

    def __init__(self, dim: int, mlp_ratio: int, drop_rate: float, dimensions: int = 2) -> None:
        super().__init__()
        conv, norm = _CONVOLUTIONS[dimensions], _BATCH_NORMS[dimensions]
        self.drop_rate = drop_rate
        self.position = _depthwise(dim, 3, dimensions)
        self.relate = nn.Sequential(norm(dim), conv(dim, dim, 1), _depthwise(dim, 5, dimensions), conv(dim, dim, 1))
        self.norm = norm(dim)
        self.fc1 = conv(dim, mlp_ratio * dim, 1)
        self.fc2 = conv(mlp_ratio * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, P] of a map [B, C, P]."""
        x = x + self.position(x)
        x = x + drop_path(self.relate(x), self.drop_rate, self.training)
        branch = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return x + drop_path(branch, self.drop_rate, self.training)


class GlobalBlock(Block):
    """x += DW3(x) on the map; x += Attention(LN x) and x += MLP(LN x) on its tokens, of all frames together.

    Args:
        dim: C.
        heads: Attention heads, a divisor of C.
        mlp_ratio: Hidden width of the MLP as a multiple of C.
        drop_rate: Stochastic depth of the last two branches.
        dimensions: 2 for maps of images, 3 for those of clips.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: int, drop_rate: float, dimensions: int = 2) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.position = _depthwise(dim, 3, dimensions)
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, P] of a map [B, C, P]: a view in the memory order [B, P, C]."""
        x = (x + self.position(x)).movedim(1, -1)
        tokens = x.flatten(1, -2)
        tokens = tokens + drop_path(self.attention(self.norm1(tokens)), self.drop_rate, self.training)
        tokens = tokens + drop_path(self.mlp(self.norm2(tokens)), self.drop_rate, self.training)
        return tokens.view(x.shape).movedim(-1, 1)
