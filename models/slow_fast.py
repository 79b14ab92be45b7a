"""Tokens of which the best go through attention one by one and the rest together, as in Evo-ViT.

Source: Xu et al. 2022, "Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer" (arXiv 2108.01390): section
3.2 for the class attention that evolves, section 3.3 for the slow and the fast update. Written from the equations, with
the position of a block of UniFormer before them (models/uniformer.py).

Shapes: B batch, H and W sides of a map, C channels, N = H W tokens, S tokens of the slow update, A heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from umbel.models.base import Block
from umbel.models.layers import Mlp, SelfAttention, depthwise, drop_path, to_map, to_tokens


class SlowFastBlock(Block):
    """A global block with a class token that updates the tokens of the best scores one by one, and the rest together.

    Slow are the class token, the tokens of the highest scores and a representative of the rest: their mean, weighted
    by the scores. They pass attention and MLP. Fast are the rest: to each is added what the representative gained.
    The scores are the attention of the class token, averaged over heads and, for the slow tokens, half and half with
    the scores from before; the fast keep theirs. A block that takes all tokens starts the scores anew.

    Args:
        dim: C.
        heads: A, attention heads.
        mlp_ratio: Hidden width of the MLP as a multiple of C.
        keep: Share of the tokens that are slow; 1 takes all of them, and no representative.
        drop_rate: Stochastic depth of both branches.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: int, keep: float, drop_rate: float) -> None:
        super().__init__()
        self.keep = keep
        self.drop_rate = drop_rate
        self.position = depthwise(dim, 3)
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio * dim)

    def _update(self, slow: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens [B, S, C] behind attention and MLP, and the class token's attention [B, S]; it is the first."""
        q, k, v = self.attention.project(self.norm1(slow))
        # Only this row of the attention is wanted, so that the fused kernel can do the rest.
        row = torch.softmax(q[:, :, :1] @ k.transpose(2, 3) * q.shape[3] ** -0.5, dim=3).mean(dim=1)[:, 0]
        slow = slow + drop_path(self.attention.mix(q, k, v), self.drop_rate, self.training)
        return slow + drop_path(self.mlp(self.norm2(slow)), self.drop_rate, self.training), row

    def forward(self, image_map: Tensor, cls: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return map [B, C, H, W], class token [B, 1, C] and scores [B, N], row-major over the map, of the same."""
        height, width = image_map.shape[2:]
        tokens = to_tokens(image_map + self.position(image_map))
        kept = max(1, int(self.keep * height * width))
        if kept == height * width:
            slow, row = self._update(torch.cat((cls, tokens), dim=1))
            return to_map(slow[:, 1:].contiguous(), height, width), slow[:, :1], row[:, 1:]
        order = scores.argsort(dim=1, descending=True, stable=True)
        tokens = tokens.gather(1, order[:, :, None].expand_as(tokens))
        scores = scores.gather(1, order)
        # An attention of zero everywhere is one that float32 cannot hold.
        shares = scores[:, None, kept:].clamp_min(torch.finfo(scores.dtype).tiny)
        representative = (shares / shares.sum(dim=2, keepdim=True)) @ tokens[:, kept:]
        slow, row = self._update(torch.cat((cls, tokens[:, :kept], representative), dim=1))
        fast = tokens[:, kept:] + (slow[:, -1:] - representative)
        tokens = torch.cat((slow[:, 1:-1], fast), dim=1)
        scores = torch.cat(((scores[:, :kept] + row[:, 1:-1]) / 2, scores[:, kept:]), dim=1)
        rank = order.argsort(dim=1)  # where each place of the map has gone
        tokens = tokens.gather(1, rank[:, :, None].expand_as(tokens))
        return to_map(tokens, height, width), slow[:, :1], scores.gather(1, rank)
