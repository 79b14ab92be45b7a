"""DOLG: the orthogonal part, the generalised mean and the local branch against loops, and which maps they are of."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import num_parameters, perturbed, randomise, seeded_with
from umbel.models import build, names, operators
from umbel.models.base import Block, Model
from umbel.models.maps import last_map, map_layers
from umbel.models.operators.dolg import DOLG, LocalBranch, earlier_map, gem, orthogonal

TINY = tuple(name for name in names() if name.endswith("_tiny32"))

seeded = seeded_with(13)


def made(name: str = "cvt_tiny32", size: int = 28, channels: int = 1, **options) -> DOLG:
    return operators.replace(build(name, 3, size, channels), "head", "dolg", **options)


def test_the_orthogonal_part_against_a_loop():
    local, overall = torch.randn(3, 5, 4, 4, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    perpendicular = orthogonal(local, overall)
    for image in range(3):
        for row in range(4):
            for column in range(4):
                place, whole = local[image, :, row, column], overall[image]
                expected = place - (place @ whole) / (whole @ whole) * whole
                torch.testing.assert_close(perpendicular[image, :, row, column], expected, rtol=0, atol=1e-14)
    assert torch.einsum("bcyx,bc->byx", perpendicular, overall).abs().max() < 1e-12
    torch.testing.assert_close(orthogonal(perpendicular, overall), perpendicular, rtol=0, atol=1e-14)
    torch.testing.assert_close(orthogonal(local, -3 * overall), perpendicular, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-15, 1e-5])
def test_a_global_vector_of_nothing_takes_nothing_away(size, dtype):
    local = torch.randn(2, 5, 3, 3, dtype=dtype, requires_grad=True)
    overall = torch.full((2, 5), size, dtype=dtype, requires_grad=True)
    perpendicular = orthogonal(local, overall)
    perpendicular.square().sum().backward()
    assert torch.isfinite(local.grad).all() and torch.isfinite(overall.grad).all()
    assert perpendicular.norm() <= (1 + 1e-6) * local.norm()
    assert torch.einsum("bcyx,bc->byx", perpendicular, overall).abs().max() < 1e-9
    if size == 0:
        assert torch.equal(perpendicular, local) and not overall.grad.any()


@pytest.mark.parametrize("power", [1.0, 3.0, 5.5])
def test_the_generalised_mean_against_a_loop(power):
    image_map = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for image in range(2):
        for channel in range(3):
            values = [max(float(value), 1e-6) for value in image_map[image, channel].flatten()]
            expected = (sum(value**power for value in values) / 16) ** (1 / power)
            assert float(gem(image_map, power)[image, channel]) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(gem(torch.full((1, 2, 3, 3), 0.7), power), torch.full((1, 2), 0.7))
    positive = image_map.abs() + 0.1
    assert (gem(positive, power + 1) > gem(positive, power)).all()
    assert (gem(positive, 200.0) / positive.amax((2, 3)) - 1).abs().max() < 0.02


def test_the_generalised_mean_has_a_slope_where_all_is_nothing():
    image_map = torch.zeros(1, 2, 3, 3, requires_grad=True)
    gem(image_map).sum().backward()
    assert torch.isfinite(image_map.grad).all()
    below = -torch.rand(1, 2, 3, 3)
    assert torch.equal(gem(below), gem(torch.zeros(1, 2, 3, 3)))
    assert float(gem(below).max()) == pytest.approx(1e-6, rel=1e-4)


def dilated(x: torch.Tensor, conv: nn.Conv2d, dilation: int) -> torch.Tensor:
    """Convolve place by place."""
    side, convolved = x.shape[3], torch.zeros(len(x), conv.out_channels, *x.shape[2:], dtype=x.dtype)
    for row in range(side):
        for column in range(side):
            convolved[:, :, row, column] = conv.bias
            for i in range(3):
                for j in range(3):
                    y, z = row + dilation * (i - 1), column + dilation * (j - 1)
                    if 0 <= y < side and 0 <= z < side:
                        convolved[:, :, row, column] += x[:, :, y, z] @ conv.weight[:, :, i, j].T
    return convolved


def pointwise(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    return torch.einsum("oc,bcyx->boyx", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]


def test_the_local_branch_against_its_equations():
    branch = perturbed(LocalBranch(6, (1, 2, 4)))
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    side_by_side = [dilated(x, conv, dilation) for conv, dilation in zip(branch.dilated, (1, 2, 4), strict=True)]
    pooled = pointwise(x.mean(dim=(2, 3), keepdim=True), branch.pooled).clamp(min=0)
    mixed = pointwise(torch.cat((*side_by_side, pooled.expand(2, 3, 5, 5)), 1), branch.mix).clamp(min=0)
    h = branch.norm(pointwise(mixed, branch.point))
    weight = torch.log1p(torch.exp(pointwise(h.clamp(min=0), branch.score)))
    expected = weight * h / h.norm(dim=1, keepdim=True)
    local = branch(x)
    torch.testing.assert_close(local, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(local.norm(dim=1, keepdim=True), weight, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(local, perturbed(LocalBranch(6, (1, 2, 3)))(x))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if i % 4 == 0 else pytest.mark.exhaustive) for i, n in enumerate(TINY)]
)
def test_the_local_part_says_nothing_of_the_global_one_at_any_place(name):
    model = made(name, 32, 3)
    randomise(model, 0.3)
    model = model.double().eval()
    local, overall = model.parts(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert local.shape == (2, model.layers[0].channels, *2 * (model.layers[0].side,))
    assert overall.shape == local.shape[:2]
    # Relative to the vectors: some trunks with random weights are loud.
    scale = overall.norm(dim=1)[:, None, None] * local.norm(dim=1)
    products = torch.einsum("bcyx,bc->byx", orthogonal(local, overall), overall)
    assert (products.abs() <= 1e-12 * scale.clamp(min=1)).all()


def test_the_features_are_the_fusion():
    model = made(width=7)
    x = torch.randn(2, 1, 28, 28)
    model = perturbed(model)
    outputs = {}
    for layer in model.layers:
        model.trunk.get_submodule(layer.name).register_forward_hook(
            lambda module, given, output, layer=layer: outputs.update({layer.name: layer.read(output)})
        )
    features = model.features(x.double())
    local, last = (outputs[layer.name] for layer in model.layers)
    overall = model.overall(gem(last))
    beside = orthogonal(model.local(local), overall).mean(dim=(2, 3))
    expected = torch.cat((overall, beside), 1) @ model.fuse.weight.T + model.fuse.bias
    torch.testing.assert_close(features, expected, rtol=1e-12, atol=1e-12)
    assert features.shape == (2, 7) and model.num_features == 7


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cvt_tiny32", ["stages.1.blocks.0", "stages.2.blocks.0"]),
        ("affnet_tiny32", ["stages.3.blocks.1", "stages.5.blocks.0"]),
        ("cnn", ["norm1", "norm2"]),
        ("convit_tiny32", ["local_blocks.2", "blocks.0"]),  # all its blocks have as many places
    ],
)
def test_which_maps_are_taken(name, expected):
    model = made(name)
    assert [layer.name for layer in model.layers] == expected
    assert (model.layers[0].side > model.layers[1].side) == (name != "convit_tiny32")
    if name != "cnn":
        chosen = made(name, layer=expected[1])
        assert [layer.name for layer in chosen.layers] == [expected[1]] * 2


def test_the_only_map_is_both():
    model = build("cnn", 3, 28, 1)
    layers = map_layers(model)
    assert earlier_map(model, layers[-1]).name == "norm1"
    assert earlier_map(model, layers[1]).name == "conv1"
    assert earlier_map(model, layers[0]) == layers[0]


class Nested(Block):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Plain(Model):
    """A stem and blocks, all with as many places."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.num_features, self.in_channels, self.image_size = 4, 1, 6
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(4, 3)

    def features(self, x):
        return self.blocks(self.stem(x)).mean(dim=(2, 3))


def test_a_block_within_a_block_is_no_earlier_one():
    within = Nested(Nested(nn.Conv2d(4, 4, 1)))
    for blocks, expected in (
        ((Nested(nn.Identity()), within), ["blocks.1", "blocks.0"]),
        ((within,), ["blocks.0", "stem"]),
    ):
        model = Plain(*blocks)
        assert [last_map(model).name, earlier_map(model, last_map(model)).name] == expected


def test_what_is_not_used_does_not_learn():
    model = made("cnn")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"trunk.fc.weight", "trunk.fc.bias"}
    free = made("cnn", pool="features")
    assert all(parameter.requires_grad for parameter in free.parameters())
    assert free.overall.in_features == 64 and model.overall.in_features == 32
    x = torch.randn(2, 1, 28, 28)
    _, overall = free.parts(x)
    torch.testing.assert_close(overall, free.overall(free.trunk.features(x)))
    F.cross_entropy(free(x), torch.tensor([0, 1])).backward()
    assert all(parameter.grad is not None for parameter in free.parameters())
    before = torch.random.get_rng_state()
    drawn = [made("cnn").local.point.weight, torch.rand(())]
    torch.random.set_rng_state(before)
    again = [made("cnn").local.point.weight, torch.rand(())]
    assert all(torch.equal(one, other) for one, other in zip(drawn, again, strict=True))


def test_parameters_and_widths():
    model, plain = made(), build("cvt_tiny32", 3, 28, 1)
    dim, last = 48, 96
    # Three 3 x 3 and a 1 x 1 to half, 1 x 1 of four halves, 1 x 1, norm, score; global, fusion.
    local = (27 + 1 + 4 + 2) * dim**2 // 2 + 4 * (dim // 2) + 2 * dim + 2 * dim + dim + 1
    assert num_parameters(model.local) == local
    assert num_parameters(model) - num_parameters(plain) == local + (last + 1) * dim + (2 * dim + 1) * last
    assert made(width=5).head.in_features == 5 and made().num_features == 96
    narrow = operators.replace(build("cnn", 3, 28, 1, width=1), "head", "dolg", dilations=[6, 12, 18])
    assert [conv.dilation for conv in narrow.local.dilated] == [(6, 6), (12, 12), (18, 18)]
    assert narrow.eval()(torch.randn(2, 1, 28, 28)).shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"model\.operators\.dolg\.width should be a whole number of at least 1, found 0"),
        ({"dilations": [1, 2]}, r"model\.operators\.dolg\.dilations should be a list of 3 whole numbers"),
        ({"dilations": [1, 2, 0]}, r"model\.operators\.dolg\.dilations"),
        ({"pool": "max"}, r"model\.operators\.dolg\.pool should be one of gem, features, found 'max'"),
        ({"layer": "stages.1.blocks"}, r"'stages\.1\.blocks' \(key model\.operators\.dolg\.layer\)"),
        ({"margin": 3}, r"Unknown option 'margin'"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


@pytest.mark.parametrize("pool", ["gem", "features"])
@pytest.mark.parametrize(("name", "size", "channels"), [("cvt_tiny32", 28, 1), ("cnn", 32, 3)])
def test_it_learns(name, size, channels, pool):
    model = made(name, size, channels, pool=pool).train()
    x, y = torch.randn(12, channels, size, size), torch.arange(12) % 3
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in learning)
    assert (len(learning) == len(list(model.parameters()))) == (pool == "features")
