"""CAS-ViT: published counts, the additive mixer and the block against loops, the two heads, sizes and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import check_forward, num_parameters, on_meta, perturbed, seeded_with
from umbel.models import build, describe
from umbel.models.cas_vit import AdditiveMixer, CASBlock
from umbel.models.norm import integer_buffer_names, replace_batch_norm

COUNTS = {
    "cas_vit_xs": ("3.20", "2.98"),
    "cas_vit_s": ("5.76", "5.51"),
    "cas_vit_m": ("12.42", "12.04"),
    "cas_vit_t": ("21.76", "21.25"),
}


seeded = seeded_with(7)


def normed(norm: nn.BatchNorm2d, x: torch.Tensor, own: slice = slice(None)) -> torch.Tensor:
    """Batch norm in eval mode, of channels last; `own` are the layer's channels that `x` has."""
    scaled = (x - norm.running_mean[own]) / (norm.running_var[own] + norm.eps).sqrt()
    return scaled * norm.weight[own] + norm.bias[own]


def pointwise(conv: nn.Conv2d, x: torch.Tensor, own: slice = slice(None)) -> torch.Tensor:
    """A 1 x 1 convolution, of channels last; `own` are the layer's outputs to compute."""
    mixed = x @ conv.weight[own, :, 0, 0].T
    return mixed if conv.bias is None else mixed + conv.bias[own]


def depthwise(conv: nn.Conv2d, x: torch.Tensor, own: slice = slice(None)) -> torch.Tensor:
    """A depthwise 3 x 3 convolution of a map [B, H, W, C], by loops; `own` are the layer's channels that `x` has."""
    weight, convolved = conv.weight[own, 0], conv.bias[own] + torch.zeros_like(x)
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    y, z = row + dy, column + dx
                    if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                        convolved[:, row, column] += weight[:, dy + 1, dx + 1] * x[:, y, z]
    return convolved


# Counts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "two", "one"), [(name, *counts) for name, counts in COUNTS.items()])
def test_published_counts(name, two, one):
    """The paper's count has two heads; the count of one is that of the network for other uses."""
    model = on_meta(name, 1000)
    count = num_parameters(model)
    assert f"{count / 1e6:.2f}" == two
    assert describe(name).endswith(f"two heads, {two} M parameters at 1000 classes.")
    assert f"{num_parameters(on_meta(name, 1000, second_head=False)) / 1e6:.2f}" == one
    assert num_parameters(replace_batch_norm(model)) == count


def test_batch_norms_of_xs():
    """The network has 56: those of a block's queries and keys are one layer here."""
    model = on_meta("cas_vit_xs", 10)
    layers = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert layers + sum(isinstance(m, AdditiveMixer) for m in model.modules()) == 56


def test_tiny_count():
    assert num_parameters(on_meta("cas_vit_tiny32", 10)) == 310_946


def test_integers_are_counters():
    assert all(name.endswith("num_batches_tracked") for name in integer_buffer_names(build("cas_vit_tiny32", 10)))


# The equations --------------------------------------------------------------------------------------------


def slow_mixer(mixer: AdditiveMixer, rows: torch.Tensor) -> torch.Tensor:
    """The token mixer with queries and keys one after the other, of channels last."""
    batch, height, width, dim = rows.shape
    gated = []
    for number in (0, 1):  # queries, keys: layers of their own, each with half of the joint layers' weights
        own = slice(number * dim, (number + 1) * dim)
        part = pointwise(mixer.qkv, rows, own)
        seen = F.relu(normed(mixer.norm, depthwise(mixer.local, part, own), own))
        spatial, channel = torch.zeros_like(part), torch.zeros_like(part)
        for b in range(batch):
            for row in range(height):
                for column in range(width):
                    score = seen[b, row, column] @ mixer.spatial.weight[number, :, 0, 0]
                    spatial[b, row, column] = part[b, row, column] / (1 + (-score).exp())
            mean = sum(spatial[b, row, column] for row in range(height) for column in range(width)) / (height * width)
            factor = 1 / (1 + (-(mixer.channel.weight[own, :, 0, 0] @ mean)).exp())
            channel[b] = spatial[b] * factor
        gated.append(channel)
    v = pointwise(mixer.qkv, rows, slice(2 * dim, 3 * dim))
    return depthwise(mixer.out, depthwise(mixer.similarity, gated[0] + gated[1]) * v)


def test_the_mixer_against_loops():
    mixer, x = perturbed(AdditiveMixer(6)), torch.randn(2, 6, 3, 4).double()
    torch.testing.assert_close(mixer(x), slow_mixer(mixer, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_queries_and_keys_have_weights_of_their_own():
    """What goes through the keys' gate does not reach the queries', in training neither."""
    mixer, x = AdditiveMixer(6), torch.randn(2, 6, 4, 4)
    with torch.no_grad():
        mixer.qkv.weight[6:12] = 0  # no keys
    mixer(x).square().sum().backward()
    assert mixer.local.weight.grad[:6].any() and mixer.channel.weight.grad[:6].any()
    assert not mixer.local.weight.grad[6:].any() and not mixer.channel.weight.grad[6:].any()


def test_the_block_against_loops():
    block, x = perturbed(CASBlock(4, mlp_ratio=3, drop_rate=0.5)), torch.randn(2, 4, 3, 4).double()
    rows = x.permute(0, 2, 3, 1)
    first, norm, conv, _, last = block.local
    rows = rows + pointwise(last, F.gelu(depthwise(conv, normed(norm, pointwise(first, rows)))))
    rows = rows + slow_mixer(block.mixer, normed(block.norm1, rows))
    rows = rows + pointwise(block.fc2, F.gelu(pointwise(block.fc1, normed(block.norm2, rows))))
    torch.testing.assert_close(block(x), rows.permute(0, 3, 1, 2))


def test_drop_path_leaves_the_local_part():
    block, x = CASBlock(4, mlp_ratio=2, drop_rate=1 - 1e-12), torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(block(x), x + block.local(x))


def test_the_stem_and_the_convolutions_between():
    model = on_meta("cas_vit_m", 10)
    assert [m.out_channels for m in model.stem if isinstance(m, nn.Conv2d)] == [32, 64]
    assert sum(isinstance(m, nn.ReLU) for m in model.stem) == 2
    assert [stage[0].stride for stage in model.stages[1:]] == [(2, 2)] * 3
    assert [sum(isinstance(m, CASBlock) for m in stage) for stage in model.stages] == [3, 3, 6, 3]
    assert model.stages[3][4].fc1.out_channels == 4 * 384


# Forward --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_xs_at_96(training):
    check_forward(build("cas_vit_xs", 10, 96).train(training), 1, 2)


@pytest.mark.parametrize("training", [True, False])
def test_logits_are_the_mean_of_two_heads(training):
    model = build("cas_vit_xs", 4, 64, drop_path=0.0).train(training)
    for bias in (model.second_head.bias, model.head.bias):
        nn.init.normal_(bias)
    x = torch.randn(2, 3, 64, 64)
    features = model.features(x)
    torch.testing.assert_close(model(x), 0.5 * (model.head(features) + model.second_head(features)))


@pytest.mark.parametrize(("name", "sizes"), [("cas_vit_tiny32", {}), ("cas_vit_xs", {"second_head": False})])
def test_logits_of_one_head(name, sizes):
    model = build(name, 4, 32, **sizes).eval()
    assert model.second_head is None and not any("second" in key for key in model.state_dict())
    nn.init.normal_(model.norm.running_mean)
    nn.init.uniform_(model.norm.running_var, 0.5, 2.0)
    x = torch.randn(2, 3, 32, 32)
    expected = normed(model.norm, model.stages(model.stem(x)).mean(dim=(2, 3)))
    torch.testing.assert_close(model.features(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(x), model.head(model.features(x)))


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("cas_vit_xs", {"image_size": 100}, r"model\.image_size.*Use 96"),
        ("cas_vit_t", {"drop_path": -0.1}, r"model\.sizes\.drop_path"),
        ("cas_vit_s", {"second_head": 1}, r"model\.sizes\.second_head"),
        ("cas_vit_tiny32", {"image_size": 3}, r"model\.image_size.*Use 4"),
        ("cas_vit_tiny32", {"dims": [32, 48, 96]}, r"model\.sizes\.dims"),
        ("cas_vit_tiny32", {"depths": [1, 1, 0, 1]}, r"model\.sizes\.depths"),
        ("cas_vit_tiny32", {"mlp_ratio": 0}, r"model\.sizes\.mlp_ratio"),
        ("cas_vit_tiny32", {"drop_path": "some"}, r"model\.sizes\.drop_path"),
    ],
)
def test_errors_name_the_key(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        on_meta(name, 10, **sizes)
