"""Separable convolutions: the outer product they stand for, how many filters are in between, how loud they begin."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.kernel_operators import CONVS, HEIGHT, WIDTH, check_layer, check_learns, numbers, placed, site
from tests.models_helpers import seeded_with
from umbel.models import build
from umbel.models.inputs import layer_inputs
from umbel.models.operators import replace
from umbel.models.operators.base import UnfitError
from umbel.models.operators.separable import SeparableConv, between, outer, separable

seeded = seeded_with(33)


# The equations --------------------------------------------------------------------------------------------


def test_outer_against_loops():
    column, row = torch.randn(6, 2, 3, 1).double(), torch.randn(4, 3, 1, 3).double()  # two groups: 2 -> 3 -> 2
    expected = torch.zeros(4, 2, 3, 3).double()
    for o in range(4):
        for i in range(2):
            for m in range(3):
                for y in range(3):
                    for x in range(3):
                        expected[o, i, y, x] += row[o, m, 0, x] * column[3 * (o // 2) + m, i, y, 0]
    torch.testing.assert_close(outer(column, row, 2), expected)


@pytest.mark.parametrize("keywords", CONVS)
def test_it_equals_the_outer_product_it_stands_for(keywords):
    """At the borders too, whatever stride, padding, dilation and groups are."""
    conv = nn.Conv2d(**keywords).double()
    layer = separable(site(conv))
    x = torch.randn(2, conv.in_channels, HEIGHT, WIDTH).double()
    kernel = outer(layer.column.weight, layer.row.weight, conv.groups)
    assert kernel.shape == conv.weight.shape
    expected = F.conv2d(x, kernel, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    torch.testing.assert_close(layer(x), expected)


def test_a_depthwise_kernel_is_one_outer_product():
    layer = separable(site(nn.Conv2d(4, 4, 5, padding=2, groups=4)))
    kernel = outer(layer.column.weight, layer.row.weight, 4)
    for channel in range(4):
        column, row = layer.column.weight[channel].flatten(), layer.row.weight[channel].flatten()
        torch.testing.assert_close(kernel[channel, 0], torch.outer(column, row))
    assert numbers(layer) == 2 * 5 * 4 + 4


# Counts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "expected"),
    [(1, 1, 3, 1), (8, 8, 3, 8), (8, 8, 7, 8), (3, 24, 3, 8), (1, 16, 3, 2), (16, 4, 3, 4), (2, 3, 3, 3)],
)
def test_filters_in_between(inputs, outputs, kernel, expected):
    assert between(inputs, outputs, kernel) == expected
    fits = [m for m in range(1, outputs + 1) if kernel * m * (inputs + outputs) <= kernel**2 * inputs * outputs]
    assert fits[-1] == expected


@pytest.mark.parametrize("kernel", [3, 5])
def test_count_of_a_dense_layer(kernel):
    conv = nn.Conv2d(8, 8, kernel, bias=False)
    assert numbers(separable(site(conv))) == 2 * kernel * 8 * 8 == numbers(conv) * 2 / kernel


def test_never_more_parameters():
    for model in placed("separable"):
        plain = build({"CvT": "cvt_tiny32", "CNN": "cnn"}[type(model).__name__], 3, model.image_size, model.in_channels)
        modules = dict(plain.named_modules())
        for name, module in model.named_modules():
            if isinstance(module, SeparableConv):
                assert numbers(module) <= numbers(modules[name])


# The start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "std"),
    [
        ({"in_channels": 48, "out_channels": 48}, None),
        ({"in_channels": 16, "out_channels": 64}, 0.02),
        ({"in_channels": 512, "out_channels": 512, "groups": 512}, None),
    ],
)
def test_white_noise_comes_out_as_loud_as_of_the_convolution(keywords, std):
    conv = nn.Conv2d(kernel_size=5, bias=False, **keywords)
    if std is not None:
        nn.init.normal_(conv.weight, std=std)
    layer = separable(site(conv))
    x = torch.randn(4, conv.in_channels, 16, 16)
    before, after = conv(x).var().item(), layer(x).var().item()
    assert after == pytest.approx(before, rel=0.25)
    assert layer.column(x).var().item() == pytest.approx((before * x.var().item()) ** 0.5, rel=0.25)


# In models ------------------------------------------------------------------------------------------------


def test_a_layer_is_run_in_every_way():
    check_layer(separable)


@pytest.mark.parametrize("layers", ["conv", "depthwise"])
def test_models_with_it_learn(layers):
    if layers == "depthwise":
        model = replace(build("cvt_tiny32", 3, 28, 1), layers, "separable")
        assert {module.column.groups > 1 for module in model.modules() if isinstance(module, SeparableConv)} == {True}
    else:
        check_learns("separable")


def test_methods_that_go_by_inputs_see_both_halves():
    model = replace(build("cnn", 3, 28, 1), "conv", "separable")
    seen = layer_inputs(model, torch.randn(2, 1, 28, 28))
    assert {f"conv{number}.{half}.weight" for number in (1, 2) for half in ("column", "row")} < seen.keys()


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"kernel_size": 2}, "found a kernel of 2 x 2"),
        ({"kernel_size": (1, 3)}, "found a kernel of 1 x 3"),
        ({"kernel_size": 3, "padding_mode": "replicate"}, "padding_mode='replicate'"),
    ],
)
def test_places_that_do_not_fit(keywords, message):
    with pytest.raises(UnfitError, match=rf"model\.operators\.separable: layer 'stem'.*{message}"):
        separable(site(nn.Conv2d(2, 2, **keywords), "stem"))
