"""E2GC: groups of one size; of size one a depthwise convolution; its count of weights; where it finds no place."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.kernel_operators import HEIGHT, WIDTH, check_layer, check_learns, numbers, placed, site
from tests.models_helpers import seeded_with
from umbel.models import build
from umbel.models.operators import replace
from umbel.models.operators.base import UnfitError
from umbel.models.operators.e2gc import GroupSizeConv, e2gc

seeded = seeded_with(32)


# The equations --------------------------------------------------------------------------------------------


def test_groups_of_one_are_depthwise_to_the_bit():
    conv = nn.Conv2d(6, 6, 5, stride=2, padding=2)
    layer = e2gc(site(conv), group_size=1)
    depthwise = nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6)
    depthwise.load_state_dict(layer.state_dict())
    assert torch.equal(depthwise.bias, conv.bias)
    x = torch.randn(2, 6, HEIGHT, WIDTH)
    assert torch.equal(layer(x), depthwise(x))


@pytest.mark.parametrize("group_size", [1, 2, 6])
def test_outputs_see_their_group_alone(group_size):
    layer = e2gc(site(nn.Conv2d(6, 12, 3, padding=1)), group_size=group_size).double()
    x = torch.randn(1, 6, HEIGHT, WIDTH).double().requires_grad_()
    for output in range(12):
        (seen,) = torch.autograd.grad(layer(x)[0, output].sum(), x)
        group = output // (12 // (6 // group_size))
        expected = {*range(group * group_size, (group + 1) * group_size)}
        assert {*seen.abs().sum(dim=(0, 2, 3)).nonzero().flatten().tolist()} == expected


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "group_size", "bias"), [(8, 6, 5, 4, True), (6, 6, 3, 1, False)]
)
def test_count(inputs, outputs, kernel, group_size, bias):
    conv = nn.Conv2d(inputs, outputs, kernel, bias=bias)
    layer = e2gc(site(conv), group_size=group_size)
    assert numbers(layer) == kernel**2 * group_size * outputs + outputs * bias


def test_narrow_and_wide_layers_have_the_same_size_of_group():
    for model in placed("e2gc", group_size=8):
        layers = [module for module in model.modules() if isinstance(module, GroupSizeConv)]
        assert layers
        assert {layer.weight.shape[1] for layer in layers} == {8}
        assert len({layer.groups for layer in layers}) > 1 or len(layers) == 1


def test_a_layer_that_has_such_groups_keeps_its_weights():
    model = build("cvt_tiny32", 3, 28, 1)
    drawn = torch.get_rng_state()
    other = replace(copy.deepcopy(model), "depthwise", "e2gc", group_size=1)
    assert torch.equal(torch.get_rng_state(), drawn)
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(model.eval()(x), other.eval()(x))
    assert model.state_dict().keys() == other.state_dict().keys()


def test_weights_begin_as_loud_as_the_convolutions():
    conv = nn.Conv2d(64, 64, 3, padding=1)
    nn.init.trunc_normal_(conv.weight, std=0.02)
    layer = e2gc(site(conv), group_size=4)
    assert (layer.weight.square().sum() / conv.weight.square().sum()).item() == pytest.approx(1, rel=0.1)
    own = e2gc(site(nn.Conv2d(64, 64, 3)), group_size=4).weight
    assert own.abs().max().item() == pytest.approx((4 * 9) ** -0.5, rel=0.05)  # torch's bound


# In models ------------------------------------------------------------------------------------------------


def test_a_layer_is_run_in_every_way():
    check_layer(e2gc, group_size=2)


@pytest.mark.parametrize(("layers", "group_size"), [("conv", 8), ("dense", 4)])
def test_models_with_it_learn(layers, group_size):
    check_learns("e2gc", layers, group_size=group_size)


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1.5, True, "2"])
def test_errors_name_the_key(value):
    with pytest.raises(ValueError, match=r"model\.operators\.e2gc\.group_size should be a whole number"):
        e2gc(site(nn.Conv2d(2, 2, 3)), group_size=value)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"in_channels": 6, "out_channels": 8}, r"multiple of 4 \(key model\.operators\.e2gc\.group_size\), found 6"),
        ({"in_channels": 12, "out_channels": 8}, "multiple of its 3 groups, found 8 outputs"),
        ({"in_channels": 4, "out_channels": 4, "padding_mode": "reflect"}, "padding_mode='reflect'"),
    ],
)
def test_places_that_do_not_fit(keywords, message):
    with pytest.raises(UnfitError, match=rf"model\.operators\.e2gc: layer 'stem'.*{message}"):
        e2gc(site(nn.Conv2d(kernel_size=3, **keywords), "stem"), group_size=4)
