"""Local-global convolution: its branch against loops, where it begins, its count, its place, training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models_helpers import num_parameters, perturbed, randomise, seeded_with
from tests.operators_helpers import check_every_tiny, check_learns, check_modes, site
from umbel.models import build
from umbel.models.norm import batch_norm_names, replace_batch_norm
from umbel.models.operators import replace
from umbel.models.operators.base import UnfitError
from umbel.models.operators.local_global import LocalGlobalConv, gather_and_spread, local_global

seeded = seeded_with(5)


def test_gather_and_spread_against_loops():
    values, gather, spread = (torch.randn(2, channels, 3, 4).double() for channels in (6, 3, 3))
    expected = torch.zeros_like(values)
    for b in range(2):
        for channel in range(6):
            head = channel // 2
            weights = gather[b, head].exp() / gather[b, head].exp().sum()
            pooled = sum(weights[y, z] * values[b, channel, y, z] for y in range(3) for z in range(4))
            for y in range(3):
                for z in range(4):
                    expected[b, channel, y, z] = pooled / (1 + (-spread[b, head, y, z]).exp())
    torch.testing.assert_close(gather_and_spread(values, gather, spread), expected)


@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 2, 1), (2, 1, 1), ((1, 2), 1, 8)])
def test_the_layer_is_its_equation(stride, dilation, groups):
    conv = nn.Conv2d(8, 16, 3, stride, dilation, dilation, groups)
    layer = perturbed(local_global(site(conv, 5, 6), heads=4, reduction=3))
    branch, x = layer.branch, torch.randn(2, 8, 5, 6).double()

    def point(part, vectors):  # [B, C] of one place
        return vectors @ part.weight[:, :, 0, 0].T + part.bias

    places = [(y, z) for y in range(5) for z in range(6)]
    local = {place: point(branch.reduce, x[:, :, *place]).relu() for place in places}
    mean = sum(local.values()) / 30
    assert mean.shape == (2, 2)
    gather, spread, values = (torch.zeros(2, channels, 5, 6).double() for channels in (4, 4, 8))
    for place in places:
        both = torch.cat((local[place], mean), dim=1)
        gather[:, :, *place], spread[:, :, *place] = point(branch.gather, both), point(branch.spread, both)
        values[:, :, *place] = point(branch.value, x[:, :, *place])
    heard = x + gather_and_spread(values, gather, spread)
    rows, columns = conv.stride
    out = torch.einsum("oc,bcyz->boyz", branch.out.weight[:, :, 0, 0], heard[:, :, ::rows, ::columns])
    out = out + branch.out.bias[:, None, None]
    norm = branch.norm
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
    normed = (out - norm.running_mean[:, None, None]) * scale + norm.bias[:, None, None]
    torch.testing.assert_close(layer(x), conv(x) + normed)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("groups", [1, 16])
def test_it_begins_within_a_thousandth_of_the_convolution(training, groups):
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=groups)
    layer = local_global(site(conv, 14, 14)).train(training)
    x = torch.randn(8, 16, 14, 14)
    apart = (layer(x) - conv(x)).abs()
    assert 0 < apart.max() < 1e-3
    assert layer.conv is conv


def test_a_model_begins_as_it_was():
    model, x = build("cvt_tiny32", 3, 28, 1).eval(), torch.randn(4, 1, 28, 28)
    before, weights = model(x), [p.clone() for p in model.parameters()]
    replace(model, "conv", "local_global")
    assert sum(isinstance(module, LocalGlobalConv) for module in model.modules()) == 11
    torch.testing.assert_close(model(x), before, rtol=1e-2, atol=1e-2)
    names = [name for name, _ in model.named_parameters() if ".branch." not in name]
    assert len(names) == len(weights)
    state = dict(model.named_parameters())
    assert all(torch.equal(state[name], old) for name, old in zip(names, weights, strict=True))


def test_the_norm_is_as_published_and_gives_way():
    branch = local_global(site(nn.Conv2d(64, 512, 3, padding=1), 8, 8)).branch
    assert 0.8e-4 < branch.norm.weight.std() < 1.2e-4 and not branch.norm.bias.any()
    model = replace(build("cnn", 3, 28, 1), "conv", "local_global")
    assert {name.rsplit(".", 2)[0] for name in batch_norm_names(model)} == {"conv2.branch"}
    count = num_parameters(model)
    assert num_parameters(replace_batch_norm(model)) == count
    assert not batch_norm_names(model)
    model(torch.randn(1, 1, 28, 28)).sum().backward()


def test_count():
    conv = nn.Conv2d(32, 48, 3, padding=1, bias=False)
    added = num_parameters(local_global(site(conv, 8, 8))) - num_parameters(conv)
    assert added == (32 * 8 + 8) + 2 * (16 * 8 + 8) + (32 * 32 + 32) + (32 * 48 + 48) + 2 * 48
    assert abs(added - (1.25 * 32**2 + 32 * 48)) < 600


@pytest.mark.parametrize("groups", [1, 8])
def test_ways_of_running(groups):
    conv = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=groups)
    check_modes(randomise(local_global(site(conv, 9, 7)), std=0.3), conv, torch.randn(3, 8, 9, 7))


def test_a_batch_of_one_trains():
    layer = local_global(site(nn.Conv2d(8, 8, 3, stride=2, padding=1), 4, 2))
    layer(torch.randn(1, 8, 4, 2)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


@pytest.mark.parametrize(
    ("conv", "side", "message"),
    [
        (nn.Conv2d(12, 8, 3, padding=1), 8, "a multiple of 8 channels, found 12"),
        (nn.Conv2d(8, 8, 3), 8, r"stride alone shrinks the map, found \(6, 6\)"),
        (nn.Conv2d(8, 8, 3, stride=2, padding=1), 2, "more than one place, found a map of 1 x 1"),
    ],
)
def test_what_it_cannot_stand_for(conv, side, message):
    before = torch.get_rng_state()
    with pytest.raises(UnfitError, match=rf"model\.operators\.local_global: layer 'layer'.*{message}"):
        local_global(site(conv, side, side))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("option", [{"heads": 0}, {"reduction": 1.5}])
def test_errors_name_the_option(option):
    with pytest.raises(ValueError, match=rf"model\.operators\.local_global\.{next(iter(option))}"):
        replace(build("cnn", 10), "conv", "local_global", **option)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_tiny_model():
    check_every_tiny("local_global", LocalGlobalConv, least=14)


@pytest.mark.parametrize(("name", "size", "channels"), [("cvt_tiny32", 28, 1), ("cnn", 32, 3)])
def test_it_learns(name, size, channels):
    check_learns(name, "local_global", size, channels)
