"""TiC: its layers are those of the operator, shifts and pooling by hand, the block's equation, sizes and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models_helpers import check_forward, num_parameters, on_meta, randomise, seeded_with
from umbel.models import build, describe
from umbel.models.layers import LayerNorm2d
from umbel.models.norm import batch_norm_names
from umbel.models.operators.msa_conv import MSAConv
from umbel.models.tic import DIRECTIONS, Shrink, TiCBlock, shifts_of

seeded = seeded_with(7)


def layers(model):
    return [module for module in model.modules() if isinstance(module, MSAConv)]


def test_count_by_hand():
    def layer(inputs, outputs):
        return 3 * inputs**2 + 3 * inputs + 9 * inputs * outputs

    # The norm of what goes in, 2 C, stands before each layer.
    expected = (27 * 32 + 32 + 64) + 2 * (layer(32, 32) + 64) + (layer(32, 64) + 64) + 2 * (layer(64, 64) + 128)
    expected += 128 + 65 * 10
    assert num_parameters(on_meta("tic_tiny32", 10)) == expected == 147_242
    assert describe("tic_tiny32").endswith("0.15 M parameters at 10 classes.")


def test_every_layer_is_the_operators():
    model = on_meta("tic_tiny32", 10)
    assert len(layers(model)) == 5
    attended = {id(part) for layer in layers(model) for part in layer.modules()}
    others = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and id(m) not in attended]
    assert len(others) == 2  # the stem and the head
    assert not batch_norm_names(model)


@pytest.mark.parametrize(("side", "far"), [(2, 1), (3, 1), (4, 1), (8, 2), (14, 4), (16, 4)])
def test_shifts(side, far):
    assert shifts_of(5, side, 0.25) == [(0, far), (0, -far), (far, 0), (-far, 0), (far, far)]
    assert shifts_of(9, side, 0.25)[8] == (0, far)
    assert shifts_of(4, side, 0.0) is None


def test_the_directions_are_the_neighbours():
    assert sorted((0, 0, *place) for place in DIRECTIONS) == sorted(
        (0, 0, y, z) for y in (-1, 0, 1) for z in (-1, 0, 1) if (y, z) != (0, 0)
    )


def test_every_second_block_looks_elsewhere():
    model = on_meta("tic_tiny32", 10, 32, depths=(3, 2), dilations=(1, 2), heads=2)
    assert [(layer.window[1][0], layer.shifts) for layer in layers(model)] == [
        (1, None),
        (2, ((0, 4), (0, -4))),
        (1, None),
        (1, None),  # opens the second stage
        (1, None),
        (2, ((0, 2), (0, -2))),
    ]
    assert not any(layer.shifts for layer in layers(on_meta("tic_tiny32", 10, shift=0)))


def test_a_shifted_head_hears_of_a_far_place():
    """What changes in a place reaches a query four places on only by way of the shift, and its neighbour without."""
    for shift, reached in ((0.25, True), (0.0, False)):
        model = build("tic_tiny32", 3, 32, 1, depths=(2, 1), dilations=(1,), shift=shift).double().eval()
        first, second = (module for module in model.stages[0] if isinstance(module, TiCBlock))
        x = torch.randn(1, 32, 16, 16).double()
        other = x.clone()
        other[:, :, 8, 2] += 1
        apart = (second.layer.attend(x) - second.layer.attend(other)).abs().sum(1)[0]
        assert bool(apart[8, 6]) == bool(apart[4, 2]) == reached  # four to the right, four up
        assert bool(apart[8, 3]) != reached and first.layer.shifts is None


def test_the_block_is_its_equation():
    block = randomise(on_meta("tic_tiny32", 10).stages[0][3].to_empty(device="cpu"), std=0.3).double().eval()
    x = torch.randn(2, 32, 5, 4).double()
    normed = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    normed = normed * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
    expected = x + torch.relu(block.layer.conv(normed + block.layer.attend(normed)))
    torch.testing.assert_close(block(x), expected)


def test_pooling_is_a_mean_and_parts_the_stages():
    pooled, strided = (build("tic_tiny32", 3, 28, 1, pooling=pooling) for pooling in (True, False))
    assert num_parameters(pooled) == num_parameters(strided)
    assert strided.stages[1][0].layer.conv.stride == (2, 2) and pooled.stages[1][0].layer.conv.stride == (1, 1)
    shrink = Shrink(nn.Identity(), 2, 2)
    shrink.norm = nn.Identity()
    x = torch.randn(1, 2, 3, 3)
    expected = torch.stack(
        [
            torch.stack([x[:, :, :2, :2].mean((2, 3)), x[:, :, :2, 2].mean(2)], -1),
            torch.stack([x[:, :, 2, :2].mean(2), x[:, :, 2, 2]], -1),
        ],
        2,
    )
    torch.testing.assert_close(shrink(x), expected)
    for model in (pooled, strided):
        sides = []
        for stage in model.stages:
            stage.register_forward_hook(lambda _, __, output: sides.append(tuple(output.shape[2:])))  # noqa: B023
        check_forward(model, 1, 2)
        assert sides[:2] == [(14, 14), (7, 7)]


def test_features_are_the_mean_of_the_normed_map():
    model = build("tic_tiny32", 5, 28, 1).eval()
    assert isinstance(model.norm, LayerNorm2d)
    nn.init.normal_(model.norm.weight)
    x = torch.randn(2, 1, 28, 28)
    last = model.stages(x).flatten(2).transpose(1, 2)
    expected = nn.functional.layer_norm(last, (64,), model.norm.weight, model.norm.bias).mean(1)
    torch.testing.assert_close(model.features(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 5])
def test_other_windows(kernel):
    check_forward(build("tic_tiny32", 4, 15, 2, kernel=kernel, dims=(8, 16, 24), depths=(1, 2, 1), heads=8), 1, 2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 3}, r"model\.image_size.*Use 4"),
        ({"dims": []}, r"model\.sizes\.dims"),
        ({"depths": [1]}, r"model\.sizes\.depths"),
        ({"heads": 3}, r"model\.sizes\.heads"),
        ({"kernel": 4}, r"model\.sizes\.kernel.*Use 5"),
        ({"dilations": 2}, r"model\.sizes\.dilations"),
        ({"shift": 1}, r"model\.sizes\.shift"),
        ({"pooling": "no"}, r"model\.sizes\.pooling"),
        ({"drop_path": -0.1}, r"model\.sizes\.drop_path"),
    ],
)
def test_errors_name_the_key(sizes, message):
    with pytest.raises(ValueError, match=message):
        on_meta("tic_tiny32", 10, **sizes)
