"""ConViT: published counts, the gated attention against loops, and its start as a convolution."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import num_parameters, on_meta, seeded_with
from umbel.models import build
from umbel.models.convit import GatedPositionalAttention, relative_places
from umbel.models.layers import SelfAttention
from umbel.models.norm import batch_norm_names, replace_batch_norm

seeded = seeded_with(7)


# Counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published", "heads"),
    [("convit_tiny", "5.71", 4), ("convit_small", "27.8", 9), ("convit_base", "86.5", 16)],
)
def test_published_counts(name, published, heads):
    model = on_meta(name, 1000)
    digits = len(published.partition(".")[2])
    assert f"{num_parameters(model) / 1e6:.{digits}f}" == published
    assert model.num_features == 48 * heads
    assert [type(block.attention) for block in [*model.local_blocks, *model.blocks]] == [
        *10 * [GatedPositionalAttention],
        *2 * [SelfAttention],
    ]
    assert {norm.eps for norm in model.modules() if isinstance(norm, nn.LayerNorm)} == {1e-6}
    assert batch_norm_names(model) == frozenset()


def test_tiny32_count_and_state():
    model = build("convit_tiny32", 10)
    assert num_parameters(model) == 141_254
    assert num_parameters(build("convit_tiny32", 10, 28, 1)) == 141_254 - 2 * 16 * 64 - (64 - 49) * 64
    assert all(tensor.is_floating_point() for tensor in model.state_dict().values())
    assert "places" not in model.state_dict()
    assert [*model.state_dict()][-2:] == ["head.weight", "head.bias"]


# Forward ----------------------------------------------------------------------------------------------------


def test_convit_tiny_at_a_small_size():
    assert build("convit_tiny", 10, 48, 1)(torch.randn(1, 1, 48, 48)).shape == (1, 10)


def test_all_parameters_learn_but_the_bias_before_the_softmax():
    model = build("convit_tiny32", 10, 28, 1).double()
    F.cross_entropy(model(torch.randn(4, 1, 28, 28).double()), torch.arange(4)).backward()
    still = {name for name, p in model.named_parameters() if p.grad.abs().max() < 1e-12}
    assert still == {f"local_blocks.{i}.attention.position.bias" for i in range(len(model.local_blocks))}


def test_group_norm_has_nothing_to_replace():
    model = build("convit_tiny32", 10, 28, 1)
    assert num_parameters(replace_batch_norm(model)) == num_parameters(build("convit_tiny32", 10, 28, 1))


# Gated positional attention ---------------------------------------------------------------------------------


def test_relative_places():
    places = relative_places(3)
    assert places.shape == (9, 9, 3)
    for query in range(9):
        for key in range(9):
            dx, dy = key % 3 - query % 3, key // 3 - query // 3
            assert places[query, key].tolist() == [dx, dy, dx * dx + dy * dy]


def test_attention_against_loops():
    dim, heads, side = 8, 4, 3
    attention = GatedPositionalAttention(dim, heads)
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    tokens = torch.randn(2, side * side, dim)
    with torch.no_grad():
        attended = attention(tokens, relative_places(side))
        q, k = tokens @ attention.qk.weight[:dim].T, tokens @ attention.qk.weight[dim:].T
        v = tokens @ attention.v.weight.T
        mixed = torch.zeros_like(v)
        for b in range(2):
            for head in range(heads):
                own = slice(2 * head, 2 * head + 2)
                share = 1 / (1 + math.exp(-attention.gate[head].item()))
                for i in range(9):
                    content = torch.stack([q[b, i, own] @ k[b, j, own] / math.sqrt(2) for j in range(9)]).exp()
                    place = torch.zeros(9)
                    for j in range(9):
                        dx, dy = j % 3 - i % 3, j // 3 - i // 3
                        r = torch.tensor([dx, dy, dx * dx + dy * dy], dtype=torch.float32)
                        place[j] = attention.position.weight[head] @ r + attention.position.bias[head]
                    place = (place - place.max()).exp()
                    weights = (1 - share) * content / content.sum() + share * place / place.sum()
                    assert weights.sum().item() == pytest.approx(1)
                    mixed[b, i, own] = sum(weights[j] * v[b, j, own] for j in range(9))
        expected = attention.out(mixed)
    torch.testing.assert_close(attended, expected, rtol=1e-4, atol=1e-4)


def test_local_start_is_a_convolution():
    """With sharp heads and open gates: a 3 x 3 convolution whose weights are those of the output layer."""
    dim, heads, height = 18, 9, 5
    attention = GatedPositionalAttention(dim, heads)
    attention.start_local(strength=50.0)
    nn.init.constant_(attention.gate, 50.0)
    x = torch.randn(2, dim, height, height)
    # Head (row, column) carries channels 2 head and 2 head + 1 from the place one step before, at or behind.
    weight = torch.zeros(dim, dim, 3, 3)
    with torch.no_grad():
        for channel in range(dim):
            row, column = divmod(channel // 2, 3)
            weight[:, channel, row, column] = attention.out.weight[:, channel]
        # Beyond the border the nearest place is looked at.
        expected = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight, attention.out.bias)
        attended = attention(x.flatten(2).transpose(1, 2), relative_places(height))
    torch.testing.assert_close(attended.transpose(1, 2).view_as(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("heads", [4, 9])
def test_local_start_looks_around_its_places(heads, strength):
    attention = GatedPositionalAttention(6 * heads, heads)
    attention.start_local(strength)
    kernel, side = math.isqrt(heads), 4
    with torch.no_grad():
        shares = attention.positional(relative_places(side))
    for head in range(heads):
        dy, dx = (place - (kernel - 1) / 2 for place in divmod(head, kernel))
        for i in range(side * side):
            distances = [
                (j // side - i // side - dy) ** 2 + (j % side - i % side - dx) ** 2 for j in range(side * side)
            ]
            weights = torch.tensor(distances).mul(-strength).exp()
            torch.testing.assert_close(shares[head, i], weights / weights.sum(), rtol=1e-4, atol=1e-6)


def test_every_local_block_starts_local():
    model = build("convit_tiny32", 10, 28, 1, locality=0.5)
    for block in model.local_blocks:
        assert torch.equal(block.attention.v.weight, torch.eye(64))
        assert block.attention.position.weight.tolist() == [[dx, dy, -0.5] for dy in (-0.5, 0.5) for dx in (-0.5, 0.5)]
    torch.testing.assert_close(model.locality(), torch.full((3,), 1 / (1 + math.exp(-1))))


def test_positional_attention_is_not_rounded_under_autocast():
    attention, places = GatedPositionalAttention(8, 4), relative_places(14)
    attention.start_local(1.0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        shares = attention.positional(places)
    assert shares.dtype == torch.float32
    assert torch.equal(shares, attention.positional(places))


def test_class_token_joins_behind_the_local_blocks():
    model, seen = build("convit_tiny32", 10, 28, 1), []
    for block in [*model.local_blocks, *model.blocks]:
        block.register_forward_hook(lambda _, inputs, __: seen.append((len(inputs), inputs[0].shape[1])))
    model(torch.randn(1, 1, 28, 28))
    assert seen == [*3 * [(2, 49)], (1, 50)]


# Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "sizes", "message"),
    [
        ("convit_tiny", 230, {}, r"model\.image_size.*multiple of 16.*Use 224"),
        ("convit_base", 224, {"locality": 0}, r"model\.sizes\.locality.*found 0"),
        ("convit_small", 224, {"drop_path": 1.0}, r"model\.sizes\.drop_path.*found 1\.0"),
        ("convit_tiny32", 30, {}, r"model\.image_size.*multiple of 4.*found 30"),
        ("convit_tiny32", 32, {"heads": 8}, r"model\.sizes\.heads.*square.*found 8"),
        ("convit_tiny32", 32, {"heads": 9}, r"model\.sizes\.heads: 9 does not divide 64 .*model\.sizes\.dim\b"),
        ("convit_tiny32", 32, {"local_depth": 4}, r"model\.sizes\.local_depth.*found 4 of 4"),
        ("convit_tiny32", 32, {"depth": True}, r"model\.sizes\.depth .*found True"),
        ("convit_tiny32", 32, {"patch": 0}, r"model\.sizes\.patch.*found 0"),
        ("convit_tiny32", 32, {"dim": 0}, r"model\.sizes\.dim .*found 0"),
        ("convit_tiny32", 32, {"mlp_ratio": 0.5}, r"model\.sizes\.mlp_ratio.*found 0\.5"),
    ],
)
def test_errors(name, size, sizes, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build(name, 10, size, **sizes)
