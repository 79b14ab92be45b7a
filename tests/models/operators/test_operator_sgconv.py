"""SGConv: Fourier transform against direct sums, the kernel's scales and norm, published counts, places, training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.core.wire.test_messages import WORK
from tests.models_helpers import num_parameters, randomise, seeded_with
from tests.operators_helpers import check_every_tiny, check_learns, check_modes, site
from umbel.core.records import Payload
from umbel.core.wire.messages import decode_work, encode_payload, encode_work
from umbel.models import build
from umbel.models.operators import replace
from umbel.models.operators.base import UnfitError
from umbel.models.operators.sgconv import SGConv, SGConv2d, global_convolution, num_scales, sgconv, stretching
from umbel.models.weights import load_state, shared_state

seeded = seeded_with(5)


def direct(u: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Sum place by place, in O(L^2)."""
    length, reach = u.shape[2], kernel.shape[2]
    out = torch.zeros_like(u)
    for s in range(length):
        for t in range(length):
            if t <= s and s - t < reach:
                out[:, :, s] += kernel[0, :, s - t] * u[:, :, t]
            elif t > s and len(kernel) == 2 and t - s - 1 < reach:
                out[:, :, s] += kernel[1, :, t - s - 1] * u[:, :, t]
    return out


# The convolution ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("length", "reach"), [(1, 4), (7, 16), (12, 12), (15, 4)])
def test_against_direct_sums(directions, length, reach):
    u, kernel = torch.randn(2, 3, length).double(), torch.randn(directions, 3, reach).double()
    torch.testing.assert_close(global_convolution(u, kernel), direct(u, kernel))


def test_the_last_place_of_one_direction_does_not_reach_the_other():
    u = torch.tensor([[[1.0, 0, 0]]])
    kernel = torch.tensor([[[2.0, 3, 5]], [[7.0, 11, 13]]])
    torch.testing.assert_close(global_convolution(u, kernel), torch.tensor([[[2.0, 3, 5]]]))
    torch.testing.assert_close(global_convolution(u.flip(-1), kernel), torch.tensor([[[11.0, 7, 2]]]))


@pytest.mark.parametrize("project", [False, True])
def test_the_module_is_its_equation(project):
    layer = randomise(SGConv(4, 21, 3, decay=0.7, project=project)).double()
    u = torch.randn(2, 4, 21).double()
    expected = direct(u, layer.kernel()) + layer.skip[None, :, None] * u
    if project:
        expected = (F.gelu(expected).transpose(1, 2) @ layer.linear.weight.T + layer.linear.bias).transpose(1, 2)
    torch.testing.assert_close(layer(u), expected)


def test_it_is_linear_in_its_input():
    layer = SGConv2d(3, 4, 5, 4).double()
    a, b = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 4, 5).double()
    torch.testing.assert_close(layer(2 * a - 3 * b), 2 * layer(a) - 3 * layer(b))


# The kernel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "dim", "scales"), [(16, 16, 1), (17, 16, 2), (32, 16, 2), (33, 16, 3), (5, 16, 1)])
def test_number_of_scales(length, dim, scales):
    assert num_scales(length, dim) == scales
    assert SGConv(2, length, dim).kernel().shape == (2, 2, dim * 2 ** (scales - 1))


def test_stretching_by_hand():
    one, same, twice = stretching(2, 3)
    assert torch.equal(one, torch.eye(2)) and torch.equal(same, torch.eye(2))
    assert torch.equal(twice, torch.tensor([[1, 0.75, 0.25, 0], [0, 0.25, 0.75, 1]]))
    weights = torch.randn(3, 5)
    for factor, matrix in zip((1, 1, 2, 4), stretching(5, 4), strict=True):
        expected = F.interpolate(weights[None], scale_factor=float(factor), mode="linear")[0]
        torch.testing.assert_close(weights @ matrix, expected)


def test_scales_fade_and_the_kernel_begins_with_norm_one():
    layer = SGConv(3, 40, 5, decay=0.25)
    start = layer.kernel()
    torch.testing.assert_close(start.norm(dim=-1), torch.ones(2, 3))
    nn.init.ones_(layer.weight)
    flat = layer.kernel() * layer.initial_norm
    expected = torch.cat([torch.full((5,), 1.0), torch.full((5,), 0.25), torch.full((10,), 1 / 16)])
    torch.testing.assert_close(flat[..., :20], expected.expand(2, 3, 20))
    torch.testing.assert_close(flat[..., 20:], torch.full((2, 3, 20), 1 / 64))
    # The authors let it grow from the far end by 1 / a; the norm makes that the same.
    with torch.no_grad():
        layer.weight.normal_()
    other = layer._kernel() * 4.0**3
    torch.testing.assert_close(other / other.norm(dim=-1, keepdim=True), F.normalize(layer._kernel(), dim=-1))


@pytest.mark.parametrize(
    ("dim", "length", "scale_dim", "bidirectional", "count"), [(16, 256, 32, True, 4384), (64, 64, 16, False, 7296)]
)
def test_published_counts(dim, length, scale_dim, bidirectional, count):
    layer = SGConv(dim, length, scale_dim, bidirectional, project=True)
    assert num_parameters(layer) == count
    assert layer(torch.randn(2, dim, length)).shape == (2, dim, length)


def test_one_direction_does_not_look_ahead():
    layer = SGConv(2, 9, 4, bidirectional=False)
    u = torch.randn(1, 2, 9)
    later = u.clone()
    later[:, :, 5:] += 1
    torch.testing.assert_close(layer(later)[:, :, :5], layer(u)[:, :, :5])
    assert not torch.allclose(SGConv(2, 9, 4)(later)[:, :, :5], SGConv(2, 9, 4)(u)[:, :, :5])


# The norm is state ----------------------------------------------------------------------------------------


def norms(model):
    return {key: value.clone() for key, value in model.state_dict().items() if key.endswith("initial_norm")}


def train(model, x):
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(len(x)) % 3).backward()
        optimizer.step()


def test_the_norm_is_the_servers_through_training_messages_and_means():
    def with_operator():
        return replace(build("cvt_tiny32", 3, 28, 1), "depthwise", "sgconv")

    server, clients = with_operator(), [with_operator() for _ in range(2)]
    begun = norms(server)
    assert begun and any(not torch.equal(value, norms(clients[0])[key]) for key, value in begun.items())
    payload = Payload({"model": shared_state(server)})
    trees = []
    for client in clients:
        client(torch.randn(2, 1, 28, 28))  # nothing may be set at the first forward pass
        _, received = decode_work(encode_work(WORK, payload, encode_payload(payload)))
        load_state(client, dict(received.trees["model"]))
        weights = client.stages[0].blocks[0].attention.conv_q.conv.sequence.weight
        before = weights.detach().clone()
        train(client, torch.randn(6, 1, 28, 28))
        assert not torch.equal(weights, before)
        assert all(torch.equal(value, begun[key]) for key, value in norms(client).items())
        trees.append(shared_state(client))
    load_state(server, {key: (trees[0][key] + trees[1][key]) / 2 for key in trees[0]})
    assert all(torch.equal(value, begun[key]) for key, value in norms(server).items())
    x = torch.randn(2, 1, 28, 28)
    load_state(clients[0], shared_state(server))
    assert torch.equal(server.eval()(x), clients[0].eval()(x))


def test_what_follows_from_the_options_does_not_travel():
    assert list(SGConv(4, 30, 4, project=True).state_dict()) == [
        *("weight", "skip", "initial_norm", "linear.weight", "linear.bias")
    ]


# In the place of a convolution ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conv", "height", "width"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), 5, 7),
        (nn.Conv2d(4, 4, 5, stride=(2, 3), padding=4, dilation=2, groups=4, bias=False), 7, 4),
        (nn.Conv2d(4, 4, (1, 5), padding=(0, 2), groups=4), 3, 3),
        (nn.Conv2d(4, 4, 7, padding="same", groups=4), 2, 5),
    ],
)
def test_it_reads_the_map_row_by_row(conv, height, width):
    layer = sgconv(site(conv, height, width), scale_dim=4).double()
    x = torch.randn(2, 4, height, width).double()
    sequence = x.reshape(2, 4, height * width)
    expected = direct(sequence, layer.sequence.kernel()) + layer.sequence.skip[:, None] * sequence
    expected = expected.reshape(x.shape)[:, :, :: conv.stride[0], :: conv.stride[1]]
    if conv.bias is not None:
        expected = expected + conv.bias.double()[:, None, None]
        assert layer.bias is not conv.bias
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).shape == conv.double()(x).shape


def test_count_in_words():
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
    assert num_parameters(sgconv(site(conv, 16, 8))) == 6 * (32 * 7 - 95)
    assert num_parameters(sgconv(site(conv, 4, 4))) == 6 * (32 * 4 - 95)


@pytest.mark.parametrize("project", [False, True])
def test_ways_of_running(project):
    conv = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6)
    check_modes(sgconv(site(conv, 9, 7), project=project), conv, torch.randn(3, 6, 9, 7))


def test_fourier_transforms_stay_in_single_precision():
    layer = sgconv(site(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), 16, 16))
    x = torch.randn(2, 8, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), layer.float()(x), rtol=0, atol=0)
        low = layer(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low, layer(x.bfloat16().float()).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), "depthwise or dense, found 4 channels in 2 groups"),
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), "depthwise"),
        (nn.Conv2d(4, 4, 3, groups=4), r"keep the map at stride 1, found padding \[0, 0\]"),
        (nn.Conv2d(4, 4, 4, padding=2, groups=4), "keep the map"),
    ],
)
def test_what_it_cannot_stand_for(conv, message):
    before = torch.get_rng_state()
    with pytest.raises(UnfitError, match=rf"model\.operators\.sgconv: layer 'layer'.*{message}"):
        sgconv(site(conv, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("option", [{"scale_dim": 0}, {"decay": 0}, {"project": "yes"}])
def test_errors_name_the_option(option):
    with pytest.raises(ValueError, match=rf"model\.operators\.sgconv\.{next(iter(option))}"):
        replace(build("cvt_tiny32", 10), "conv", "sgconv", **option)


@pytest.mark.parametrize("project", [False, True])
def test_a_convolution_without_groups_is_followed_by_a_linear_layer(project):
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    layer = sgconv(site(conv, 6, 5), scale_dim=4, project=project).double()
    x = torch.randn(2, 3, 6, 5).double()
    sequence = x.reshape(2, 3, 30)
    mixed = direct(sequence, layer.sequence.kernel()) + layer.sequence.skip[:, None] * sequence
    mixed = mixed.reshape(x.shape)[:, :, ::2, ::2]
    mixed = F.gelu(mixed) if project else mixed
    expected = torch.einsum("oi,bihw->bohw", layer.mix.weight[:, :, 0, 0], mixed) + conv.bias.double()[:, None, None]
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).shape == conv.double()(x).shape
    check_modes(sgconv(site(nn.Conv2d(3, 5, 3, stride=2, padding=1), 6, 5), project=project), conv.float(), x.float())


def test_in_the_cnn():
    model = replace(build("cnn", 3, 12, 1), "conv", "sgconv", scale_dim=4)
    assert sum(isinstance(module, SGConv2d) for module in model.modules()) == 2


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_tiny_model():
    check_every_tiny("sgconv", SGConv2d, least=13)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3)])
def test_it_learns(size, channels):
    model = check_learns("cvt_tiny32", "sgconv", size, channels, layers="depthwise", scale_dim=8)
    assert sum(isinstance(module, SGConv2d) for module in model.modules()) == 9
    x = torch.randn(2, channels, size, size)
    assert torch.equal(copy.deepcopy(model).eval()(x), model.eval()(x))
