"""FOT's parts, each turned off by one key; and the wrong variants of each, which the invariants here catch."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.helpers import SMALL_FOT as SMALL
from umbel import run
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core.folds import Folded
from umbel.core.rng import generator
from umbel.core.schedule import Schedule
from umbel.strategies.base import server_step
from umbel.strategies.fot.layers import grow
from umbel.strategies.fot.method import FOT, Config, State
from umbel.strategies.fot.subspace import expand_basis, project_update, residual_sketch, unexplained

F64 = torch.float64
SHARED = SimpleNamespace(task_of_class=None, task=1, round=1, schedule=Schedule())  # all that a step asks of it


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(rows, columns, seed=seed))[0]


# One layer and its old inputs: what it says about them must stay. ------------------------------------------

INPUTS = torch.cat([normal(6, 3, seed=1) @ normal(3, 40, seed=2), torch.ones(1, 40, dtype=F64)])
BASIS = expand_basis(None, INPUTS, 1.0, 1.0)  # of [a; 1]
BARE = expand_basis(None, INPUTS[:-1], 1.0, 1.0)  # of a


def state_of(config: Config) -> State:
    model = {"l.weight": normal(6, 6, seed=3), "l.bias": normal(6, seed=4), "norm.weight": normal(6, seed=5)}
    basis = BASIS if config.bias == "augment" else BARE
    still = {name: torch.zeros_like(tensor) for name, tensor in model.items()} if config.server_momentum else {}
    return State(model, {"l.weight": (1, len(basis))}, {"l.weight": basis}, 1, False, still)


def deltas(seed: int) -> dict[str, Tensor]:
    return {name: normal(*tensor.shape, seed=seed) for name, tensor in state_of(Config()).model.items()}


def stepped(strategy: FOT, state: State, delta: dict[str, Tensor]) -> State:
    return strategy.after_train(state, Folded({"delta": delta}, {}, 1, 1), SHARED)


def drift(strategy: FOT, steps: int = 5) -> float:
    """Return how far the layer's outputs for the old inputs move, after some steps."""
    state = start = state_of(strategy.config)
    for step in range(steps):
        state = stepped(strategy, state, deltas(10 + step))

    assert not torch.allclose(state.model["l.weight"], start.model["l.weight"], atol=0.1)  # it does learn
    return leak({name: tensor - start.model[name] for name, tensor in state.model.items()})


def leak(change: dict[str, Tensor]) -> float:
    """Return by how much the layer then says something else about the old inputs."""
    return float((change["l.weight"] @ INPUTS[:-1] + change["l.bias"][:, None]).abs().max())


@pytest.mark.parametrize("bias", ["augment", "freeze"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_what_a_layer_says_about_old_inputs_stays(bias, momentum):
    assert drift(FOT(Config(bias=bias, server_momentum=momentum, server_lr=0.7))) < 1e-12


def test_a_bias_that_is_free_leaks():
    assert drift(FOT(Config(bias="free"))) > 0.1


def test_without_projection_everything_moves():
    assert drift(FOT(Config(project=False))) > 0.1


def test_the_projection_is_on_the_side_of_the_inputs():
    """The layer is square, so that nothing but the outputs would tell."""
    start, delta = state_of(Config()), deltas(10)
    after = stepped(FOT(Config()), start, delta).model
    whole = torch.cat([delta["l.weight"], delta["l.bias"][:, None]], 1)
    right, left = whole - whole @ BASIS @ BASIS.T, whole - BARE @ (BARE.T @ whole)
    torch.testing.assert_close(after["l.weight"] - start.model["l.weight"], right[:, :-1])
    torch.testing.assert_close(after["l.bias"] - start.model["l.bias"], right[:, -1])
    assert leak({"l.weight": right[:, :-1], "l.bias": right[:, -1]}) < 1e-12
    assert leak({"l.weight": left[:, :-1], "l.bias": left[:, -1]}) > 0.1


def test_the_sum_of_the_momentum_is_projected_not_its_new_part_alone():
    """What was added to the sum before the task ended would leak."""
    config, delta = Config(server_momentum=0.9), deltas(10)
    start = replace(state_of(config), velocity=deltas(99))
    whole = stepped(FOT(config), start, delta).model
    assert leak({name: whole[name] - tensor for name, tensor in start.model.items()}) < 1e-12
    part = stepped(FOT(Config()), replace(start, velocity={}), delta).model
    behind = {name: part[name] - tensor + 0.9 * start.velocity[name] for name, tensor in start.model.items()}
    assert leak(behind) > 0.1


def test_momentum_by_hand():
    config = Config(server_momentum=0.5, server_lr=2.0, project=False)
    model = {"w": torch.zeros(1, dtype=F64)}
    state = State(model, {}, {}, 0, False, {"w": torch.zeros(1, dtype=F64)})
    for change, expected in ((1.0, 2.0), (0.0, 3.0), (1.0, 5.5)):  # velocities 1, .5, 1.25
        state = stepped(FOT(config), state, {"w": torch.tensor([change], dtype=F64)})
        assert state.model["w"].item() == expected


def test_what_is_no_layer_stays_unless_it_is_free():
    for rest, still in (("freeze", True), ("free", False)):
        strategy, start = FOT(Config(rest=rest)), state_of(Config())
        end = stepped(strategy, start, deltas(10))
        assert torch.equal(end.model["norm.weight"], start.model["norm.weight"]) == still


def test_without_a_basis_a_step_is_fedavgs():
    state = replace(state_of(Config()), bases={}, tasks_done=0)
    step = stepped(FOT(Config(server_lr=0.7)), state, deltas(1)).model
    assert all(torch.equal(step[n], w) for n, w in server_step(state.model, deltas(1), 0.7).items())
    update = normal(4, 5).float()
    assert project_update(update, None) is update


# The basis --------------------------------------------------------------------------------------------------


def captured(basis: Tensor, inputs: Tensor) -> float:
    return float((basis.T @ inputs).square().sum() / inputs.square().sum())


def test_a_mean_of_ratios_is_not_the_energy():
    """One client's inputs lie in the basis and are large, another's lie outside and are small, or the other way."""
    basis = orthonormal(30, 5)
    outside = normal(30, 200, seed=2) - basis @ (basis.T @ normal(30, 200, seed=2))
    parts = [10 * basis @ normal(5, 200, seed=1) + 0.05 * outside, outside]
    squares = [float(part.square().sum()) for part in parts]
    residuals = [residual_sketch(part, basis, None, generator(0))[0] for part in parts]
    of_sums = (sum(float(r.square().sum()) for r in residuals) / sum(squares)) ** 0.5
    everything, left = torch.cat(parts, 1), torch.cat(residuals, 1)
    for threshold in (0.95, 0.99):
        assert captured(expand_basis(basis, left, of_sums, threshold), everything) >= threshold
    small = [parts[0] / 100, parts[1]]
    residuals, ratios = zip(*(residual_sketch(p, basis, None, generator(0)) for p in small), strict=True)
    of_ratios = sum(ratios) / 2
    wrong = expand_basis(basis, torch.cat(residuals, 1), of_ratios, 0.95)
    assert captured(wrong, torch.cat(small, 1)) < 0.95  # the energy is what the mean of ratios misses


def test_a_ratio_that_is_not_squared_keeps_more_than_is_needed():
    inputs = torch.diag(torch.linspace(1, 0.05, 30, dtype=F64)) @ normal(30, 500, seed=3)
    first = expand_basis(None, inputs, 1.0, 0.7)
    residual, energy = residual_sketch(inputs, first, None, generator(0))
    ours, theirs = (expand_basis(first, residual, energy, 0.95, ratio_power=power) for power in (2, 1))
    assert captured(ours, inputs) >= 0.95 > captured(ours[:, :-1], inputs)
    assert theirs.shape[1] > ours.shape[1] and captured(theirs[:, :-1], inputs) >= 0.95


def test_a_basis_that_grows_without_being_made_orthogonal_again_is_caught():
    """Ten tasks in float32, each with noise along what is there already."""
    ours = naive = None
    for task in range(10):
        span = orthonormal(60, 30, seed=task)[:, :4].float()
        noise = 1e-2 * (0 if ours is None else ours @ normal(ours.shape[1], 200, seed=task).float())
        sketch = span @ normal(4, 200, seed=50 + task).float() + noise
        ours = expand_basis(ours, sketch, 1.0, 0.999)
        left = torch.linalg.svd(sketch, full_matrices=False)[0][:, :4]
        naive = left if naive is None else torch.cat([naive, left], 1)  # no QR, no second projection

    def off(basis: Tensor) -> float:
        return float((basis.T @ basis - torch.eye(basis.shape[1])).abs().max())

    assert off(ours) < 1e-5 < 1e-2 < off(naive)
    projector = ours @ ours.T
    assert torch.allclose(projector @ projector, projector, atol=1e-5)
    wrong = naive @ naive.T
    assert not torch.allclose(wrong @ wrong, wrong, atol=1e-2)


@pytest.mark.parametrize("task", range(3))
def test_the_basis_grows_and_holds_what_it_held(task):
    first = expand_basis(None, normal(20, 300, seed=task) * torch.linspace(1, 0.01, 20)[:, None], 1.0, 0.8)
    inputs = normal(20, 300, seed=10 + task)
    residual, energy = residual_sketch(inputs, first, None, generator(0))
    second = expand_basis(first, residual, energy, 0.9)
    assert second.shape[1] > first.shape[1]
    torch.testing.assert_close(second @ (second.T @ first), first)


# The residual at the server -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gram", [True, False])
def test_the_server_can_take_away_what_the_basis_explains(gram):
    inputs, basis = normal(20, 400, seed=1), orthonormal(20, 6)
    omega = normal(400, 400, seed=2)
    residual, energy = residual_sketch(inputs, basis, None, generator(0))
    whole, expected = (inputs @ inputs.T, residual @ residual.T) if gram else (inputs @ omega, residual @ omega)
    left, rho = unexplained(basis, whole, gram)
    torch.testing.assert_close(left, expected)
    assert rho.item() == pytest.approx(energy, abs=1e-9 if gram else 0.01)
    assert unexplained(basis, torch.zeros_like(whole), gram)[1] == 0


def test_both_ways_keep_the_same_directions():
    inputs, basis = normal(20, 400, seed=1).float(), orthonormal(20, 6).float()
    residual, energy = residual_sketch(inputs, basis, None, generator(0))
    mine = grow(basis, residual @ residual.T, torch.tensor(energy), Config(width=0.0), 0.9)
    server = grow(basis, inputs @ inputs.T, torch.tensor(1.0), Config(width=0.0, residual="server"), 0.9)
    assert mine.shape == server.shape
    assert torch.allclose(mine @ mine.T, server @ server.T, atol=1e-4)


# Keys -----------------------------------------------------------------------------------------------------------


def final(tmp_path, name: str, *overrides: str) -> str:
    return run("digits", *SMALL, *overrides, f"run.results={tmp_path}", f"run.name={name}").summary["weights_sha256"]


@pytest.fixture(scope="module")
def default(tmp_path_factory) -> str:
    return final(tmp_path_factory.mktemp("default"), "default")


@pytest.mark.parametrize(
    "override",
    [
        "project=false",
        "threshold=0.9",
        "increment=0.2",
        "width=0",
        "residual=server",
        "sketched=local",
        "ratio_power=1",
        "min_directions=1",
        "bias=freeze",
        "bias=free",
        "skip=[conv1]",
        "weighting=examples",
        "server_lr=0.5",
        "server_momentum=0.5",
        "sample_limit=5",
    ],
)
def test_each_key_changes_the_result(override, default, tmp_path):
    options = (f"strategy.{override}",)
    if override.startswith("min_directions"):  # of use where the threshold asks for nothing
        options = (*options, "strategy.threshold=0.001")
        default = final(tmp_path, "default", "strategy.threshold=0.001")
    if override.startswith("weighting"):  # of use where clients differ in size
        unequal = ("data.partition=dirichlet", "data.alpha=0.5", "data.rounds_per_task=0")
        options = (*options, *unequal)
        default = final(tmp_path, "default", *unequal)
    assert final(tmp_path, "changed", *options) != default


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("residual=nobody", r"strategy\.residual should be one of"),
        ("server_momentum=1.0", r"strategy\.server_momentum should be at least 0 and below 1"),
        ("bias=none", r"strategy\.bias should be one of"),
        ("width=-1", r"strategy\.width should be at least 0"),
        ("threshold=0", r"strategy\.threshold"),
    ],
)
def test_what_cannot_be(override, message):
    with pytest.raises(ExperimentError, match=message):
        load("digits", [*SMALL, f"strategy.{override}"])
