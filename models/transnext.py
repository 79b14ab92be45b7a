"""TransNeXt: each token attends to its neighbours one by one and to the pooled map, in one softmax.

Source: Shi 2024, "TransNeXt: Robust Foveal Visual Perception for Vision Transformers" (arXiv 2311.17132): section 3.1
for pixel-focused and aggregated attention, 3.2 for the scale by the number of keys and for the bias of log-spaced
coordinates, 3.3 for the convolutional GLU, table 1 for the sizes. Written from the equations.

Deviations: keys of a side that the pooling does not divide come from a last, smaller patch (no published size has one).
`transnext_tiny32` embeds by 3 x 3 convolutions and has a narrower MLP for the bias.

Shapes: B batch, I input channels, H side of a map, N = H H tokens, P pooled keys, L = 9 neighbours, C channels of a
stage, A heads, E = C / A channels of a head, M differences of places, D features (C of the last stage), K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.base import Block, Model, check_count, check_counts, check_divides, check_fraction, check_image_size
from umbel.models.layers import (
    depthwise,
    drop_path,
    drop_rates,
    halving_strides,
    initialise_linear,
    join_heads,
    split_heads,
    to_map,
    to_tokens,
)

NEIGHBOURS = 9


def pooled_places(side: int, pool: int) -> list[int]:
    """Return twice the centre of each patch of `pool` places along an axis of `side`; the last may be smaller."""
    return [first + min(first + pool, side) - 1 for first in range(0, side, pool)]


def differences(side: int, pool: int) -> tuple[Tensor, Tensor]:
    """Return the coordinates of all differences of a query's and a key's place, and which one each pair has.

    Returns:
        Coordinates [M, 2], y and x: the difference in units of an eighth of the map, d, as sign(d) log2(1 + |d|) / 3.
        Indices into them [N, P], both row-major.
    """
    # Twice the places, so that centres are whole numbers: equal differences are equal, without rounding.
    axis = [[2 * query - key for key in pooled_places(side, pool)] for query in range(side)]
    distinct = sorted({difference for row in axis for difference in row})
    scaled = [difference / 2 / (side - 1) * 8 for difference in distinct]
    spaced = [math.copysign(math.log2(1 + abs(d)) / 3, d) for d in scaled]
    coordinates = torch.tensor([[y, x] for y in spaced for x in spaced])
    which = torch.tensor([[distinct.index(difference) for difference in row] for row in axis])
    index = which[:, None, :, None] * len(distinct) + which[None, :, None, :]
    return coordinates, index.reshape(side * side, -1)


def outside_map(side: int) -> Tensor:
    """Say which of the 3 x 3 neighbours of each place lie outside a map, [N, L], neighbours row-major."""
    inside = F.unfold(torch.ones(1, 1, side, side), kernel_size=3, padding=1)
    return inside[0].T == 0


class CosineAttention(nn.Module):
    """Attention of unit queries and keys, a learned query embedding added to the query (last stage).

    The logits are scaled by softplus(tau), which starts at 1 / 0.24, and by the logarithm of the number of keys.
    """

    def __init__(self, dim: int, heads: int, bias_hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), math.log(math.expm1(1 / 0.24))))
        self.query_embedding = nn.Parameter(torch.empty(heads, 1, dim // heads))
        nn.init.trunc_normal_(self.query_embedding, std=0.02)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.bias_fc1 = nn.Linear(2, bias_hidden)
        self.bias_fc2 = nn.Linear(bias_hidden, heads)
        self.out = nn.Linear(dim, dim)

    def queries(self, tokens: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Return the unit queries and the scaled ones with the embedding, [B, A, N, E] each."""
        (unit,) = split_heads(self.q(tokens), self.heads)
        unit = F.normalize(unit, dim=-1)
        return unit, (unit + self.query_embedding) * F.softplus(self.temperature) * length

    def bias(self, coordinates: Tensor, index: Tensor) -> Tensor:
        """Return the bias of each query and key, [A, N, P]."""
        table: Tensor = self.bias_fc2(F.relu(self.bias_fc1(coordinates)))
        return table.T[:, index]

    def forward(self, tokens: Tensor, coordinates: Tensor, index: Tensor, length: Tensor, outside: Tensor) -> Tensor:
        """Return attended tokens [B, N, C] of tokens [B, N, C]; the other inputs are buffers of `Stage`."""
        _, queries = self.queries(tokens, length)
        keys, values = split_heads(self.kv(tokens), self.heads, 2)
        keys = F.normalize(keys, dim=-1)
        bias = self.bias(coordinates, index).to(values.dtype)
        mixed = F.scaled_dot_product_attention(
            queries.to(values.dtype), keys.to(values.dtype), values, attn_mask=bias, scale=1.0
        )
        attended: Tensor = self.out(join_heads(mixed))
        return attended


class AggregatedAttention(CosineAttention):
    """Attention to the 3 x 3 neighbours and to pooled keys, with learned tokens (equations of section 3.1).

    out = (a_local + unit query T + t) V_local + a_pooled V_pooled, where (a_local, a_pooled) is one softmax and T and t
    are learned: its weights do not compete with each other.
    """

    def __init__(self, dim: int, heads: int, bias_hidden: int, side: int, pool: int) -> None:
        super().__init__(dim, heads, bias_hidden)
        self.side = side
        self.pool = pool
        self.reduce = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.local_bias = nn.Parameter(torch.empty(heads, 1, NEIGHBOURS))
        nn.init.trunc_normal_(self.local_bias, std=0.0004)
        self.learned_tokens = nn.Parameter(torch.empty(heads, dim // heads, NEIGHBOURS))
        nn.init.trunc_normal_(self.learned_tokens, std=0.02)
        self.learned_bias = nn.Parameter(torch.zeros(heads, 1, NEIGHBOURS))

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return pooled tokens [B, P, C]."""
        # With `ceil_mode`, a patch that the side cuts off is the mean of what it has.
        image_map = F.avg_pool2d(
            to_map(F.gelu(self.reduce(tokens)), self.side, self.side), self.pool, self.pool, ceil_mode=True
        )
        pooled: Tensor = self.norm(to_tokens(image_map))
        return pooled

    def neighbours(self, tokens: Tensor) -> Tensor:
        """Return the 3 x 3 neighbours of tokens [B, A, N, E], zero outside the map, as [B, A, E, L, N]."""
        batch, heads, length, width = tokens.shape
        image_map = tokens.transpose(2, 3).reshape(batch, heads * width, self.side, self.side)
        # N last: long rows are what a CPU is fast at.
        return F.unfold(image_map, kernel_size=3, padding=1).view(batch, heads, width, NEIGHBOURS, length)

    def shares(self, queries: Tensor, near: Tensor, far: Tensor, bias: Tensor, outside: Tensor) -> Tensor:
        """Return the softmax over neighbours and pooled keys together, [B, A, N, L + P].

        Args:
            queries: Scaled queries [B, A, N, E].
            near: Unit keys of the neighbours [B, A, E, L, N].
            far: Unit pooled keys [B, A, P, E].
            bias: Of the pooled keys, [A, N, P].
            outside: Which neighbours are no keys, [N, L].
        """
        local = (queries.transpose(2, 3).unsqueeze(3) * near).sum(dim=2).transpose(2, 3) + self.local_bias
        local = local.masked_fill(outside, -math.inf)
        return torch.cat((local, queries @ far.transpose(2, 3) + bias), dim=-1).softmax(dim=-1)

    def forward(self, tokens: Tensor, coordinates: Tensor, index: Tensor, length: Tensor, outside: Tensor) -> Tensor:
        """Return attended tokens [B, N, C] of tokens [B, N, C]; the other inputs are buffers of `Stage`."""
        unit, queries = self.queries(tokens, length)
        keys, values = split_heads(self.kv(tokens), self.heads, 2)
        far_keys, far_values = split_heads(self.kv(self.pooled(tokens)), self.heads, 2)
        bias = self.bias(coordinates, index)
        near = self.neighbours(F.normalize(keys, dim=-1))
        shares = self.shares(queries, near, F.normalize(far_keys, dim=-1), bias, outside)
        local = shares[..., :NEIGHBOURS] + (unit @ self.learned_tokens + self.learned_bias)
        mixed = (local.transpose(2, 3).unsqueeze(2) * self.neighbours(values)).sum(dim=3).transpose(2, 3)
        mixed = mixed + shares[..., NEIGHBOURS:] @ far_values
        attended: Tensor = self.out(join_heads(mixed))
        return attended


class ConvGLU(nn.Module):
    """Linear((GELU(depthwise 3 x 3 of a)) v), where a and v are halves of a linear map (section 3.3)."""

    def __init__(self, dim: int, ratio: int, side: int) -> None:
        super().__init__()
        hidden = 2 * ratio * dim // 3
        self.side = side
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.conv = depthwise(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, N, C] of tokens [B, N, C]."""
        gate, values = self.fc1(tokens).chunk(2, dim=-1)
        gate = to_tokens(self.conv(gate.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)))
        mixed: Tensor = self.fc2(F.gelu(gate) * values)
        return mixed


class TransNeXtBlock(Block):
    """Pre-norm block: x += attention(LN x); x += ConvGLU(LN x)."""

    def __init__(self, attention: nn.Module, dim: int, mlp_ratio: int, side: int, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = ConvGLU(dim, mlp_ratio, side)

    def forward(self, tokens: Tensor, coordinates: Tensor, index: Tensor, length: Tensor, outside: Tensor) -> Tensor:
        """Return tokens [B, N, C] of tokens [B, N, C]; the other inputs are buffers of `Stage`."""
        branch = self.attention(self.norm1(tokens), coordinates, index, length, outside)
        tokens = tokens + drop_path(branch, self.drop_rate, self.training)
        return tokens + drop_path(self.mlp(self.norm2(tokens)), self.drop_rate, self.training)


class Stage(nn.Module):
    """Overlapping patch embedding with layer norm, blocks, layer norm.

    A pooling of 1 stands for ordinary attention, with the same scale and bias. The geometry is the same for all blocks
    and made anew with the model, so it is not part of the state.
    """

    coordinates: Tensor
    index: Tensor
    length: Tensor
    outside: Tensor

    def __init__(
        self,
        inputs: int,
        dim: int,
        kernel: int,
        stride: int,
        side: int,
        heads: int,
        mlp_ratio: int,
        pool: int,
        bias_hidden: int,
        rates: Sequence[float],
    ) -> None:
        super().__init__()
        self.side = side
        self.embed = nn.Conv2d(inputs, dim, kernel, stride, kernel // 2)
        self.embed_norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList()
        for rate in rates:
            attention = (
                CosineAttention(dim, heads, bias_hidden)
                if pool == 1
                else AggregatedAttention(dim, heads, bias_hidden, side, pool)
            )
            self.blocks.append(TransNeXtBlock(attention, dim, mlp_ratio, side, rate))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        coordinates, index = differences(side, pool)
        outside = outside_map(side)
        near = 0 if pool == 1 else NEIGHBOURS - outside.sum(dim=1)
        length = torch.log(torch.zeros(side * side) + near + index.shape[1]).unsqueeze(1)
        self.register_buffer("coordinates", coordinates, persistent=False)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("length", length, persistent=False)
        self.register_buffer("outside", outside, persistent=False)

    def forward(self, image_map: Tensor) -> Tensor:
        """Return the map [B, C, H, H] of this stage, of the map of the stage before."""
        tokens = self.embed_norm(to_tokens(self.embed(image_map)))
        for block in self.blocks:
            tokens = block(tokens, self.coordinates, self.index, self.length, self.outside)
        return to_map(self.norm(tokens), self.side, self.side)


class TransNeXt(Model):
    """Four stages; the features are the mean of the last stage's tokens.

    Parameters have the same shapes at every size of image.

    Args:
        num_classes: K.
        image_size: H of an image.
        in_channels: I.
        dims: Channels of each stage.
        depths: Blocks of each stage.
        heads: A of each stage.
        mlp_ratios: Hidden width of a ConvGLU as a multiple of the channels, of which it has two thirds.
        pools: Side of the patches that a stage pools its keys from; 1 for ordinary attention.
        kernels: Side of the convolution that opens each stage.
        strides: Its stride.
        bias_hidden: Hidden width of the MLPs from coordinates to bias.
        drop_rate: Stochastic depth of the last block; it rises linearly from 0.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        mlp_ratios: Sequence[int],
        pools: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        bias_hidden: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = dims[-1]
        self.in_channels = in_channels
        self.image_size = image_size
        stages: list[nn.Module] = []
        inputs, side = in_channels, image_size
        for number, rates in enumerate(drop_rates(depths, drop_rate)):
            dim, stride = dims[number], strides[number]
            side = -(-side // stride)
            blocks = (heads[number], mlp_ratios[number], pools[number], bias_hidden, rates)
            stages.append(Stage(inputs, dim, kernels[number], stride, side, *blocks))
            inputs = dim
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, H]."""
        self.check_input(x)
        features: Tensor = self.stages(x).mean(dim=(2, 3))
        return features


# name -> channels of the first stage, depths
PUBLISHED: dict[str, tuple[int, tuple[int, ...]]] = {
    "transnext_micro": (48, (2, 2, 15, 2)),
    "transnext_tiny": (72, (2, 2, 15, 2)),
    "transnext_small": (72, (5, 5, 22, 5)),
}


def _published(name: str, num_classes: int, image_size: int, in_channels: int, drop_rate: float) -> TransNeXt:
    """Build a TransNeXt of table 1: channels and heads double, heads have 24 channels each."""
    check_image_size(name, image_size, 32, least=64)
    dim, depths = PUBLISHED[name]
    model = TransNeXt(
        num_classes,
        image_size,
        in_channels,
        dims=[dim * 2**stage for stage in range(4)],
        depths=depths,
        heads=[dim // 24 * 2**stage for stage in range(4)],
        mlp_ratios=(8, 8, 4, 4),
        pools=(8, 4, 2, 1),
        kernels=(7, 3, 3, 3),
        strides=(4, 2, 2, 2),
        bias_hidden=512,
        drop_rate=check_fraction("model.sizes.drop_path", drop_rate),
    )
    initialise_linear(model)
    return model


def transnext_micro(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.3
) -> TransNeXt:
    """TransNeXt-Micro: 21 blocks, 12.8 M parameters at 1000 classes.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 32, 64 or more: the coordinates of a map of a single
            token have no scale.
        in_channels: I, 1 for grey and 3 for colour.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published("transnext_micro", num_classes, image_size, in_channels, drop_path)


def transnext_tiny(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.4
) -> TransNeXt:
    """TransNeXt-Tiny: 21 blocks, 28.3 M parameters at 1000 classes.

    The authors print 28.2 M in places: 28.26 cut off.

    Arguments and errors are those of `transnext_micro`.
    """
    return _published("transnext_tiny", num_classes, image_size, in_channels, drop_path)


def transnext_small(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.5
) -> TransNeXt:
    """TransNeXt-Small: 37 blocks, 49.7 M parameters at 1000 classes.

    Arguments and errors are those of `transnext_micro`.
    """
    return _published("transnext_small", num_classes, image_size, in_channels, drop_path)


def transnext_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (24, 48, 96, 128),
    depths: Sequence[int] = (1, 1, 2, 1),
    heads: Sequence[int] = (1, 2, 4, 4),
    pools: Sequence[int] = (4, 2, 1, 1),
    mlp_ratio: int = 2,
    bias_hidden: int = 32,
    drop_path: float = 0.0,
) -> TransNeXt:
    """A small TransNeXt: 0.48 M parameters at 10 classes.

    For images of 28 and 32 px; not in the paper. Parameters have the same shapes at every size of image, and a batch of
    one trains: there is no batch norm.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the four stages.
        depths: Blocks of the four stages.
        heads: Attention heads of the four stages; each divides its channels.
        pools: Side of the patches that a stage pools its keys from; 1 for ordinary attention.
        mlp_ratio: Hidden width of a ConvGLU as a multiple of the channels, of which it has two thirds.
        bias_hidden: Hidden width of the MLPs from coordinates to bias.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("transnext_tiny32", image_size, 1, least=4)
    dims = check_counts("model.sizes.dims", dims, 4)
    heads = check_counts("model.sizes.heads", heads, 4)
    for dim, head in zip(dims, heads, strict=True):
        check_divides("model.sizes.heads", head, [dim])
    return TransNeXt(
        num_classes,
        image_size,
        in_channels,
        dims=dims,
        depths=check_counts("model.sizes.depths", depths, 4),
        heads=heads,
        mlp_ratios=[check_count("model.sizes.mlp_ratio", mlp_ratio)] * 4,
        pools=check_counts("model.sizes.pools", pools, 4),
        kernels=(3, 3, 3, 3),
        strides=halving_strides(image_size, 4),  # the coordinates of a single token have no scale
        bias_hidden=check_count("model.sizes.bias_hidden", bias_hidden),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
