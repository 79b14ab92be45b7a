"""DCLS: the kernel against loops and dilated convolutions, gradients of positions, bounds, shared positions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.core.wire.test_messages import WORK
from tests.kernel_operators import CONVS, HEIGHT, WIDTH, check_layer, check_learns, numbers, site
from tests.models_helpers import num_parameters, seeded_with
from umbel.core.records import Payload
from umbel.core.training import LocalConfig, train
from umbel.core.wire.messages import decode_work, encode_payload, encode_work
from umbel.models import build
from umbel.models.operators import replace
from umbel.models.operators.base import UnfitError
from umbel.models.operators.dcls import DclsConv, bilinear, construct, dcls, gaussian
from umbel.models.weights import load_state, shared_state

seeded = seeded_with(34)


def layers(model):
    return [module for module in model.modules() if isinstance(module, DclsConv)]


def elements(size=7, count=5, shape=(3, 2)):
    """Return weights, positions and sigmas in float64; some of the positions are whole, and some at the limits."""
    weight = torch.randn(*shape, count).double()
    positions = ((torch.rand(2, *shape, count).double() - 0.5) * size).clamp(-(size // 2), size // 2)
    positions[..., 1], positions[..., 0, 0] = positions[..., 1].round(), size // 2
    positions[0, 0, 0, 1] = -(size // 2)
    return weight, positions, torch.randn(2, *shape, count).double()


# The equations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "gauss"])
def test_the_kernel_against_loops(version):
    weight, positions, sigma = elements()
    expected = torch.zeros(3, 2, 7, 7).double()
    for o in range(3):
        for i in range(2):
            for n in range(5):
                p, q = positions[:, o, i, n]
                spread = torch.zeros(7, 7).double()
                for y in range(7):
                    for x in range(7):
                        dy, dx = y - 3 - p, x - 3 - q
                        if version == "v1":
                            spread[y, x] = max(0, 1 - dy.abs()) * max(0, 1 - dx.abs())
                        else:
                            wide = 0.27 + sigma[:, o, i, n].abs()
                            spread[y, x] = torch.exp(-0.5 * ((dy / wide[0]) ** 2 + (dx / wide[1]) ** 2))
                expected[o, i] += weight[o, i, n] * spread / spread.sum()
    torch.testing.assert_close(construct(weight, positions, 7, None if version == "v1" else sigma), expected)


def test_an_element_sums_to_one():
    _, positions, sigma = elements()
    ones = torch.ones_like(positions)
    torch.testing.assert_close(bilinear(positions, 7).sum(-1), ones)
    torch.testing.assert_close(gaussian(positions, sigma, 7).sum(-1), ones)
    torch.testing.assert_close(gaussian(positions, torch.zeros_like(sigma), 7).sum(-1), ones)  # the narrowest
    weight, positions, sigma = elements()
    torch.testing.assert_close(construct(weight, positions, 7, sigma).sum(dim=(2, 3)), weight.sum(dim=2))


def test_whole_positions_are_a_dilated_convolution_exactly():
    dilated = nn.Conv2d(4, 6, 3, stride=2, padding=3, dilation=3, groups=2).double()
    layer = dcls(site(dilated), size=7, count=9).double()
    grid = torch.tensor([[y, x] for y in (-3, 0, 3) for x in (-3, 0, 3)]).double()
    with torch.no_grad():
        layer.weight.copy_(dilated.weight.flatten(2))
        layer.positions.copy_(grid.T[:, None, None, :].expand_as(layer.positions))
    holes = torch.zeros(6, 2, 7, 7).double()
    holes[:, :, ::3, ::3] = dilated.weight.detach()
    assert torch.equal(layer.kernel(), holes)
    x = torch.randn(2, 4, HEIGHT, WIDTH).double()
    torch.testing.assert_close(layer(x), dilated(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("version", ["v1", "gauss"])
def test_elements_can_change_places(version):
    weight, positions, sigma = elements()
    order = torch.tensor([3, 0, 4, 2, 1])
    spread = (None, None) if version == "v1" else (sigma, sigma[..., order])
    kernel = construct(weight, positions, 7, spread[0])
    torch.testing.assert_close(construct(weight[..., order], positions[..., order], 7, spread[1]), kernel)
    assert not torch.allclose(construct(weight[..., order], positions, 7, spread[0]), kernel)


@pytest.mark.parametrize("version", ["v1", "gauss"])
def test_gradients_against_finite_differences(version):
    weight, positions, sigma = elements(size=5, count=3, shape=(2, 1))
    positions = torch.where(positions == positions.round(), positions * 0.9 + 0.05, positions)  # where there is a slope
    inputs = [weight, positions] + [sigma] * (version == "gauss")
    inputs = [each.clone().requires_grad_() for each in inputs]
    assert torch.autograd.gradcheck(lambda w, p, *s: construct(w, p, 5, *s), inputs)


def test_a_position_at_a_limit_can_come_back():
    """The formula's slope is zero at a whole number; a position that was clamped would stay for good."""
    for limit, inner in ((2, 1), (-2, -1)):
        at = torch.tensor([float(limit)], requires_grad=True)
        bilinear(at, 5)[0, inner + 2].backward()  # what the pixel before the limit gets
        assert at.grad.item() == (1 if inner > limit else -1)


# Bounds ---------------------------------------------------------------------------------------------------


def test_positions_that_left_the_kernel_are_used_at_its_border():
    conv = nn.Conv2d(3, 3, 3, padding=1, groups=3)
    layer = dcls(site(conv), size=5, count=4)
    x = torch.randn(2, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        layer.positions.mul_(40)  # a server's optimiser knows of no bounds
    left = layer(x)
    assert layer.positions.abs().max() > 2
    with torch.no_grad():
        layer.constrain_()
    assert layer.positions.abs().max() == 2
    assert torch.equal(layer(x), left)


def test_training_keeps_positions_on_the_kernel():
    model = replace(build("cnn", 3, 12, 1), "conv", "dcls", size=3, count=4)
    x, y = torch.randn(12, 1, 12, 12), torch.arange(12) % 3
    before = [layer.positions.detach().clone() for layer in layers(model)]
    config = LocalConfig(epochs=4, batch_size=6, lr=0.5)
    train(model, x, y, config, batches=torch.Generator().manual_seed(1), noise=torch.Generator().manual_seed(2))
    for layer, start in zip(layers(model), before, strict=True):
        assert not torch.equal(layer.positions, start)
        assert layer.positions.abs().max() == 1  # at this rate some have met the border


def test_positions_begin_within_half_a_pixel_or_so():
    layer = dcls(site(nn.Conv2d(32, 32, 3, padding=1)), size=3, count=8)
    assert layer.positions.abs().max() == 1
    inner = layer.positions[layer.positions.abs() < 1]
    beyond = (layer.positions.abs() == 1).float().mean()  # two deviations
    assert beyond.item() == pytest.approx(0.0455, abs=0.01)
    assert inner.std().item() == pytest.approx(0.44, abs=0.02)


# Places, counts and the start -----------------------------------------------------------------------------


@pytest.mark.parametrize("keywords", CONVS)
def test_the_centre_stays_where_it_was(keywords):
    """One element in the middle of the kernel sees the pixel that the convolution's centre saw."""
    conv = nn.Conv2d(**keywords).double()
    layer = dcls(site(conv), size=9, count=1).double()
    x = torch.randn(1, conv.in_channels, HEIGHT, WIDTH).double()
    with torch.no_grad():
        layer.positions.zero_()
        middle = conv.kernel_size[0] // 2
        conv.weight.zero_()[:, :, middle, middle] = layer.weight[..., 0]
    torch.testing.assert_close(layer(x), conv(x))


@pytest.mark.parametrize(("version", "each"), [("v1", 3), ("gauss", 5)])
def test_count(version, each):
    layer = dcls(site(nn.Conv2d(4, 6, 3, padding=1, groups=2)), size=9, count=7, version=version)
    assert numbers(layer) == each * 7 * 6 * 2 + 6
    assert layer.kernel().shape == (6, 2, 9, 9)


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_by_default_there_are_as_many_parameters_and_twice_the_reach(kernel):
    conv = nn.Conv2d(4, 4, kernel, padding=kernel // 2)
    layer = dcls(site(conv))
    assert layer.size == 2 * kernel + 1
    assert 0 <= numbers(conv) - numbers(layer) <= 4 * 4  # the rest of a third


def test_elements_begin_as_loud_as_the_convolution():
    conv = nn.Conv2d(64, 64, 3, padding=1)
    own = dcls(site(conv), count=4).weight
    assert own.abs().max().item() == pytest.approx((64 * 4) ** -0.5, rel=0.02)  # the paper's, which is torch's
    nn.init.trunc_normal_(conv.weight, std=0.02)
    loud = dcls(site(conv), count=4).weight.square().sum() / conv.weight.square().sum()
    assert loud.item() == pytest.approx(1, rel=0.05)


# Shared positions -----------------------------------------------------------------------------------------


def test_a_stage_is_one_map_and_its_channels():
    stages = {"dims": [16, 16, 24], "depths": [1, 3, 2]}  # the first two differ in their maps alone
    plain = build("convnext_dcls_tiny32", 3, 28, 1, mixer="conv", **stages)
    model = replace(copy.deepcopy(plain), "depthwise", "dcls", size=7, count=5, share="stage", version="gauss")
    dcls_layers = layers(model)
    assert [len({id(layer.positions) for layer in dcls_layers[a:b]}) for a, b in ((0, 1), (1, 4), (4, 6))] == [1, 1, 1]
    assert len({id(layer.positions) for layer in dcls_layers}) == len({id(layer.sigma) for layer in dcls_layers}) == 3
    assert len({id(layer.weight) for layer in dcls_layers}) == 6
    apart = replace(copy.deepcopy(plain), "depthwise", "dcls", size=7, count=5, version="gauss")
    assert num_parameters(apart) - num_parameters(model) == 4 * 5 * (2 * 16 + 1 * 24)
    # What the operator makes of ConvNeXt has the state of the network with DCLS.
    published = build("convnext_dcls_tiny32", 3, 28, 1, count=5, version="gauss", **stages)
    assert num_parameters(model) == num_parameters(published)
    assert {*model.state_dict()} == {*published.state_dict()}


def test_shared_positions_travel_once():
    model = replace(build("cvt_tiny32", 3, 28, 1), "depthwise", "dcls", size=5, count=4, share="stage")
    tree = shared_state(model)
    positions = [key for key in tree if key.endswith("positions")]
    assert len(positions) == 3 < len(layers(model)) == 9
    with torch.no_grad():
        layers(model)[4].positions.add_(0.1)
    target = replace(build("cvt_tiny32", 3, 28, 1), "depthwise", "dcls", size=5, count=4, share="stage")
    payload = Payload({"model": shared_state(model)})
    _, received = decode_work(encode_work(WORK, payload, encode_payload(payload)))
    load_state(target, dict(received.trees["model"]))
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(target.eval()(x), model.eval()(x))
    twin = copy.deepcopy(model)
    assert [len({id(layer.positions) for layer in layers(each)}) for each in (model, twin)] == [3, 3]
    assert twin.double().to(torch.float32) is twin
    assert len({id(layer.positions) for layer in layers(twin)}) == 3


def test_each_call_shares_on_its_own():
    one, other = (replace(build("cnn", 3, 12, 1), "conv", "dcls", share="stage") for _ in range(2))
    ids = [{id(layer.positions) for layer in layers(model)} for model in (one, other)]
    assert ids[0].isdisjoint(ids[1])


# In models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"size": 9, "count": 6}, {"version": "gauss", "share": "stage", "size": 15}])
def test_a_layer_is_run_in_every_way(options):
    check_layer(dcls, **options)


@pytest.mark.parametrize("options", [{}, {"version": "gauss", "share": "stage", "size": 5, "count": 4}])
def test_models_with_it_learn(options):
    check_learns("dcls", **options)


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 6}, r"model\.operators\.dcls\.size should be odd, 3 or more, found 6\. Use 7"),
        ({"size": 1}, r"model\.operators\.dcls\.size should be odd, 3 or more, found 1\. Use 3"),
        ({"size": 7.0}, r"model\.operators\.dcls\.size should be a whole number"),
        ({"count": 0}, r"model\.operators\.dcls\.count"),
        ({"version": "v0"}, r"model\.operators\.dcls\.version should be v1 or gauss, found 'v0'"),
        ({"share": "model"}, r"model\.operators\.dcls\.share should be layer or stage"),
    ],
)
def test_errors_name_the_key(options, message):
    with pytest.raises(ValueError, match=message):
        dcls(site(nn.Conv2d(1, 1, 3, padding=1)), **options)


@pytest.mark.parametrize(
    ("keywords", "size", "message"),
    [
        ({"kernel_size": 4}, 7, "found a kernel of 4 x 4"),
        ({"kernel_size": 7}, 5, r"size 7 or more, found a kernel of 7 with padding \(0, 0\) for size 5"),
        ({"kernel_size": 3, "dilation": 3}, 5, "size 7 or more"),
        ({"kernel_size": 3, "padding_mode": "circular"}, 7, "padding_mode='circular'"),
    ],
)
def test_places_that_do_not_fit(keywords, size, message):
    conv = nn.Conv2d(2, 2, **keywords)
    drawn = torch.get_rng_state()
    with pytest.raises(UnfitError, match=rf"model\.operators\.dcls: layer 'stem'.*{message}"):
        dcls(site(conv, "stem"), size=size)
    assert torch.equal(torch.get_rng_state(), drawn)
    if keywords["kernel_size"] == 7:  # and what the message asks for works
        x = torch.randn(1, 2, HEIGHT, WIDTH)
        assert F.conv2d(x, dcls(site(conv), size=7).kernel()).shape == conv(x).shape
