"""ConViT: self-attention that starts as a convolution, and a gate for each head to leave it.

Source: d'Ascoli et al. 2021, "ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases" (arXiv
2103.10697): equations 5 and 6 for the positional attention and where it begins, equation 7 for the gate, section 4 for
the sizes. Written from the equations. Attention is not normalised once more behind the gate: a mean of two
distributions is one.

Shapes: B batch, I input channels, H and W sides of the grid of patches, N = H W tokens (one more with the class
token), D channels and features, A heads, K classes.
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.refusal import Refusal
from umbel.models.base import Block, Model, check_count, check_divides, check_fraction, check_image_size, check_positive
from umbel.models.layers import (
    Mlp,
    SelfAttention,
    drop_path,
    drop_rates,
    initialise_linear,
    join_heads,
    no_autocast,
    split_heads,
    to_tokens,
)


def relative_places(side: int) -> Tensor:
    """Return (dx, dy, dx^2 + dy^2) from query to key for each pair of places of a grid, [N, N, 3]; x is the column."""
    axis = torch.arange(side, dtype=torch.get_default_dtype())
    row, column = axis.repeat_interleave(side), axis.repeat(side)
    dx, dy = column - column[:, None], row - row[:, None]
    return torch.stack((dx, dy, dx**2 + dy**2), dim=2)


class GatedPositionalAttention(nn.Module):
    """(1 - s) softmax(q k) v + s softmax(w r + b) v with s = sigmoid(gate), a gate for each head (equation 7).

    `position` has the bias b of the published networks. A softmax does not see it: its gradient is zero.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qk = nn.Linear(dim, 2 * dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.position = nn.Linear(3, heads)
        self.gate = nn.Parameter(torch.ones(heads))
        self.out = nn.Linear(dim, dim)

    def start_local(self, strength: float) -> None:
        """Begin as a convolution: values pass as they are, and each head looks at one place of a kernel (equation 6).

        The A heads are the places of a square kernel, row-major. A kernel of even side has its centre between places,
        so that a head looks at two or four alike.

        Args:
            strength: The attention of a head is exp(-strength * squared distance from its place), normalised.
        """
        nn.init.eye_(self.v.weight)
        nn.init.zeros_(self.position.bias)
        nn.init.ones_(self.gate)
        kernel = isqrt(self.heads)
        axis = torch.arange(kernel, device=self.gate.device) - (kernel - 1) / 2
        dy, dx = axis.repeat_interleave(kernel), axis.repeat(kernel)
        with torch.no_grad():
            self.position.weight.copy_(strength * torch.stack((2 * dx, 2 * dy, -torch.ones_like(dx)), dim=1))

    def positional(self, places: Tensor) -> Tensor:
        """Return each head's attention [A, N, N] by place alone, of `relative_places` [N, N, 3]."""
        # bfloat16 holds whole numbers up to 256 only, and 14 x 14 patches have squared distances up to 338.
        with no_autocast(places):
            return torch.softmax(self.position(places).permute(2, 0, 1), dim=2)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Return attended tokens [B, N, D] of tokens [B, N, D], no class token among them."""
        q, k = split_heads(self.qk(tokens), self.heads, 2)
        (v,) = split_heads(self.v(tokens), self.heads)
        share = torch.sigmoid(self.gate)[:, None, None]
        # Gated after the values: so the part by content can be a fused kernel, and that by place is one for a batch.
        mixed = (1 - share) * F.scaled_dot_product_attention(q, k, v) + share * (self.positional(places) @ v)
        attended: Tensor = self.out(join_heads(mixed))
        return attended


class ConViTBlock(Block):
    """x += Attention(LN x); x += MLP(LN x); the attention is gated and positional if `local`."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, local: bool, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = GatedPositionalAttention(dim, heads) if local else SelfAttention(dim, heads, bias=False)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp_ratio * dim)

    def forward(self, tokens: Tensor, *places: Tensor) -> Tensor:
        """Return tokens [B, N, D] of tokens [B, N, D]; a local block is given `relative_places` as well."""
        branch = self.attention(self.norm1(tokens), *places)
        tokens = tokens + drop_path(branch, self.drop_rate, self.training)
        return tokens + drop_path(self.mlp(self.norm2(tokens)), self.drop_rate, self.training)


class ConViT(Model):
    """Patches, a learned position, local blocks, and blocks with a class token, which is the feature.

    The positions tie the parameters to the size of image. No batch norm: a batch of one trains.
    """

    places: Tensor

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        *,
        patch: int,
        dim: int,
        heads: int,
        depth: int,
        local_depth: int,
        mlp_ratio: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = dim
        self.in_channels = in_channels
        self.image_size = image_size
        side = image_size // patch
        self.embed = nn.Conv2d(in_channels, dim, patch, patch)
        self.position = nn.Parameter(torch.zeros(1, side * side, dim))
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        (rates,) = drop_rates([depth], drop_rate)
        self.local_blocks = nn.ModuleList(
            ConViTBlock(dim, heads, mlp_ratio, True, rate) for rate in rates[:local_depth]
        )
        self.blocks = nn.ModuleList(ConViTBlock(dim, heads, mlp_ratio, False, rate) for rate in rates[local_depth:])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.register_buffer("places", relative_places(side), persistent=False)
        self.head = nn.Linear(dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        tokens = to_tokens(self.embed(x)) + self.position
        for block in self.local_blocks:
            tokens = block(tokens, self.places)
        tokens = torch.cat((self.cls.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        features: Tensor = self.norm(tokens[:, 0])
        return features

    def locality(self) -> Tensor:
        """Return for each local block the mean share of the positional attention, [layers]; it starts at 0.73."""
        gates = [m.gate.detach() for m in self.modules() if isinstance(m, GatedPositionalAttention)]
        return torch.sigmoid(torch.stack(gates)).mean(dim=1)


def _start(model: ConViT, strength: float) -> None:
    """Give the positions and class token a truncated normal, and let the local blocks begin as convolutions."""
    check_positive("model.sizes.locality", strength)
    nn.init.trunc_normal_(model.position, std=0.02)
    nn.init.trunc_normal_(model.cls, std=0.02)
    for module in model.modules():
        if isinstance(module, GatedPositionalAttention):
            module.start_local(strength)


def _published(
    name: str, num_classes: int, image_size: int, in_channels: int, heads: int, drop_rate: float, locality: float
) -> ConViT:
    """Build a ConViT of the paper; they differ in their heads, each of 48 channels."""
    model = ConViT(
        num_classes,
        check_image_size(name, image_size, 16, 32),
        in_channels,
        patch=16,
        dim=48 * heads,
        heads=heads,
        depth=12,
        local_depth=10,
        mlp_ratio=4,
        drop_rate=check_fraction("model.sizes.drop_path", drop_rate),
    )
    initialise_linear(model)
    _start(model, locality)
    return model


def convit_tiny(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.1, locality: float = 1.0
) -> ConViT:
    """ConViT-Ti: 4 heads, 5.71 M parameters at 1000 classes.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 16; the learned positions depend on it.
        in_channels: I, 1 for grey and 3 for colour.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.
        locality: How sharply a head looks at its place at the start (alpha of equation 6).

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published("convit_tiny", num_classes, image_size, in_channels, 4, drop_path, locality)


def convit_small(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.1, locality: float = 1.0
) -> ConViT:
    """ConViT-S: 9 heads, 27.8 M parameters at 1000 classes.

    Arguments and errors are those of `convit_tiny`.
    """
    return _published("convit_small", num_classes, image_size, in_channels, 9, drop_path, locality)


def convit_base(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.1, locality: float = 1.0
) -> ConViT:
    """ConViT-B: 16 heads, 86.5 M parameters at 1000 classes.

    Arguments and errors are those of `convit_tiny`.
    """
    return _published("convit_base", num_classes, image_size, in_channels, 16, drop_path, locality)


def convit_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    patch: int = 4,
    dim: int = 64,
    heads: int = 4,
    depth: int = 4,
    local_depth: int = 3,
    mlp_ratio: int = 2,
    locality: float = 2.0,
    drop_path: float = 0.0,
) -> ConViT:
    """A small ConViT: 0.14 M parameters at 10 classes.

    For images of 8 to 32 px; not in the paper. Linear layers start as torch starts them, but for the head: from the
    deviation of 0.02 that suits the published sizes, this one learns markedly slower in its first steps.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of `patch`, of two at least; the learned positions depend
            on it.
        in_channels: I, 1 for grey and 3 for colour.
        patch: Side of a patch.
        dim: D, channels.
        heads: A, attention heads, a square; divides `dim`.
        depth: Number of blocks.
        local_depth: How many of them, the first, are local; fewer than `depth`.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        locality: How sharply a head looks at its place at the start (alpha of equation 6).
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_count("model.sizes.patch", patch)
    check_image_size("convit_tiny32", image_size, patch, 2 * patch)
    check_count("model.sizes.dim", dim)
    if isqrt(check_count("model.sizes.heads", heads)) ** 2 != heads:
        raise Refusal(
            f"model.sizes.heads should be the places of a square kernel, found {heads}.",
            key="model.sizes.heads",
            remedy="Use 4 or 9.",
        )
    if check_count("model.sizes.local_depth", local_depth) >= check_count("model.sizes.depth", depth):
        raise Refusal(
            f"model.sizes.local_depth should leave a block for the class token, found {local_depth} of {depth} blocks "
            "(model.sizes.depth).",
            key="model.sizes.local_depth",
        )
    model = ConViT(
        num_classes,
        image_size,
        in_channels,
        patch=patch,
        dim=dim,
        heads=check_divides("model.sizes.heads", heads, [dim], "model.sizes.dim"),
        depth=depth,
        local_depth=local_depth,
        mlp_ratio=check_count("model.sizes.mlp_ratio", mlp_ratio),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
    initialise_linear(model.head)
    _start(model, locality)
    return model
