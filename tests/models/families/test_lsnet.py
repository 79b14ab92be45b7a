"""LSNet: published counts, the LS convolution and its neighbours against loops, sizes and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import check_forward, num_parameters, on_meta, perturbed, seeded_with
from umbel.models import build, describe
from umbel.models.layers import ConvNorm
from umbel.models.lsnet import Attention, LSConv, LSNetBlock, RepConv, gather_small
from umbel.models.norm import integer_buffer_names, replace_batch_norm

PUBLISHED = ("lsnet_t", "lsnet_s", "lsnet_b")


seeded = seeded_with(7)


def normed(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """Batch norm in eval mode, of channels last."""
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def pointwise(layer: ConvNorm, x: torch.Tensor) -> torch.Tensor:
    """A 1 x 1 convolution and batch norm, of channels last."""
    return normed(layer.norm, x @ layer.conv.weight[:, :, 0, 0].T)


def depthwise(layer: ConvNorm, x: torch.Tensor) -> torch.Tensor:
    """A depthwise convolution and batch norm of a map [B, H, W, C], by loops."""
    kernel = layer.conv.weight.shape[2]
    convolved = torch.zeros_like(x)
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            for dy in range(kernel):
                for dx in range(kernel):
                    y, z = row + dy - kernel // 2, column + dx - kernel // 2
                    if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                        convolved[:, row, column] += layer.conv.weight[:, 0, dy, dx] * x[:, y, z]
    return normed(layer.norm, convolved)


# Counts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "trained", "folded"),
    [("lsnet_t", "11.4", "11.4"), ("lsnet_s", "16.1", "16.1"), ("lsnet_b", "23.3", "23.2")],
)
def test_published_counts(name, trained, folded):
    """The paper prints what is left once batch norm is folded; the two agree but for LSNet-B."""
    model = on_meta(name, 1000)
    count = num_parameters(model)
    assert f"{count / 1e6:.1f}" == trained
    assert describe(name).endswith(f"{trained} M parameters at 1000 classes.")
    # A fold takes two vectors and leaves a bias; a RepConv is then one depthwise 3 x 3; the head has a bias already.
    fewer = sum(m.norm.num_features for m in model.modules() if isinstance(m, ConvNorm))
    fewer += sum(2 * m.point.norm.num_features for m in model.modules() if isinstance(m, RepConv))
    assert f"{(count - fewer - 2 * model.num_features) / 1e6:.1f}" == folded
    assert num_parameters(replace_batch_norm(model)) == count


def test_batch_norms_of_t():
    model = on_meta("lsnet_t", 10)
    assert sum(isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) for m in model.modules()) == 105
    assert model.stages[3][3].mixer.bias.shape == (4, 16)  # 4 x 4 places at 224 px


def test_tiny_count():
    assert num_parameters(on_meta("lsnet_tiny32", 10)) == 330_748


def test_mixers_alternate():
    mixers = [[type(b.mixer) for b in stage if isinstance(b, LSNetBlock)] for stage in on_meta("lsnet_s", 10).stages]
    assert mixers == [[RepConv], [RepConv, LSConv], [RepConv, LSConv] * 4, [RepConv, Attention] * 5]


def test_the_index_is_not_part_of_the_state():
    model = build("lsnet_tiny32", 10)
    assert not any(name.endswith("index") for name in model.state_dict())
    assert all(name.endswith("num_batches_tracked") for name in integer_buffer_names(model))


# The equations --------------------------------------------------------------------------------------------


def slow_gather(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    gathered = torch.zeros_like(x)
    _, channels, height, width = x.shape
    groups = weights.shape[1]
    for c in range(channels):
        for row in range(height):
            for column in range(width):
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        y, z = row + dy, column + dx
                        if 0 <= y < height and 0 <= z < width:
                            weight = weights[:, c % groups, 3 * (dy + 1) + dx + 1, row, column]
                            gathered[:, c, row, column] += weight * x[:, c, y, z]
    return gathered


def test_the_small_kernel_against_loops():
    x, weights = torch.randn(2, 6, 3, 4).double(), torch.randn(2, 3, 9, 3, 4).double()
    torch.testing.assert_close(gather_small(x, weights), slow_gather(x, weights))


def test_ls_conv_against_loops():
    conv, x = perturbed(LSConv(16)), torch.randn(2, 16, 4, 5).double()
    rows = x.permute(0, 2, 3, 1)
    seen = pointwise(conv.mix, depthwise(conv.large, F.relu(pointwise(conv.reduce, rows)))).relu()
    raw = seen @ conv.weigh.weight[:, :, 0, 0].T + conv.weigh.bias
    weights = torch.zeros(2, 2, 9, 4, 5).double()
    for b in range(2):
        for group in range(2):  # the nine weights of a group lie together, and are normalised over the map
            own = slice(9 * group, 9 * group + 9)
            part = raw[b, :, :, own]
            scaled = (part - part.mean()) / (part.var(correction=0) + 1e-5).sqrt()
            scaled = scaled * conv.weights_norm.weight[own] + conv.weights_norm.bias[own]
            weights[b, group] = scaled.permute(2, 0, 1)
    expected = rows + normed(conv.norm, slow_gather(x, weights).permute(0, 2, 3, 1))
    torch.testing.assert_close(conv(x), expected.permute(0, 3, 1, 2))


def test_rep_conv_against_loops():
    conv, x = perturbed(RepConv(8)), torch.randn(2, 8, 3, 4).double()
    rows = x.permute(0, 2, 3, 1)
    total = rows + depthwise(conv.square, rows) + depthwise(conv.point, rows)
    reduce, expand = conv.excite.reduce, conv.excite.expand
    hidden = F.relu(total.mean(dim=(1, 2)) @ reduce.weight[:, :, 0, 0].T + reduce.bias)
    factor = torch.sigmoid(hidden @ expand.weight[:, :, 0, 0].T + expand.bias)
    torch.testing.assert_close(conv(x), (total * factor[:, None, None]).permute(0, 3, 1, 2))
    assert reduce.weight.shape[0] == 2


def test_attention_against_loops():
    heads, key_dim, dim, side = 2, 3, 8, 3
    attention, x = perturbed(Attention(dim, heads, key_dim, side)), torch.randn(2, dim, side, side).double()
    rows = x.permute(0, 2, 3, 1)
    q, k, v = pointwise(attention.qkv, rows).split((6, 6, 8), dim=-1)
    q = depthwise(attention.query, q)
    places = [(row, column) for row in range(side) for column in range(side)]
    mixed = torch.zeros_like(rows)
    for b in range(2):
        for a in range(heads):
            keys, values = slice(key_dim * a, key_dim * (a + 1)), slice(4 * a, 4 * (a + 1))
            for row, column in places:
                scores = torch.stack(
                    [
                        q[b, row, column, keys] @ k[b, y, z, keys] / 3**0.5
                        + attention.bias[a, abs(row - y) * side + abs(column - z)]
                        for y, z in places
                    ]
                )
                shares = scores.exp() / scores.exp().sum()
                mixed[b, row, column, values] = sum(
                    share * v[b, y, z, values] for share, (y, z) in zip(shares, places, strict=True)
                )
    expected = rows + pointwise(attention.out, F.relu(mixed))
    torch.testing.assert_close(attention(x), expected.permute(0, 3, 1, 2))


def test_the_block_is_mixer_and_mlp():
    block, x = perturbed(LSNetBlock(8, RepConv(8), mlp_ratio=2, drop_rate=0.5)), torch.randn(1, 8, 2, 2).double()
    rows = block.mixer(x).permute(0, 2, 3, 1)
    expected = rows + pointwise(block.fc2, F.relu(pointwise(block.fc1, rows)))
    torch.testing.assert_close(block(x), expected.permute(0, 3, 1, 2))


def test_mlps_and_attention_begin_as_nothing():
    model = build("lsnet_tiny32", 10)
    ends = [
        m.out if isinstance(m, Attention) else m.fc2 for m in model.modules() if isinstance(m, Attention | LSNetBlock)
    ]
    assert len(ends) == 7 + 1
    assert not any(end.norm.weight.any() for end in ends)


# Forward --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_t_at_96(training):
    check_forward(build("lsnet_t", 10, 96).train(training), *((2,) if training else (1, 2)))


def test_published_models_refuse_to_train_on_one_image():
    model = build("lsnet_t", 10, 64)
    with pytest.raises(ValueError, match="more than 1 value"):
        model(torch.randn(1, 3, 64, 64))
    check_forward(replace_batch_norm(model), 1)


@pytest.mark.parametrize("name", ["lsnet_tiny32", "lsnet_t"])
def test_logits_are_the_head_of_the_normed_mean(name):
    model = build(name, 4, 32).eval()
    x = torch.randn(2, 3, 32, 32)
    norm = model.norm
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    # In evaluation it is the same before or after the mean.
    expected = normed(norm, model.stages(model.stem(x)).mean(dim=(2, 3)))
    torch.testing.assert_close(model.features(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(x), model.head(model.features(x)))


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("lsnet_t", {"image_size": 100}, r"model\.image_size.*Use 96"),
        ("lsnet_b", {"drop_path": -0.1}, r"model\.sizes\.drop_path"),
        ("lsnet_tiny32", {"image_size": 3}, r"model\.image_size.*Use 4"),
        ("lsnet_tiny32", {"dims": [32, 48, 96]}, r"model\.sizes\.dims"),
        ("lsnet_tiny32", {"dims": [32, 50, 96, 128]}, r"model\.sizes\.dims.*multiples of 8, found \[32, 50"),
        ("lsnet_tiny32", {"depths": 3}, r"model\.sizes\.depths"),
        ("lsnet_tiny32", {"heads": 3}, r"model\.sizes\.heads"),
        ("lsnet_tiny32", {"key_dim": 0}, r"model\.sizes\.key_dim"),
        ("lsnet_tiny32", {"mlp_ratio": 0}, r"model\.sizes\.mlp_ratio"),
        ("lsnet_tiny32", {"drop_path": "some"}, r"model\.sizes\.drop_path"),
    ],
)
def test_errors_name_the_key(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        on_meta(name, 10, **sizes)
