"""Functions that several families share.

Shapes: B batch, N = H W tokens on a map of H x W, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return tokens [B, H W, C] as a map [B, C, H, W]: a view, in the memory order `channels_last`."""
    return tokens.view(len(tokens), height, width, tokens.shape[2]).permute(0, 3, 1, 2)


def to_tokens(image_map: Tensor) -> Tensor:
    """Return a map [B, C, H, W] as tokens [B, H W, C]; no copy if the map is `channels_last`."""
    return image_map.permute(0, 2, 3, 1).flatten(1, 2)


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x), elementwise."""
    return x * torch.sigmoid(1.702 * x)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Drop a residual branch of whole examples (stochastic depth, Huang et al. 2016, arXiv 1603.09382).

    Args:
        x: The branch [B, N, C].
        rate: Probability that an example loses the branch; the rest are scaled by 1 / (1 - rate).
        training: False returns `x` as it is.
    """
    if rate == 0 or not training:
        return x
    # From torch's global generator, which `core.rng.forked` seeds for each local run.
    kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= rate
    return x * kept.to(x.dtype) / (1 - rate)
