"""CvT: published counts, its attention against loops, and where its stochastic depth rises."""

import math

import pytest
import torch
from torch import nn

from tests.models_helpers import count, num_parameters, seeded_with
from umbel.models import build
from umbel.models.cvt import Attention

seeded = seeded_with(7)


@pytest.mark.parametrize(("name", "printed"), [("cvt_13", "20.0"), ("cvt_21", "31.6")])
def test_published_counts(name, printed):
    with torch.device("meta"):
        model = build(name, 1000)
    assert f"{num_parameters(model) / 1e6:.1f}" == printed
    blocks = int(name[-2:])
    assert count(model, nn.BatchNorm2d) == 3 * blocks
    assert count(model, nn.LayerNorm) == 3 + 2 * blocks + 1
    assert all(norm.eps == 1e-5 for norm in model.modules() if isinstance(norm, nn.LayerNorm))


def test_cvt_13_norm_layers_are_39_and_30():
    with torch.device("meta"):
        model = build("cvt_13", 1000)
    assert (count(model, nn.BatchNorm2d), count(model, nn.LayerNorm)) == (39, 30)


def test_tiny_count_does_not_depend_on_the_image_size():
    shapes = [
        {key: value.shape for key, value in build("cvt_tiny32", 10, size, 1).state_dict().items()}
        for size in (8, 28, 32)
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    assert num_parameters(build("cvt_tiny32", 10, 28, 1)) == 157_978


@pytest.mark.parametrize("size", [19, 32, 35, 48])
def test_cvt_13_at_small_images(size):
    model = build("cvt_13", 10, size)
    batch = 1 if size >= 35 else 2
    assert model(torch.randn(batch, 3, size, size)).shape == (batch, 10)


@pytest.mark.parametrize(("size", "sides"), [(8, (8, 4, 4)), (16, (16, 8, 4)), (28, (14, 7, 4)), (32, (16, 8, 4))])
def test_tiny_maps(size, sides):
    model = build("cvt_tiny32", 10, size, 1)
    seen = []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, __, output: seen.append(output[1:]))
    model(torch.randn(1, 1, size, size))
    assert seen == [(side, side) for side in sides]


def test_tiny_learns():
    model = build("cvt_tiny32", 2, 8, 1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    x = torch.randn(64, 1, 8, 8)
    y = torch.arange(64) % 2
    x[y == 1, :, :4] += 1  # the upper half is brighter
    for _ in range(20):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1


def slow_projection(projection, tokens, side, stride):
    """Depthwise 3 x 3 with padding 1, and batch norm in eval mode, by loops."""
    out_side = math.ceil(side / stride)
    norm, weight = projection.norm, projection.conv.weight
    out = torch.zeros(len(tokens), out_side * out_side, tokens.shape[2])
    for row in range(out_side):
        for column in range(out_side):
            for dy in range(3):
                for dx in range(3):
                    y, x = row * stride + dy - 1, column * stride + dx - 1
                    if 0 <= y < side and 0 <= x < side:
                        out[:, row * out_side + column] += weight[:, 0, dy, dx] * tokens[:, y * side + x]
    return (out - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * norm.weight + norm.bias


@pytest.mark.parametrize("with_cls", [False, True])
@pytest.mark.parametrize("side", [4, 5])
def test_attention_against_loops(with_cls, side):
    dim, heads = 6, 2
    attention = Attention(dim, heads, with_cls).eval()
    for module in attention.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    tokens = torch.randn(2, side * side + with_cls, dim)
    with torch.no_grad():
        output = attention(tokens, side, side)
        parts = []
        for projection, linear, stride in (
            (attention.conv_q, attention.q, 1),
            (attention.conv_k, attention.k, 2),
            (attention.conv_v, attention.v, 2),
        ):
            part = slow_projection(projection, tokens[:, with_cls:], side, stride)
            parts.append(linear(torch.cat((tokens[:, :1], part), 1) if with_cls else part))
        q, k, v = parts
        assert k.shape[1] == math.ceil(side / 2) ** 2 + with_cls
        mixed = torch.zeros_like(q)
        for head in range(heads):
            own = slice(head * dim // heads, (head + 1) * dim // heads)
            for b in range(2):
                for n in range(q.shape[1]):
                    # The scale is that of all the channels, not of a head's.
                    scores = torch.stack([q[b, n, own] @ k[b, m, own] for m in range(k.shape[1])]) / dim**0.5
                    shares = scores.exp() / scores.exp().sum()
                    mixed[b, n, own] = sum(share * v[b, m, own] for m, share in enumerate(shares))
        expected = attention.out(mixed)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_drop_path_rises_within_the_last_stage_only():
    with torch.device("meta"):
        model = build("cvt_13", 10, drop_path=0.18)
    rates = [[block.drop_rate for block in stage.blocks] for stage in model.stages]
    assert rates[:2] == [[0], [0, 0]]
    assert rates[2] == pytest.approx([0.02 * i for i in range(10)])


def test_drop_path_of_a_single_block_takes_effect():
    model = build("cvt_tiny32", 10, drop_path=0.5)
    assert [stage.blocks[0].drop_rate for stage in model.stages] == [0, 0, 0.5]
