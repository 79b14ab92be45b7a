"""wConv: a density of one is the convolution to the bit; Phi by hand; the authors' counts; what a density may be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.kernel_operators import CONVS, HEIGHT, WIDTH, check_layer, check_learns, numbers, site
from tests.models_helpers import num_parameters, seeded_with
from umbel.models import build
from umbel.models.operators import replace
from umbel.models.operators.base import UnfitError
from umbel.models.operators.wconv import SUGGESTED, WeightedConv, density_for, ramp, wconv, weighting
from umbel.models.weights import shared_state

seeded = seeded_with(31)


# The equations --------------------------------------------------------------------------------------------


def test_phi_by_hand():
    density = torch.tensor([0.5, 0.25], dtype=torch.float64)
    profile = [0.5, 0.25, 1, 0.25, 0.5]  # the first number is the border's
    expected = torch.tensor([[a * b for b in profile] for a in profile], dtype=torch.float64)
    assert torch.equal(weighting(density), expected)


def test_the_kernel_is_weighed_place_by_place():
    conv = nn.Conv2d(4, 6, 5, stride=2, padding=1, dilation=2, groups=2).double()
    layer = wconv(site(conv), density=[0.3, 1.25])
    x = torch.randn(2, 4, HEIGHT, WIDTH).double()
    expected = torch.zeros_like(conv(x)) + conv.bias.detach()[:, None, None]
    profile = [0.3, 1.25, 1, 1.25, 0.3]
    padded = F.pad(x, (1, 1, 1, 1))
    for o in range(6):
        for i in range(2):
            for y in range(5):
                for z in range(5):
                    weight = conv.weight[o, i, y, z].item() * profile[y] * profile[z]
                    rows, columns = padded.shape[2] - 8, padded.shape[3] - 8
                    seen = padded[:, 2 * (o // 3) + i, 2 * y : 2 * y + rows : 2, 2 * z : 2 * z + columns : 2]
                    expected[:, o] += weight * seen
    torch.testing.assert_close(layer(x), expected)


def test_a_number_rises_to_the_centre():
    assert ramp(0.25, 7) == pytest.approx((0.25, 0.5, 0.75))
    assert density_for(3, 0.25) == (0.25,)
    assert density_for(5, 0.5) == pytest.approx((0.5, 0.75))
    assert density_for(9, 1) == (1, 1, 1, 1)


def test_what_a_density_may_be():
    assert density_for(7, None) == (0.25, 0.15, 0.55) == SUGGESTED[7]
    assert density_for(9, None) is None
    assert density_for(5, [0.1, 2]) == (0.1, 2)
    assert density_for(3, [0.1, 2]) is None
    mapping = {"3": [0.7], 5: 0.5}  # a file may have strings as keys
    assert density_for(3, mapping) == (0.7,)
    assert density_for(5, mapping) == (0.5, 0.75)
    assert density_for(7, mapping) is None


# A density of one -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3)])
@pytest.mark.parametrize("name", ["cvt_tiny32", "cnn"])
def test_a_density_of_one_is_the_convolution_to_the_bit(name, size, channels, trainable):
    """Logits, and all weights after a step of training."""
    plain = build(name, 3, size, channels)
    drawn = torch.get_rng_state()
    weighed = replace(copy.deepcopy(plain), "conv", "wconv", density=1, trainable=trainable)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert sum(isinstance(module, WeightedConv) for module in weighed.modules()) >= 2
    x, y = torch.randn(4, channels, size, size), torch.tensor([0, 1, 2, 0])
    assert torch.equal(plain.eval()(x), weighed.eval()(x))
    for model in (plain.train(), weighed.train()):
        optimizer = torch.optim.SGD([p for key, p in model.named_parameters() if not key.endswith("density")], lr=0.1)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    state = weighed.state_dict()
    for key, value in plain.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert trainable or state.keys() == plain.state_dict().keys()


def test_another_density_is_not():
    plain = build("cnn", 3, 28, 1)
    weighed = replace(copy.deepcopy(plain), "conv", "wconv")
    x = torch.randn(2, 1, 28, 28)
    assert not torch.allclose(plain(x), weighed(x))


# State and counts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "trainable", "expected"), [(3, False, 4_608), (7, True, 25_091)])
def test_the_authors_counts(kernel, trainable, expected):
    conv = nn.Conv2d(16, 32, kernel, padding=kernel // 2, bias=False)
    density = [0.7] if kernel == 3 else None
    layer = wconv(site(conv), density=density, trainable=trainable)
    assert numbers(layer) == expected


def test_nothing_but_parameters_travels():
    plain = build("cvt_tiny32", 3, 28, 1)
    fixed = replace(copy.deepcopy(plain), "conv", "wconv", density=0.5)
    assert shared_state(fixed).keys() == shared_state(plain).keys()
    trained = replace(copy.deepcopy(plain), "conv", "wconv", density={3: [0.4]}, trainable=True)
    added = shared_state(trained).keys() - shared_state(plain).keys()
    layers = [module for module in trained.modules() if isinstance(module, WeightedConv)]
    assert len(added) == len(layers) == num_parameters(trained) - num_parameters(plain)
    assert [layer.density.tolist() for layer in layers] == [pytest.approx([0.4])] * len(layers)


def test_a_density_that_learns():
    conv = nn.Conv2d(2, 3, 5, padding=2).double()
    layer = wconv(site(conv), density=[0.5, 0.75], trainable=True)
    x = torch.randn(1, 2, HEIGHT, WIDTH).double()

    def loss(density):
        kernel = conv.weight.detach() * weighting(density)
        return F.conv2d(x, kernel, conv.bias.detach(), padding=2).square().sum()

    layer(x).square().sum().backward()
    for i in range(2):
        step = torch.zeros(2).double()
        step[i] = 1e-6
        slope = (loss(layer.density.detach() + step) - loss(layer.density.detach() - step)) / 2e-6
        torch.testing.assert_close(layer.density.grad[i], slope, rtol=1e-6, atol=1e-6)


def test_kaiming_starts_from_the_outputs():
    conv = nn.Conv2d(16, 64, 3, padding=1)
    layer = wconv(site(conv), start="kaiming")
    assert layer.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert not layer.bias.any()
    assert torch.equal(wconv(site(conv)).weight, conv.weight)


# In models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"density": {3: [0.6], 5: 0.3, 7: 1.5}, "trainable": True}])
def test_a_layer_is_run_in_every_way(options):
    check_layer(wconv, **options)


@pytest.mark.parametrize("options", [{}, {"trainable": True}, {"start": "kaiming"}])
def test_models_with_it_learn(options):
    check_learns("wconv", **options)


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": []}, r"model\.operators\.wconv\.density should be a number.*found \[\]"),
        ({"density": "0.5"}, r"model\.operators\.wconv\.density"),
        ({"density": True}, r"model\.operators\.wconv\.density"),
        ({"density": 0}, r"model\.operators\.wconv\.density should be a number above 0"),
        ({"density": [0.5, -1]}, r"model\.operators\.wconv\.density should be a number above 0"),
        ({"density": {3: [0.5, 1]}}, r"model\.operators\.wconv\.density\.3 should be a number or a list of 1"),
        ({"density": {4: [0.5]}}, r"model\.operators\.wconv\.density should map odd sides"),
        ({"density": {"x": [0.5]}}, r"model\.operators\.wconv\.density should map odd sides"),
        ({"density": {3: {3: 1}}}, r"model\.operators\.wconv\.density\.3"),
        ({"trainable": 1}, r"model\.operators\.wconv\.trainable should be true or false"),
        ({"start": "he"}, r"model\.operators\.wconv\.start should be conv or kaiming"),
    ],
)
def test_errors_name_the_key(options, message):
    with pytest.raises(ValueError, match=message):
        wconv(site(nn.Conv2d(1, 1, 3)), **options)


@pytest.mark.parametrize(
    ("keywords", "options", "message"),
    [
        ({"kernel_size": 4}, {}, "found a kernel of 4 x 4"),
        ({"kernel_size": (3, 5)}, {}, "found a kernel of 3 x 5"),
        ({"kernel_size": 1}, {}, "found a kernel of 1 x 1"),
        ({"kernel_size": 3, "padding_mode": "circular"}, {}, "padding_mode='circular'"),
        ({"kernel_size": 9}, {}, "kernel of 3 or 5 or 7, for which .* found one of 9"),
        ({"kernel_size": 5}, {"density": [1, 2, 3]}, "kernel of 7, for which"),
        ({"kernel_size": 5}, {"density": {"3": 1}}, "kernel of 3, for which"),
    ],
)
def test_places_that_do_not_fit(keywords, options, message):
    with pytest.raises(UnfitError, match=rf"model\.operators\.wconv: layer 'stem'.*{message}"):
        wconv(site(nn.Conv2d(2, 2, **keywords), "stem"), **options)


def test_every_convolution_of_the_list_fits():
    assert {conv["kernel_size"] for conv in CONVS} == set(SUGGESTED)
