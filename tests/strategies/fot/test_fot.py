"""FOT's mathematics: closed forms and invariants."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from umbel import models
from umbel.core.rng import generator
from umbel.models.inputs import layer_inputs, stream_inputs
from umbel.strategies.fot.subspace import expand_basis, project_update, residual_sketch

F64 = torch.float64


def normal(*shape: int, seed: int = 0, dtype=F64) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def orthonormal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(normal(rows, columns, seed=seed))[0]


# Projection -----------------------------------------------------------------------------------------------


def test_the_update_does_not_touch_the_basis_on_the_input_side():
    basis = orthonormal(12, 5)
    update = normal(7, 12, seed=1)
    projected = project_update(update, basis)
    assert torch.linalg.norm(projected @ basis) <= 1e-12 * torch.linalg.norm(update)
    assert torch.allclose(projected, update - update @ basis @ basis.T)
    wrong = basis[:7] @ basis[:7].T @ update  # on the side of the outputs: the classic bug
    assert torch.linalg.norm((update - wrong) @ basis) > 0.1 * torch.linalg.norm(update)


def test_projection_is_idempotent_linear_and_keeps_shape_and_dtype():
    basis = orthonormal(18, 4)
    one, other = normal(5, 2, 3, 3, seed=1, dtype=torch.float32), normal(5, 2, 3, 3, seed=2, dtype=torch.float32)
    projected = project_update(one, basis)
    assert projected.shape == one.shape and projected.dtype == one.dtype
    assert torch.allclose(project_update(projected, basis), projected, atol=1e-6)
    mean = project_update((one + other) / 2, basis)
    assert torch.allclose(mean, (projected + project_update(other, basis)) / 2, atol=1e-6)
    assert project_update(one, None) is one and project_update(one, basis[:, :0]) is one
    with pytest.raises(ValueError, match="basis of 18 inputs"):
        project_update(one, basis[:9])


def test_groups_are_projected_each_by_its_own_basis():
    first, second = orthonormal(9, 2), orthonormal(9, 4, seed=1)
    basis = torch.stack([torch.cat([first, torch.zeros(9, 2)], 1), second])
    update = normal(4, 1, 3, 3, seed=2)
    projected = project_update(update, basis)
    assert torch.allclose(projected[:2], project_update(update[:2], first))
    assert torch.allclose(projected[2:], project_update(update[2:], second))


def test_outputs_for_old_inputs_stay_whatever_the_update():
    inputs = normal(10, 3, seed=4) @ normal(3, 50, seed=5)
    basis = expand_basis(None, *residual_sketch(inputs, None, None, generator(0)), threshold=1.0)
    weight = normal(6, 10, seed=6)
    moved = weight
    for step in range(20):
        moved = moved + project_update(normal(6, 10, seed=10 + step), basis)
    assert torch.allclose(moved @ inputs, weight @ inputs, atol=1e-10)
    assert not torch.allclose(moved, weight, atol=0.1)


# Basis ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_an_exact_low_rank_is_found_through_a_sketch(dtype):
    span = orthonormal(40, 6)
    inputs = (span @ normal(6, 300, seed=1)).to(dtype)
    sketch, energy = residual_sketch(inputs, None, 11, generator(2))
    assert sketch.shape == (40, 11) and energy == 1.0
    basis = expand_basis(None, sketch, energy, threshold=1.0)
    assert basis.shape == (40, 6) and basis.dtype == dtype
    cosines = torch.linalg.svdvals(span.T @ basis.double())
    assert torch.arccos(cosines.clamp(max=1)).max() < (1e-2 if dtype == torch.float32 else 1e-4)
    assert torch.linalg.norm(span - basis.double() @ (basis.double().T @ span)) < 1e-4


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_enough_energy_is_captured_and_no_direction_more(threshold):
    inputs = torch.diag(torch.linspace(1, 0.05, 30, dtype=F64)) @ normal(30, 500, seed=3)
    first = expand_basis(None, *residual_sketch(inputs, None, None, generator(0)), threshold=0.3)
    residual, energy = residual_sketch(inputs, first, None, generator(0))
    basis = expand_basis(first, residual, energy, threshold)

    def captured(u: torch.Tensor) -> float:
        return float((u.T @ inputs).square().sum() / inputs.square().sum())

    assert captured(basis) >= threshold > captured(basis[:, :-1])
    assert torch.equal(basis[:, : first.shape[1]], first)  # what was protected stays so
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1], dtype=F64), atol=1e-12)


def test_the_thresholds_by_hand():
    sketch = torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.0], dtype=F64))  # shares 4/6, 5/6, 6/6

    def added(energy: float, threshold: float, **options: int) -> int:
        return expand_basis(None, sketch, energy, threshold, **options).shape[1]

    assert [added(1.0, t) for t in (0.5, 0.7, 0.9, 1.0)] == [1, 2, 3, 3]
    # rho = .5: rho^2 = .25, so .75 is there already; .9 needs (.25 - .1) / .25 = .6 of the sketch, .95 needs .8
    assert [added(0.5, t) for t in (0.7, 0.9, 0.95)] == [0, 1, 2]
    assert added(0.5, 0.7, min_directions=1) == 1
    # rho unsquared: .9 needs (.5 - .1) / .5 = .8
    assert added(0.5, 0.9, ratio_power=1) == 2
    assert added(0.0, 1.0) == 0 and added(0.0, 1.0, min_directions=1) == 0
    for threshold in (0.0, 1.1):
        with pytest.raises(ValueError, match="threshold"):
            added(1.0, threshold)
    with pytest.raises(ValueError, match="ratio power"):
        added(1.0, 0.5, ratio_power=3)


def test_a_full_basis_freezes_the_layer_and_takes_no_more():
    inputs = normal(5, 100, seed=1)
    basis = expand_basis(None, inputs, 1.0, 1.0)
    assert basis.shape == (5, 5)
    assert torch.linalg.norm(project_update(normal(3, 5, seed=2), basis)) < 1e-12
    residual, energy = residual_sketch(inputs, basis, None, generator(0))
    assert energy < 1e-12
    assert expand_basis(basis, residual, energy, 1.0, min_directions=1).shape == (5, 5)


def test_float32_noise_is_no_direction():
    basis = orthonormal(64, 20).float()
    inputs = (basis.double() @ normal(20, 200, seed=3)).float()
    residual, energy = residual_sketch(inputs, basis, None, generator(0))
    assert energy < 1e-6
    assert expand_basis(basis, residual, energy, 0.999).shape == (64, 20)
    grown = expand_basis(basis, residual + 1e-3 * normal(64, 200, seed=4).float(), 0.5, 1.0)
    assert torch.allclose(grown.T @ grown, torch.eye(grown.shape[1]), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_all_directions_are_those_above_the_noise_of_the_inputs(dtype):
    inputs = (orthonormal(64, 10) @ normal(10, 300, seed=1)).to(dtype)
    basis = expand_basis(None, *residual_sketch(inputs, None, 20, generator(2)), threshold=1.0)
    assert basis.shape == (64, 10)
    again = expand_basis(basis, *residual_sketch(inputs, basis, 20, generator(3)), threshold=1.0)
    assert again.shape == (64, 10)  # the same data once more brings nothing new


def test_small_directions_are_not_lost_to_rounding_when_all_are_wanted():
    for seed in range(50):
        values = torch.cat(
            [torch.rand(8, generator=generator(seed), dtype=F64) + 0.1, torch.tensor([1e-8, 1e-9], dtype=F64)]
        )
        assert expand_basis(None, torch.diag(values), 1.0, 1.0).shape[1] == 10


def test_a_sketch_that_is_not_apart_from_the_basis():
    basis = torch.eye(4, 1, dtype=F64)
    sketch = torch.tensor([[1, 1.01], [1, -1], [0, 0], [0, 0]], dtype=F64)
    grown = expand_basis(basis, sketch, 1.0, 1.0)
    assert torch.allclose(grown.abs(), torch.eye(4, 2, dtype=F64))


def test_an_exact_gram_matrix_gives_no_noise():
    from umbel.strategies.fot.layers import grow
    from umbel.strategies.fot.method import Config

    inputs = (orthonormal(50, 5) @ normal(5, 400, seed=1)).float()
    gram = inputs @ inputs.T
    assert grow(None, gram, torch.tensor(1.0), Config(width=0.0), 1.0).shape == (50, 5)


def test_sketches_of_clients_add_up():
    inputs, basis = normal(20, 60, seed=1), orthonormal(20, 3)
    parts = [residual_sketch(part, basis, 8, generator(k)) for k, part in enumerate(inputs.split(20, dim=1))]
    omega = torch.cat([torch.randn(20, 8, generator=generator(k), dtype=F64) for k in range(3)])
    whole = (inputs - basis @ (basis.T @ inputs)) @ omega
    assert torch.allclose(sum(sketch for sketch, _ in parts), whole)
    squares = [float(part.square().sum()) for part in inputs.split(20, dim=1)]
    together = (sum(e**2 * s for (_, e), s in zip(parts, squares, strict=True)) / sum(squares)) ** 0.5
    assert together == pytest.approx(residual_sketch(inputs, basis, None, generator(0))[1])
    assert residual_sketch(torch.zeros(20, 4, dtype=F64), basis, 2, generator(0))[1] == 0.0


# Layer inputs ---------------------------------------------------------------------------------------------


CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    nn.Conv2d(4, 6, 3, padding="same", dilation=2, bias=False),
    nn.Conv2d(4, 8, 3, groups=4, padding=1),
    nn.Conv2d(4, 6, 2, groups=2, stride=3),
    nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"),
    nn.Conv1d(4, 6, 3, stride=2, padding=1),
    nn.Conv3d(4, 6, 2, padding=1),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_weight_times_inputs_is_the_convolution(layer):
    layer = layer.double()
    sides = {1: (9,), 2: (9, 8), 3: (4, 5, 3)}[layer.weight.ndim - 2]
    batch = normal(3, 4, *sides, seed=1)
    columns = layer_inputs(nn.Sequential(layer), batch)["0.weight"]
    groups = layer.groups
    assert columns.ndim == (2 if groups == 1 else 3)
    columns = columns.reshape(groups, -1, columns.shape[-1])
    weight = layer.weight.reshape(groups, layer.out_channels // groups, -1)
    bias = 0 if layer.bias is None else layer.bias[:, None]
    product = (weight @ columns).reshape(layer.out_channels, -1) + bias
    expected = layer(batch)
    expected = expected.transpose(0, 1).reshape(layer.out_channels, -1)  # sample-major, then row-major
    assert torch.allclose(product, expected, atol=1e-12)


def test_parts_are_small_and_make_up_the_whole():
    layer = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1))
    batch = normal(7, 3, 8, 8, dtype=torch.float32)
    sizes, parts = [], []
    limit = 2 * 27 * 64 * 4  # two samples' patches

    def take(name: str, columns: torch.Tensor) -> None:
        sizes.append(columns.numel() * 4)
        parts.append(columns.clone())

    stream_inputs(layer, batch, take, chunk_bytes=limit)
    assert len(parts) == 4 and max(sizes) == limit
    assert torch.equal(torch.cat(parts, 1), layer_inputs(layer, batch)["0.weight"])


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.5, **options)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("training", [True, False])
def test_attention_is_seen_through_its_packed_projection(training):
    model = Attention().double().train(training)
    tokens = normal(2, 5, 8, seed=1)
    inputs = layer_inputs(model, tokens)
    assert model.training == training and model.attention.training == training
    assert set(inputs) == {"attention.in_proj_weight", "attention.out_proj.weight"}
    assert torch.equal(inputs["attention.in_proj_weight"], tokens.reshape(-1, 8).T)
    model.eval()
    weight = model.attention.out_proj
    made = (weight.weight @ inputs["attention.out_proj.weight"] + weight.bias[:, None]).T.reshape(2, 5, 8)
    assert torch.allclose(made, model(tokens), atol=1e-12)


def test_attention_over_something_else_protects_all_that_goes_in():
    class Cross(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

        def forward(self, x):
            return self.attention(x, x[:, :3] + 1, x[:, :3] - 1)[0]

    tokens = normal(2, 5, 8, seed=1)
    columns = layer_inputs(Cross().double(), tokens)["attention.in_proj_weight"]
    sources = (tokens, tokens[:, :3] + 1, tokens[:, :3] - 1)
    assert torch.equal(columns, torch.cat([x.reshape(-1, 8) for x in sources]).T)
    apart = layer_inputs(Cross(kdim=8, vdim=8).double(), tokens)
    assert torch.equal(apart["attention.in_proj_weight"], columns)


def test_the_layer_saw_what_came_through_dropout_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.9), nn.Linear(4, 2)).double().train()
    batch = normal(6, 3)
    inputs = layer_inputs(model, batch)
    assert torch.equal(inputs["3.weight"], torch.relu(model[0](batch)).T)


@pytest.mark.parametrize("name", ["cnn", "cvt_tiny32"])
def test_the_zoo_is_seen(name):
    model = models.build(name, 10, 28, 1).eval()
    inputs = layer_inputs(model, normal(2, 1, 28, 28, dtype=torch.float32))
    weights = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and n.endswith("weight")}
    assert inputs.keys() == weights.keys()
    for key, columns in inputs.items():
        groups = columns.shape[0] if columns.ndim == 3 else 1
        assert columns.shape[-2] == weights[key][0].numel() and weights[key].shape[0] % groups == 0
