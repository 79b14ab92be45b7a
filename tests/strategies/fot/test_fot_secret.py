"""What a server that knows the run's seed makes of FOT's sketches, and that it cannot with `secret_omega`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.strategies.fot.test_fot_wiring import HIDDEN, SIDE, client_of, network, normal, payload_of
from umbel import run
from umbel.core.rng import generator
from umbel.models.inputs import layer_inputs
from umbel.strategies.fot.method import FOT, Config
from umbel.strategies.fot.subspace import residual_sketch

FIRST, FEW = "layers.0.weight", 5  # fewer examples than the ten columns of the first layer's sketch


def sketch(secret: bool) -> Tensor:
    strategy = FOT(Config(secret_omega=secret, sample_limit=FEW))
    reply = strategy.sketch(payload_of(strategy), client_of(1, "sketch"))
    return reply.trees["sketch"][FIRST].double()


def rebuilt(sketch_DM: Tensor) -> Tensor:
    """The inputs that a sketch is of, if Omega is of the seed: A = Y Omega^+."""
    source = generator(0, 2, "sketch", 1, f"sketch of {FIRST}")  # seed, round, phase and client, which the server knows
    omega = torch.randn(FEW, sketch_DM.shape[1], generator=source, dtype=torch.float64)
    return sketch_DM @ torch.linalg.pinv(omega)


def test_the_server_solves_for_few_inputs_unless_omega_is_secret():
    inputs = layer_inputs(network(), client_of(1, "sketch").train_data.images[:FEW])[FIRST]
    assert inputs.shape == (SIDE**2, FEW)
    torch.testing.assert_close(rebuilt(sketch(False))[:-1], inputs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(rebuilt(sketch(True))[:-1], inputs, rtol=0.5, atol=0.5)


def test_a_secret_omega_is_never_the_same_twice():
    assert torch.equal(sketch(False), sketch(False))
    assert not torch.allclose(sketch(True), sketch(True), rtol=0.1)


@pytest.mark.parametrize("rows", [50, 700])
def test_a_secret_omega_is_of_independent_normal_numbers(rows):
    """Y Y' / M is A A' on average, and no row of Omega is another's; with 700 it is made in two parts."""
    omega, energy = residual_sketch(torch.eye(rows, dtype=torch.float64), None, 400, None)
    assert energy == 1.0 and omega.shape == (rows, 400)
    assert float(omega.mean()) == pytest.approx(0, abs=0.04) and float(omega.std()) == pytest.approx(1, abs=0.03)
    overlaps = omega @ omega.T / 400 - torch.eye(rows, dtype=torch.float64)
    assert float(overlaps.abs().max()) < 0.5
    columns = normal(8, 20, seed=1).float()
    assert residual_sketch(columns, None, 4, None)[0].dtype == torch.float32


def test_with_a_secret_omega_the_same_directions_are_protected(tmp_path):
    """Of inputs of low rank any sketch finds all; two runs still differ in their bits."""
    options = (
        *("data.partition=permuted_tasks", "data.num_tasks=2", "data.rounds_per_task=1", "data.num_clients=2"),
        *("data.max_train=120", "data.max_test=40", "run.rounds=2", "strategy.name=fot", "strategy.threshold=1.0"),
        *("model.name=mlp", f"model.sizes={{hidden: {HIDDEN}, depth: 1}}", "client.max_steps=2"),
        f"run.results={tmp_path}",
    )
    results = [run("digits", *options, f"strategy.secret_omega={secret}") for secret in ("false", "true", "true")]
    seeded, *secret = (each.summary["weights_sha256"] for each in results)
    assert len({seeded, *secret}) == 3
    ranks = [each.metrics.query("metric == 'rank/layers.0.weight'")["value"].tolist() for each in results]
    assert ranks[0] == ranks[1] == ranks[2] and ranks[0][0] > 0


@pytest.mark.parametrize(
    "wrong",
    [
        *({"width": float("nan")}, {"width": float("inf")}, {"width": -0.5}),
        *({"increment": float("nan")}, {"increment": float("inf")}, {"increment": -0.1}),
        *({"server_lr": float("nan")}, {"server_lr": float("inf")}, {"server_lr": 0.0}),
        *({"threshold": float("nan")}, {"server_momentum": float("nan")}, {"sample_limit": -5}, {"min_directions": -1}),
        {"secret_omega": True, "width": 0.0},
    ],
)
def test_values_that_cannot_be_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=rf"strategy\.{next(iter(wrong))}\b"):
        FOT(Config(**wrong))
