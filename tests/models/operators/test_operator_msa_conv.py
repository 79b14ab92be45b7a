"""MSA-Conv: attention within windows against a direct loop, its count, where it goes, and training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models_helpers import num_parameters, randomise, seeded_with
from tests.operators_helpers import check_every_tiny, check_learns, check_modes, site
from umbel.core.names import UnknownNameError
from umbel.models import build
from umbel.models.operators import replace
from umbel.models.operators.base import UnfitError
from umbel.models.operators.msa_conv import MSAConv, msa_conv, off_map, roll_heads, window_scores, window_sum

seeded = seeded_with(5)


def direct(layer: MSAConv, x: torch.Tensor) -> torch.Tensor:
    """Attend window by window, before the shortcut and the convolution."""
    conv, heads = layer.conv, layer.heads
    batch, dim, height, width = x.shape
    weight, bias = layer.qkv.weight[:, :, 0, 0], layer.qkv.bias
    out = torch.zeros_like(x)
    for b in range(batch):
        for head in range(heads):
            rows = slice(head * dim // heads, (head + 1) * dim // heads)
            parts = [slice(part * dim + rows.start, part * dim + rows.stop) for part in range(3)]
            down, right = layer.shifts[head] if layer.shifts else (0, 0)

            def project(part, y, z, b=b, parts=parts):
                return weight[parts[part]] @ x[b, :, y, z] + bias[parts[part]]

            for y in range(height):
                for z in range(width):
                    query, logits, values = project(0, y, z), [], []
                    for i in range(conv.kernel_size[0]):
                        for j in range(conv.kernel_size[1]):
                            row = y + (i - conv.kernel_size[0] // 2) * conv.dilation[0]
                            column = z + (j - conv.kernel_size[1] // 2) * conv.dilation[1]
                            if 0 <= row < height and 0 <= column < width:
                                place = (row - down) % height, (column - right) % width
                                logits.append(query @ project(1, *place) * (dim / heads) ** -0.5)
                                values.append(project(2, *place))
                            elif not layer.mask:
                                logits.append(x.new_zeros(()))
                                values.append(torch.zeros_like(query))
                    shares = torch.stack(logits).softmax(0)
                    out[b, rows, y, z] = shares @ torch.stack(values)
    return out


CASES = [
    (nn.Conv2d(3, 4, 3, padding=1, bias=False), 1, None, False),
    (nn.Conv2d(4, 3, 3, stride=2, padding=2, dilation=2, bias=False), 1, None, False),
    (nn.Conv2d(4, 2, (3, 5), stride=(2, 1), padding=(1, 4), dilation=(1, 2)), 2, None, True),
    (nn.Conv2d(4, 5, 3, stride=3), 2, ((1, 0), (0, -2)), False),
    (nn.Conv2d(6, 5, 3, padding=1), 3, ((1, 1), (0, -2), (0, 0)), True),
]


@pytest.mark.parametrize(("conv", "heads", "shifts", "mask"), CASES)
def test_against_a_loop_over_windows(conv, heads, shifts, mask):
    layer = randomise(MSAConv(conv, heads, shifts, mask)).double()
    x = torch.randn(2, conv.in_channels, 4, 6).double()
    attended = direct(layer, x)
    torch.testing.assert_close(layer.attend(x), attended)
    torch.testing.assert_close(layer(x), torch.relu(conv.double()(x + attended)))


def test_scores_and_sums_of_one_place():
    queries, keys = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)
    queries[0, :, 1, 1] = torch.tensor([2.0, 3.0])
    keys[0, :, 0, 2] = torch.tensor([5.0, 7.0])  # above and to the right of the middle
    scores = window_scores(queries, keys, (3, 3))
    assert scores.nonzero().tolist() == [[0, 2, 1, 1]] and scores.max() == 31
    weights = torch.zeros(1, 9, 3, 3)
    weights[0, 2, 1, 1] = 0.5
    total = window_sum(weights, keys, (3, 3))
    assert total[0, :, 1, 1].tolist() == [2.5, 3.5] and total.abs().sum() == 6


def test_what_is_off_the_map():
    mask = off_map(2, 3, (3, 1), (1, 1), torch.zeros(1))
    assert mask.shape == (1, 3, 2, 3)
    assert torch.isinf(mask).nonzero().tolist() == [[0, 0, 0, z] for z in range(3)] + [[0, 2, 1, z] for z in range(3)]
    assert not (mask[~torch.isinf(mask)]).any()


def test_padded_keys_have_a_logit_of_zero():
    """With no key nor query the window is a mean: over all K places, or over those on the map."""
    for mask, corner in ((False, 4 / 9), (True, 1.0)):
        layer = MSAConv(nn.Conv2d(2, 2, 3, padding=1), mask=mask)
        nn.init.zeros_(layer.qkv.weight)
        nn.init.zeros_(layer.qkv.bias)
        nn.init.ones_(layer.qkv.bias[4:])
        attended = layer.attend(torch.randn(1, 2, 3, 3))
        torch.testing.assert_close(attended[0, :, 0, 0], torch.full((2,), corner))
        torch.testing.assert_close(attended[0, :, 1, 1], torch.ones(2))


def test_heads_are_rolled_apart():
    x = torch.arange(12.0).reshape(1, 2, 2, 3)
    rolled = roll_heads(x, ((1, 0), (0, -1)))
    assert torch.equal(rolled[0, 0], x[0, 0].roll(1, 0)) and torch.equal(rolled[0, 1], x[0, 1].roll(-1, 1))
    layer = MSAConv(nn.Conv2d(4, 4, 3, padding=1), 2, ((0, 0), (0, 0)))
    x = torch.randn(1, 4, 3, 3)
    shifted = layer.attend(x)
    layer.shifts = None
    assert torch.equal(layer.attend(x), shifted)


@pytest.mark.parametrize("bias", [False, True])
def test_the_convolution_stays_with_its_weights(bias):
    conv = nn.Conv2d(6, 10, 5, padding=2, bias=bias)
    layer = msa_conv(site(conv, 7, 7))
    assert num_parameters(layer) == 3 * 6**2 + 3 * 6 + 6 * 10 * 25 + (10 if bias else 0)
    assert layer.conv is conv
    assert list(layer.state_dict())[:2] == ["qkv.weight", "qkv.bias"]


def test_dropout_is_of_weights_and_of_training():
    layer = msa_conv(site(nn.Conv2d(4, 4, 3, padding=1), 6, 6), dropout=0.5)
    x = torch.randn(2, 4, 6, 6)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("mask", [False, True])
def test_ways_of_running(mask):
    conv = nn.Conv2d(6, 4, 3, stride=2, padding=2, dilation=2)
    check_modes(randomise(msa_conv(site(conv, 9, 7), heads=2, mask=mask), std=0.2), conv, torch.randn(3, 6, 9, 7))


@pytest.mark.parametrize(
    ("conv", "options", "message"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), {}, "without groups, found 2 groups"),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), {}, "without groups, found 4 groups"),
        (nn.Conv2d(4, 4, 2, stride=2), {}, r"odd sides.*\[2, 2\]"),
        (nn.Conv2d(4, 4, 1), {}, r"odd sides.*\[1, 1\]"),
        (nn.Conv2d(3, 4, 3), {"heads": 2}, "a multiple of 2 channels, found 3"),
    ],
)
def test_what_it_cannot_stand_for(conv, options, message):
    before = torch.get_rng_state()
    with pytest.raises(UnfitError, match=f"model.operators.msa_conv: layer 'layer'.*{message}"):
        msa_conv(site(conv, 8, 8), **options)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("option", [{"heads": 0}, {"mask": 1}, {"dropout": 1.0}])
def test_errors_name_the_option(option):
    with pytest.raises(ValueError, match=rf"model\.operators\.msa_conv\.{next(iter(option))}"):
        replace(build("cnn", 10), "conv", "msa_conv", **option)
    with pytest.raises(UnknownNameError, match="heads"):
        replace(build("cnn", 10), "conv", "msa_conv", head=2)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_tiny_model():
    check_every_tiny("msa_conv", MSAConv, least=13)


@pytest.mark.parametrize(("name", "size", "channels"), [("cvt_tiny32", 28, 1), ("cnn", 32, 3)])
def test_it_learns(name, size, channels):
    model = check_learns(name, "msa_conv", size, channels)
    assert sum(isinstance(module, MSAConv) for module in model.modules()) == (3 if name == "cvt_tiny32" else 2)
    model(torch.randn(1, channels, size, size)).sum().backward()
