"""SGConvNeXt: its count beside the published figure, the kernels of each stage, sizes and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models_helpers import check_forward, num_parameters, on_meta, seeded_with
from umbel.models import build, describe
from umbel.models.convnext_dcls import ConvNeXtBlock
from umbel.models.norm import batch_norm_names
from umbel.models.operators.sgconv import SGConv2d
from umbel.models.sgconvnext import map_sides

seeded = seeded_with(7)


def mixers(model):
    return [module for module in model.modules() if isinstance(module, SGConv2d)]


def test_count_of_t():
    """A ConvNeXt-T without its 7 x 7 kernels and their biases, and with ours: beside 29 M, which is unconfirmed."""
    model = on_meta("sgconvnext_t", 1000)
    dims, depths = (96, 192, 384, 768), (3, 3, 9, 3)
    scales = (9, 7, 5, 3)  # of 56 x 56, 28 x 28, 14 x 14 and 7 x 7 places, 16 and more each
    kernels = sum(depth * dim * (2 * 16 * n + 1) for dim, depth, n in zip(dims, depths, scales, strict=True))
    plain = num_parameters(on_meta("convnext_dcls_tiny", 1000, mixer="conv"))
    assert num_parameters(model) == plain - sum(50 * dim * d for dim, d in zip(dims, depths, strict=True)) + kernels
    assert num_parameters(model) == 29_250_664
    assert describe("sgconvnext_t").endswith("29.3 M parameters at 1000 classes.")
    assert [layer.sequence.weight.shape[0] for layer in mixers(model)] == [9] * 3 + [7] * 3 + [5] * 9 + [3] * 3
    assert not batch_norm_names(model)


def test_count_of_tiny():
    assert num_parameters(on_meta("sgconvnext_tiny32", 10)) == 284_618
    assert describe("sgconvnext_tiny32").endswith("0.28 M parameters at 10 classes.")


def test_every_block_has_a_global_convolution_and_no_bias():
    model = on_meta("sgconvnext_tiny32", 10, dims=(8, 16), depths=(1, 2))
    blocks = [module for module in model.modules() if isinstance(module, ConvNeXtBlock)]
    assert [type(block.mixer) for block in blocks] == [SGConv2d] * 3
    assert all(block.mixer.bias is None and block.mixer.sequence.linear is None for block in blocks)
    assert not any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in model.modules())


def test_sides():
    assert map_sides(224, (4, 2, 2, 2)) == [56, 28, 14, 7]
    assert map_sides(15, (2, 2)) == [8, 4]


@pytest.mark.parametrize(("size", "scales"), [(4, [5, 3]), (28, [5, 3]), (32, [5, 3]), (36, [6, 4]), (64, [7, 5])])
def test_kernels_are_long_enough(size, scales):
    model = on_meta("sgconvnext_tiny32", 10, size, dims=(8, 16), depths=(2, 2))
    assert [layer.sequence.weight.shape[0] for layer in mixers(model)] == [n for n in scales for _ in range(2)]


def test_a_place_is_heard_everywhere():
    block = build("sgconvnext_tiny32", 3, 28, 1).double().eval().stages[0][2]
    x = torch.randn(1, 32, 14, 14).double()
    other = x.clone()
    other[:, :, 3, 9] += 1
    assert (block(x) != block(other)).flatten(2).any(1).all()


def test_t_at_32_px():
    check_forward(build("sgconvnext_t", 5, 32, layer_scale=0.1, drop_path=0.3), 1, 2)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("sgconvnext_t", {"image_size": 100}, r"model\.image_size.*Use 96"),
        ("sgconvnext_t", {"scale_dim": 0}, r"model\.sizes\.scale_dim"),
        ("sgconvnext_t", {"layer_scale": 0}, r"model\.sizes\.layer_scale"),
        ("sgconvnext_t", {"drop_path": 1.0}, r"model\.sizes\.drop_path"),
        ("sgconvnext_tiny32", {"image_size": 3}, r"model\.image_size.*Use 4"),
        ("sgconvnext_tiny32", {"dims": []}, r"model\.sizes\.dims"),
        ("sgconvnext_tiny32", {"depths": [1, 0, 1]}, r"model\.sizes\.depths"),
        ("sgconvnext_tiny32", {"mlp_ratio": 1.5}, r"model\.sizes\.mlp_ratio"),
        ("sgconvnext_tiny32", {"scale_dim": "16"}, r"model\.sizes\.scale_dim"),
        ("sgconvnext_tiny32", {"layer_scale": -1}, r"model\.sizes\.layer_scale"),
    ],
)
def test_errors_name_the_key(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        on_meta(name, 10, **sizes)
