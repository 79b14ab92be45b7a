"""TransNeXt: published counts, aggregated attention against loops, one softmax over both kinds of keys, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import check_forward, num_parameters, on_meta, perturbed, seeded_with
from umbel.models import build, describe
from umbel.models.norm import integer_buffer_names
from umbel.models.transnext import (
    AggregatedAttention,
    ConvGLU,
    CosineAttention,
    Stage,
    TransNeXtBlock,
    differences,
    outside_map,
    pooled_places,
)

PUBLISHED = ("transnext_micro", "transnext_tiny", "transnext_small")


seeded = seeded_with(7)


def stage(pool: int, side: int, dim: int = 6, heads: int = 2) -> Stage:
    """A stage of one block in float64 with random parameters."""
    fresh = Stage(3, dim, 3, 1, side, heads, 2, pool, 5, [0.3])
    return perturbed(fresh)


def geometry(of: Stage) -> tuple[torch.Tensor, ...]:
    return of.coordinates, of.index, of.length, of.outside


# Counts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "printed"), [*zip(PUBLISHED, ("12.8", "28.3", "49.7"), strict=True)])
def test_published_counts(name, printed):
    model = on_meta(name, 1000)
    assert f"{num_parameters(model) / 1e6:.1f}" == printed
    assert describe(name).endswith(f"{printed} M parameters at 1000 classes.")
    assert not any(isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) for m in model.modules())
    heads = [s.blocks[0].attention.heads for s in model.stages]
    assert [s.embed.out_channels // a for s, a in zip(model.stages, heads, strict=True)] == [24] * 4
    assert [s.index.shape for s in model.stages] == [(56**2, 49), (28**2, 49), (14**2, 49), (49, 49)]


def test_tiny_count():
    assert num_parameters(on_meta("transnext_tiny32", 10)) == 482_134


def test_the_geometry_is_not_part_of_the_state():
    model = build("transnext_tiny32", 10)
    assert integer_buffer_names(model) == frozenset()
    assert {name for name, _ in model.named_buffers()}.isdisjoint(model.state_dict())


# Geometry -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "pool"), [(4, 2), (6, 3), (5, 2), (3, 1), (3, 4)])
def test_differences_against_loops(side, pool):
    """Also where the pooling does not divide the side: 5 places in patches of 2, 2 and 1."""
    coordinates, index = differences(side, pool)
    patches = [list(range(side))[first : first + pool] for first in range(0, side, pool)]
    centres = [sum(patch) / len(patch) for patch in patches]
    assert pooled_places(side, pool) == [2 * centre for centre in centres]
    assert index.shape == (side * side, len(patches) ** 2)

    def spaced(difference):
        d = difference / (side - 1) * 8
        return math.copysign(math.log2(1 + abs(d)) / math.log2(8), d)

    for n in range(side * side):
        for p in range(len(patches) ** 2):
            (row, column), (patch_row, patch_column) = divmod(n, side), divmod(p, len(patches))
            expected = (spaced(row - centres[patch_row]), spaced(column - centres[patch_column]))
            assert coordinates[index[n, p]].tolist() == pytest.approx(expected, abs=1e-6)
    assert len(coordinates.unique(dim=0)) == len(coordinates) == len(index.unique())


def test_outside_and_length():
    outside = outside_map(3)
    assert [int(n) for n in outside.sum(dim=1)] == [5, 3, 5, 3, 0, 3, 5, 3, 5]
    assert outside[0].tolist() == [True, True, True, True, False, False, True, False, False]
    of = stage(pool=2, side=4)
    assert of.length[0].item() == pytest.approx(math.log(4 + 4))
    assert of.length[1].item() == pytest.approx(math.log(6 + 4))
    assert of.length[5].item() == pytest.approx(math.log(9 + 4))
    assert stage(pool=1, side=3).length.unique().item() == pytest.approx(math.log(9))


# The equations --------------------------------------------------------------------------------------------


def linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return x @ layer.weight.T + layer.bias


def unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.norm()


def slow_attention(attention: CosineAttention, tokens: torch.Tensor, side: int, pool: int | None) -> torch.Tensor:
    """One image's tokens [N, C], place by place; `pool` None is the attention of the last stage."""
    heads, width = attention.heads, tokens.shape[1] // attention.heads
    q, kv = linear(attention.q, tokens), linear(attention.kv, tokens)
    if pool is None:
        far = tokens
        patches = [[i] for i in range(side)]
    else:
        patches = [list(range(side))[first : first + pool] for first in range(0, side, pool)]
        active = F.gelu(linear(attention.reduce, tokens)).view(side, side, -1)
        pooled = torch.stack(
            [torch.stack([active[y, x] for y in ys for x in xs]).mean(0) for ys in patches for xs in patches]
        )
        far = F.layer_norm(pooled, pooled.shape[1:], attention.norm.weight, attention.norm.bias, 1e-6)
    far_kv = linear(attention.kv, far)

    def spaced(difference):
        d = difference / (side - 1) * 8
        return math.copysign(math.log2(1 + abs(d)) / 3, d)

    mixed = torch.zeros_like(tokens)
    for a in range(heads):
        own, values = slice(a * width, (a + 1) * width), slice((heads + a) * width, (heads + a + 1) * width)
        for n in range(side * side):
            row, column = divmod(n, side)
            near = [(row + dy, column + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)] if pool else []
            inside = [(i, y * side + x) for i, (y, x) in enumerate(near) if 0 <= y < side and 0 <= x < side]
            query = unit(q[n, own]) + attention.query_embedding[a, 0]
            query = query * math.log(1 + math.exp(attention.temperature[a])) * math.log(len(inside) + len(far))
            logits = [query @ unit(kv[m, own]) + attention.local_bias[a, 0, i] for i, m in inside]
            for p in range(len(far)):
                ys, xs = (patches[i] for i in divmod(p, len(patches)))
                place = torch.tensor([spaced(row - sum(ys) / len(ys)), spaced(column - sum(xs) / len(xs))]).double()
                bias = linear(attention.bias_fc2, linear(attention.bias_fc1, place).relu())[a]
                logits.append(query @ unit(far_kv[p, own]) + bias)
            shares = torch.stack(logits).exp()
            shares = list(shares / shares.sum())
            for share, (i, m) in zip(shares[: len(inside)], inside, strict=True):
                learned = unit(q[n, own]) @ attention.learned_tokens[a, :, i] + attention.learned_bias[a, 0, i]
                mixed[n, own] += (share + learned) * kv[m, values]
            for share, row_kv in zip(shares[len(inside) :], far_kv, strict=True):
                mixed[n, own] += share * row_kv[values]
    return linear(attention.out, mixed)


@pytest.mark.parametrize(("side", "pool"), [(4, 2), (3, 2)])
def test_aggregated_attention_against_loops(side, pool):
    of = stage(pool, side)
    attention, tokens = of.blocks[0].attention, torch.randn(2, side * side, 6).double()
    assert isinstance(attention, AggregatedAttention)
    with torch.no_grad():
        attended = attention(tokens, *geometry(of))
        for one, image in zip(attended, tokens, strict=True):
            torch.testing.assert_close(one, slow_attention(attention, image, side, pool), rtol=1e-5, atol=1e-5)


def test_the_last_stages_attention_against_loops():
    of = stage(pool=1, side=3)
    attention, tokens = of.blocks[0].attention, torch.randn(2, 9, 6).double()
    assert type(attention) is CosineAttention
    with torch.no_grad():
        attended = attention(tokens, *geometry(of))
        for one, image in zip(attended, tokens, strict=True):
            torch.testing.assert_close(one, slow_attention(attention, image, 3, None), rtol=1e-5, atol=1e-5)


def test_a_single_softmax_over_neighbours_and_pooled_keys():
    of = stage(pool=2, side=4)
    attention = of.blocks[0].attention
    queries, near, far = torch.randn(2, 2, 16, 3), torch.randn(2, 2, 3, 9, 16), torch.randn(2, 2, 4, 3)
    bias = torch.randn(2, 16, 4)
    shares = attention.float().shares(queries, near, far, bias, of.outside)
    assert shares.shape == (2, 2, 16, 9 + 4)
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(2, 2, 16))
    padding = F.pad(of.outside, (0, 4))
    assert not shares[:, :, padding].any()
    assert (shares[:, :, ~padding] > 0).all()
    # One softmax, not two: neither part sums to one by itself, and a pooled key takes from the neighbours.
    assert (shares[..., :9].sum(dim=-1) < 1).all()
    more = attention.shares(queries, near, far, bias + 1, of.outside)
    assert (more[..., :9].sum(dim=-1) < shares[..., :9].sum(dim=-1)).all()


def test_the_scale_begins_at_one_over_0_24():
    attention = CosineAttention(4, 2, 3)
    assert F.softplus(attention.temperature).flatten().tolist() == pytest.approx([1 / 0.24] * 2)


def test_conv_glu_against_loops():
    side, dim = 3, 4
    mlp, tokens = ConvGLU(dim, 2, side).double(), torch.randn(2, side * side, dim).double()
    assert mlp.fc1.out_features == 2 * 5  # int(2 * 2 * 4 / 3) = 5
    gate, values = linear(mlp.fc1, tokens).split((5, 5), dim=-1)
    mixed = torch.zeros_like(gate)
    for n in range(side * side):
        row, column = divmod(n, side)
        total = mlp.conv.bias.expand(2, 5)
        for dy in range(3):
            for dx in range(3):
                y, x = row + dy - 1, column + dx - 1
                if 0 <= y < side and 0 <= x < side:
                    total = total + mlp.conv.weight[:, 0, dy, dx] * gate[:, y * side + x]
        mixed[:, n] = F.gelu(total) * values[:, n]
    torch.testing.assert_close(mlp(tokens), linear(mlp.fc2, mixed))


def test_hidden_widths():
    model = on_meta("transnext_micro", 10)
    assert [s.blocks[0].mlp.fc2.in_features for s in model.stages] == [256, 512, 512, 1024]


def test_the_stage_is_embedding_blocks_and_norm():
    of, x = stage(pool=2, side=4), torch.randn(2, 3, 4, 4).double()
    block = of.blocks[0]
    tokens = F.conv2d(x, of.embed.weight, of.embed.bias, padding=1).flatten(2).transpose(1, 2)
    tokens = F.layer_norm(tokens, (6,), of.embed_norm.weight, of.embed_norm.bias)
    tokens = tokens + block.attention(block.norm1(tokens), *geometry(of))
    tokens = tokens + block.mlp(block.norm2(tokens))
    expected = of.norm(tokens).transpose(1, 2).view(2, 6, 4, 4)
    torch.testing.assert_close(of(x), expected)


# Forward --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_micro_at_64(training):
    check_forward(build("transnext_micro", 10, 64).train(training), 1, 2)


def test_logits_are_the_head_of_the_mean():
    model = build("transnext_tiny32", 4, 28, 1).eval()
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(model.features(x), model.stages(x).flatten(2).mean(dim=2))
    assert torch.equal(model(x), model.head(model.features(x)))
    assert [s.side for s in model.stages] == [14, 7, 4, 2]


def test_drop_path_rises_over_all_blocks():
    rates = [m.drop_rate for m in on_meta("transnext_micro", 10).modules() if isinstance(m, TransNeXtBlock)]
    assert rates == pytest.approx([0.3 * i / 20 for i in range(21)])


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("transnext_micro", {"image_size": 32}, r"model\.image_size.*Use 64"),
        ("transnext_tiny", {"image_size": 100}, r"model\.image_size.*Use 96"),
        ("transnext_small", {"drop_path": 1}, r"model\.sizes\.drop_path"),
        ("transnext_tiny32", {"image_size": 3}, r"model\.image_size.*Use 4"),
        ("transnext_tiny32", {"dims": [24, 48, 96]}, r"model\.sizes\.dims"),
        ("transnext_tiny32", {"depths": [1, 1, 1, 0]}, r"model\.sizes\.depths"),
        ("transnext_tiny32", {"heads": [1, 5, 4, 4]}, r"model\.sizes\.heads: 5 does not divide 48"),
        ("transnext_tiny32", {"pools": [4, 2, 1]}, r"model\.sizes\.pools"),
        ("transnext_tiny32", {"mlp_ratio": True}, r"model\.sizes\.mlp_ratio"),
        ("transnext_tiny32", {"bias_hidden": 0}, r"model\.sizes\.bias_hidden"),
        ("transnext_tiny32", {"drop_path": 1.5}, r"model\.sizes\.drop_path"),
    ],
)
def test_errors_name_the_key(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        on_meta(name, 10, **sizes)
