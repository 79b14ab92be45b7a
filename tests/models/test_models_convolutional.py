"""ResNet, AlexNet and the MLP's dropout: published counts, the block's equation, what FOT's papers need."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import seeded_with
from umbel.models import build, describe, options
from umbel.models.norm import batch_norm_names, replace_batch_norm
from umbel.models.resnet import BasicBlock
from umbel.models.weights import load_state, shared_state

NAMES = ("resnet18", "resnet34", "alexnet_small")


seeded = seeded_with(7)


def num_parameters(name: str, *arguments: int, **sizes) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(name, *arguments, **sizes).parameters())


# Counts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "published"), [("resnet18", 11_173_962), ("resnet34", 21_282_122)])
def test_counts_at_cifar(name, published):
    assert num_parameters(name, 10) == published
    assert build(name, 10, width=2).num_features == 16 and options(name)["image_size"] == 32


def test_counts_of_fots_networks():
    convolutions = 64 * 3 * 4**2 + 128 * 64 * 3**2 + 256 * 128 * 2**2
    linear = 256 * 2**2 * 2048 + 2048 * 2048 + 2048 * 100
    assert num_parameters("alexnet_small", 100) == convolutions + linear == 6_704_128  # 26.8 MB
    # Without norms: each normalisation's weight and bias fewer.
    assert num_parameters("resnet18", 10) - num_parameters("resnet18", 10, norm="none") == 2 * 4800
    assert num_parameters("resnet18", 10, width=20, norm="none") == 1_091_750
    assert num_parameters("resnet18", 10, norm="none", bias=True) - num_parameters("resnet18", 10, norm="none") == 4800
    assert num_parameters("mlp", 10, 28, 1, hidden=400, depth=3) == 638_810


def test_counts_of_niid_benchs_network():
    convolutions, maps = 6 * (25 + 1) + 16 * (6 * 25 + 1), 16 * 4**2
    linear = 120 * (maps + 1) + 84 * (120 + 1) + 10 * (84 + 1)
    assert num_parameters("lenet", 10, 28, 1) == convolutions + linear == 44_426
    assert num_parameters("lenet", 10, 32, 3) == 62_006


def test_what_fot_sends_at_a_boundary_of_the_papers_networks():
    """The paper's widths, D for convolutions and the MLP and 5 D for AlexNet's linear layers, no row of ones."""
    alexnet = build("alexnet_small", 100, width=64)
    inputs = {name: p[0].numel() for name, p in alexnet.named_parameters() if not name.startswith("head")}
    floats = sum((5 if name.startswith("fc") else 1) * d * d for name, d in inputs.items())
    assert floats == 26_810_624  # 107 MB
    mlp = build("mlp", 10, 28, 1)
    assert sum(p[0].numel() ** 2 for p in mlp.parameters() if p.ndim > 1) == 1_094_656


# Forward --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (28, 1)])
def test_logits_are_the_head_of_the_features(name, size, channels):
    model = build(name, 5, size, channels, width=4)
    x = torch.randn(2, channels, size, size)
    model(x).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    features = model.features(x)
    assert features.shape == (2, model.num_features) == (2, model.head.in_features)
    assert torch.equal(model(x), model.head(features))
    assert describe(name).endswith(".")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("outputs", [3, 5])
def test_the_block_is_its_equation(stride, outputs):
    block = BasicBlock(3, outputs, stride, nn.BatchNorm2d, bias=False).double()
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)

    def norm(y):  # over the batch, weight 1 and bias 0 at the start
        centred = y - y.mean((0, 2, 3), keepdim=True)
        return centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()

    change = torch.relu(norm(F.conv2d(x, block.conv1.weight, stride=stride, padding=1)))
    change = norm(F.conv2d(change, block.conv2.weight, padding=1))
    same = stride == 1 and outputs == 3
    shortcut = x if same else norm(F.conv2d(x, block.shortcut[0].weight, stride=stride))
    torch.testing.assert_close(block(x), torch.relu(change + shortcut))
    assert isinstance(block.shortcut, nn.Identity) == same


def test_maps_of_resnet_halve_and_channels_double():
    model = build("resnet34", 10, width=4).eval()
    shapes = []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    model(torch.randn(1, 3, 32, 32))
    assert shapes == [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]
    assert [len(stage) for stage in model.stages] == [3, 4, 6, 3]


def test_maps_of_alexnet():
    model = build("alexnet_small", 10, width=2, hidden=8)
    assert (model.conv1.weight.shape[1:], model.fc1.in_features) == ((3, 4, 4), 8 * 2 * 2)
    assert all(not name.endswith("bias") for name, _ in model.named_parameters())
    assert build("alexnet_small", 10, 19, 1, width=2, hidden=8).fc1.in_features == 8
    assert build("alexnet_small", 10, width=2, hidden=8, bias=True).head.bias is not None


def test_dropout_is_light_then_heavy():
    model = build("alexnet_small", 10, width=2, hidden=8, dropout=[0.1, 0.4])
    assert (model.light.p, model.heavy.p) == (0.1, 0.4)
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    layers = build("mlp", 10, 8, 1, hidden=4, depth=3, dropout=[0.2, 0.5, 0.5]).layers
    assert [layer.p for layer in layers if isinstance(layer, nn.Dropout)] == [0.2, 0.5, 0.5]


# Norms ----------------------------------------------------------------------------------------------------


def test_norms_of_resnet():
    stateless = build("resnet18", 10, width=2, norm="batch_stateless").eval()
    assert not [name for name in stateless.state_dict() if "running" in name or "num_batches" in name]
    x = torch.randn(3, 3, 32, 32)
    alone, together = stateless(x[:2])[0], stateless(x)[0]
    assert not torch.allclose(alone, together)  # its statistics are the batch's, in evaluation too
    plain = build("resnet18", 10, width=2, norm="none")
    assert not batch_norm_names(plain) and not [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    grouped = replace_batch_norm(build("resnet18", 10, width=2))
    assert not batch_norm_names(grouped) and grouped(x).shape == (3, 10)


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip(name):
    x = torch.randn(2, 3, 32, 32)
    source, target = build(name, 4, width=2), build(name, 4, width=2)
    source(x)
    load_state(target, shared_state(source))
    assert torch.equal(source.eval()(x), target.eval()(x))


@pytest.mark.parametrize(
    ("arguments", "sizes", "message"),
    [
        (("resnet18", 10), {"norm": "layer"}, r"model\.sizes\.norm should be one of batch, batch_stateless, none"),
        (("resnet34", 10), {"width": 0}, r"model\.sizes\.width should be a whole number"),
        (("resnet18", 10), {"bias": 1}, r"model\.sizes\.bias should be true or false, found 1"),
        (("resnet18", 10), {"widht": 3}, r"Did you mean 'width'"),
        (("alexnet_small", 10, 18), {}, r"model\.image_size: .* 19 px or more, found 18\. Use 28 or 32"),
        (("alexnet_small", 10), {"dropout": 0.5}, r"model\.sizes\.dropout should be a list of 2 numbers"),
        (("alexnet_small", 10), {"dropout": [0.5, 1.0]}, r"model\.sizes\.dropout should be a number from 0"),
        (("alexnet_small", 10), {"bias": "no"}, r"model\.sizes\.bias should be true or false"),
        (("mlp", 10), {"dropout": [0.2, 0.5]}, r"model\.sizes\.dropout .* a list of 3 \(model\.sizes\.depth\)"),
    ],
)
def test_build_says_what_is_wrong(arguments, sizes, message):
    with pytest.raises(ValueError, match=message):
        build(*arguments, **sizes)
