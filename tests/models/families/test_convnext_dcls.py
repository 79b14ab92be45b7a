"""ConvNeXt-DCLS: published counts, shared positions, the block's equation, sizes and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import check_forward, count, num_parameters, on_meta, randomise, seeded_with
from umbel.models import build, describe
from umbel.models.convnext_dcls import ConvNeXtBlock, conv_mixers, dcls_mixers
from umbel.models.layers import LayerNorm2d
from umbel.models.operators import replace
from umbel.models.operators.dcls import DclsConv
from umbel.models.weights import shared_state

PUBLISHED = ("convnext_dcls_tiny", "convnext_dcls_small")
DIMS = (96, 192, 384, 768)


seeded = seeded_with(8)


def layers(model):
    return [module for module in model.modules() if isinstance(module, DclsConv)]


# Counts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "printed", "exact", "convnext"),
    [*zip(PUBLISHED, ("28.6", "50.2"), (28_587_688, 50_217_064), (28_589_128, 50_223_688), strict=True)],
)
def test_published_counts(name, printed, exact, convnext):
    model = on_meta(name, 1000)
    assert num_parameters(model) == exact
    assert f"{exact / 1e6:.1f}" == printed
    assert describe(name).endswith(f"{printed} M parameters at 1000 classes.")
    assert num_parameters(on_meta(name, 1000, mixer="conv")) == convnext
    # N weights a channel and block, and 2 N positions a channel and stage, for the 49 weights of 7 x 7.
    depths, elements = {"convnext_dcls_tiny": ((3, 3, 9, 3), 34), "convnext_dcls_small": ((3, 3, 27, 3), 40)}[name]
    blocks = sum(depth * dim for depth, dim in zip(depths, DIMS, strict=True))
    assert convnext - exact == (49 - elements) * blocks - 2 * elements * sum(DIMS)
    assert num_parameters(on_meta(name, 1000, version="gauss")) - exact == 2 * elements * sum(DIMS)


def test_tiny_count():
    assert 100_000 < num_parameters(on_meta("convnext_dcls_tiny32", 10)) == 278_282 < 600_000
    assert num_parameters(on_meta("convnext_dcls_tiny32", 10, mixer="conv")) == 292_170


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_operator_makes_it_of_convnext(name):
    model = on_meta(name, 1000)
    elements = layers(model)[0].weight.shape[2]
    plain = on_meta(name, 1000, mixer="conv")
    other = replace(plain, "depthwise", "dcls", size=17, count=elements, share="stage")
    shapes = [{key: value.shape for key, value in shared_state(each).items()} for each in (model, other)]
    assert shapes[0] == shapes[1]
    assert {*model.state_dict()} == {*other.state_dict()}
    assert [(m.size, m.stride, m.padding, m.groups) for m in layers(model)] == [
        (m.size, m.stride, m.padding, m.groups) for m in layers(other)
    ]


def test_a_stage_shares_its_positions():
    model = build("convnext_dcls_tiny", 10, 32)
    blocks = [[block for block in stage if isinstance(block, ConvNeXtBlock)] for stage in model.stages]
    positions = [[block.mixer.positions for block in stage] for stage in blocks]
    assert [len(stage) for stage in positions] == [3, 3, 9, 3]
    assert [len({id(each) for each in stage}) for stage in positions] == [1, 1, 1, 1]
    assert [tuple(stage[0].shape) for stage in positions] == [(2, dim, 1, 34) for dim in DIMS]
    assert len([key for key in shared_state(model) if key.endswith("positions")]) == 4
    assert len({id(layer.weight) for layer in layers(model)}) == 18
    everything = torch.cat([stage[0].flatten() for stage in positions])
    assert everything.std().item() == pytest.approx(0.5, rel=0.02)


def test_norms_are_of_layers_alone():
    model = on_meta("convnext_dcls_small", 10)
    assert count(model, nn.LayerNorm) == 36 + 4 + 1  # one a block, one a stage and the last
    assert count(model, LayerNorm2d) == 4
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}


# The equations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", ["conv", "dcls"])
def test_the_block_is_its_equation(mixer):
    (layer,) = conv_mixers(6, 1) if mixer == "conv" else dcls_mixers(6, 1, 5, 4, "v1", None)
    block = ConvNeXtBlock(layer, 6, mlp_ratio=3, layer_scale=0.5, drop_rate=0.4).double().eval()
    randomise(block, std=1)
    x = torch.randn(2, 6, 3, 4).double()
    kernel = layer.weight if mixer == "conv" else layer.kernel()
    mixed = F.conv2d(x, kernel, layer.bias, padding=kernel.shape[-1] // 2, groups=6)
    for b in range(2):
        for row in range(3):
            for column in range(4):
                here = mixed[b, :, row, column]
                normed = (here - here.mean()) / (here.var(correction=0) + 1e-6).sqrt()
                normed = normed * block.norm.weight + block.norm.bias
                hidden = F.gelu(block.mlp.fc1.weight @ normed + block.mlp.fc1.bias)
                branch = block.mlp.fc2.weight @ hidden + block.mlp.fc2.bias
                expected = x[b, :, row, column] + block.scale.weight * branch
                torch.testing.assert_close(block(x)[b, :, row, column], expected)


def test_the_features_are_the_normalised_mean():
    model = build("convnext_dcls_tiny32", 5, 28, 1).eval()
    x = torch.randn(2, 1, 28, 28)
    pooled = model.stages(x).mean(dim=(2, 3))
    expected = (pooled - pooled.mean(1, keepdim=True)) / pooled.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(model.features(x), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(model(x), model.head(model.features(x)))
    assert pooled.shape == (2, model.num_features) == (2, 128)


def test_where_weights_begin():
    model = build("convnext_dcls_tiny", 10, 32)
    for layer in layers(model):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
    scales = torch.cat([v.flatten() for k, v in model.state_dict().items() if k.endswith("scale.weight")])
    assert scales.unique().tolist() == pytest.approx([1e-6])
    small = layers(build("convnext_dcls_tiny32", 10, count=16))
    assert max(layer.weight.abs().max().item() for layer in small) == pytest.approx(1 / 4, rel=0.01)


# Forward --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_tiny_at_32(training):
    check_forward(build("convnext_dcls_tiny", 10, 32).train(training), 1, 2)


@pytest.mark.parametrize("sizes", [{"version": "gauss"}, {"mixer": "conv"}, {"size": 3, "count": 1, "drop_path": 0.3}])
def test_choices_of_the_small_one(sizes):
    for size, channels in ((28, 1), (32, 3)):
        check_forward(build("convnext_dcls_tiny32", 10, size, channels, **sizes), 1, 2)


def test_drop_path():
    rates = [m.drop_rate for m in on_meta("convnext_dcls_small", 10).modules() if isinstance(m, ConvNeXtBlock)]
    assert rates == pytest.approx([0.4 * i / 35 for i in range(36)])
    rates = [m.drop_rate for m in on_meta("convnext_dcls_tiny", 10).modules() if isinstance(m, ConvNeXtBlock)]
    assert rates[-1] == 0.1


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("convnext_dcls_tiny", {"image_size": 100}, r"model\.image_size.*Use 96"),
        ("convnext_dcls_tiny", {"layer_scale": 0}, r"model\.sizes\.layer_scale"),
        ("convnext_dcls_small", {"drop_path": 1.0}, r"model\.sizes\.drop_path"),
        ("convnext_dcls_small", {"version": "v0"}, r"model\.sizes\.version should be v1 or gauss, found 'v0'"),
        ("convnext_dcls_tiny", {"mixer": "pool"}, r"model\.sizes\.mixer should be dcls or conv"),
        ("convnext_dcls_tiny32", {"image_size": 3}, r"model\.image_size.*Use 4"),
        ("convnext_dcls_tiny32", {"dims": [32, 64]}, r"model\.sizes\.dims"),
        ("convnext_dcls_tiny32", {"depths": [1, 0, 1]}, r"model\.sizes\.depths"),
        ("convnext_dcls_tiny32", {"size": 4}, r"model\.sizes\.size should be odd, 3 or more, found 4\. Use 5"),
        ("convnext_dcls_tiny32", {"size": 1}, r"model\.sizes\.size should be odd, 3 or more, found 1\. Use 3"),
        ("convnext_dcls_tiny32", {"count": 0}, r"model\.sizes\.count"),
        ("convnext_dcls_tiny32", {"mlp_ratio": 1.5}, r"model\.sizes\.mlp_ratio"),
        ("convnext_dcls_tiny32", {"layer_scale": "big"}, r"model\.sizes\.layer_scale"),
        ("convnext_dcls_tiny32", {"version": "v0", "mixer": "conv"}, r"model\.sizes\.version"),
    ],
)
def test_errors_name_the_key(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        on_meta(name, 10, **sizes)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"model\.image_size"):
        build("convnext_dcls_tiny32", 10, 28, 1)(torch.randn(1, 1, 32, 32))
