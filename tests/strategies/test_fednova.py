"""FedNova: how much gradients count in a local run, and which objective is minimised where steps differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.contexts import client_context
from tests.helpers import Quadratics, unequal
from tests.helpers import tree as T
from tests.strategies.test_quadratics import WEIGHTINGS, close, optimum
from umbel.core.folds import Folded
from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload
from umbel.core.rng import build_seeded, generator
from umbel.core.training import LocalConfig
from umbel.data.types import Examples
from umbel.models import build
from umbel.models.weights import shared_state
from umbel.strategies import fedavg, fednova
from umbel.strategies.base import ClientContext
from umbel.strategies.fednova import summed_weights

STEPS = (4, 1, 2)
SLOPE = torch.tensor([2.0, -0.5], dtype=torch.float64)


class Uneven(Quadratics):
    """Clients of unequal steps."""

    def client(self, k: int, round_: int, remember: Callable[[MemoryRecord], None]) -> ClientContext:
        return replace(super().client(k, round_, remember), local=replace(self.local, epochs=STEPS[k]))


def uneven() -> Uneven:
    return Uneven(unequal().a, unequal().b, unequal().sizes)


def fixed_point(problem: Quadratics, weighting: str, by_step: bool, lr: float = 0.25) -> torch.Tensor:
    """Where sum p_k q_k (b_k - w) vanishes, q_k over the number of steps where changes are taken by the step."""
    steps = torch.tensor(STEPS, dtype=torch.float64)[:, None]
    p, q = problem.shares(weighting), (1 - (1 - lr * problem.a) ** steps) / (steps if by_step else 1)
    return (p * q * problem.b).sum(0) / (p * q).sum(0)


def test_the_papers_sums():
    assert summed_weights(7) == 7.0
    rho, pull, steps = 0.7, 0.3, 5
    momentum = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert summed_weights(steps, momentum=rho) == pytest.approx(momentum, rel=1e-14)
    assert summed_weights(steps, pull=pull) == pytest.approx((1 - (1 - pull) ** steps) / pull, rel=1e-14)
    # A step further in momentum: 1 + rho, then 1 + rho (1 + rho).
    assert summed_weights(2, momentum=rho, nesterov=True) == pytest.approx(2 + 2 * rho + rho**2, rel=1e-14)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("mu", [0.0, 0.8])
@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_under_a_constant_gradient_every_run_has_the_same_change(momentum, mu, num_steps):
    """The optimiser itself says how far it goes: over the sum it is one step of plain SGD."""
    problem, strategy = unequal(), fednova.FedNova(fednova.Config(mu=mu))
    local = replace(problem.local, epochs=num_steps, lr=0.1, **momentum)
    client = replace(
        problem.client(1, 1, lambda record: None), local=local, loss=lambda w, _: (SLOPE * w).sum(1).mean()
    )
    reply = strategy.local(Payload({"model": strategy.initial(problem.server()).model}), client)
    assert torch.allclose(reply.trees["delta"]["w"], -0.1 * SLOPE, rtol=1e-12, atol=0)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_equal_steps_are_fedavg(weighting):
    start = torch.tensor([0.1, 0.7], dtype=torch.float64)
    for num_steps in (4, 3):
        ends = [
            replace(unequal(), num_steps=num_steps).run(strategy, 7, start)
            for strategy in (
                fedavg.FedAvg(fedavg.Config(weighting=weighting, server_lr=0.5)),
                fednova.FedNova(fednova.Config(weighting=weighting, server_lr=0.5)),
            )
        ]
        assert torch.allclose(*ends, rtol=0, atol=1e-14)
        assert num_steps == 3 or torch.equal(*ends)  # to divide by 4 rounds nothing


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_unequal_steps_do_not_move_the_objective(weighting):
    nova = uneven().run(fednova.FedNova(fednova.Config(weighting=weighting)), 25)
    average = uneven().run(fedavg.FedAvg(fedavg.Config(weighting=weighting)), 25)
    assert close(nova, fixed_point(uneven(), weighting, by_step=True))
    assert close(average, fixed_point(uneven(), weighting, by_step=False))
    # What is left is of the order of the learning rate; FedAvg ends beside the optimum however small it is.
    best = optimum(uneven(), weighting)
    small = [(fixed_point(uneven(), weighting, by_step, lr=1e-6) - best).abs().max() for by_step in (True, False)]
    assert small[0] < 1e-4 and small[1] > 0.1


def test_batch_norm_statistics_are_averaged_as_they_are():
    strategy = fednova.FedNova(fednova.Config())
    state = fednova.State(T(x=[1.0], running_mean=[1.0]), ("running_mean",))
    folded = Folded({"delta": T(x=[0.5], running_mean=[0.25]), "length": T(sum=3.0)}, {}, 1, 1)
    new = strategy.update(state, folded, unequal().server())
    assert new.model["x"].item() == 2.5 and new.model["running_mean"].item() == 1.25

    model = build_seeded(lambda: build("cnn", 3, image_size=8, in_channels=1, width=2, hidden=4, norm="batch"), 0)
    before = {"model": shared_state(model)}
    data = Examples(torch.rand(8, 1, 8, 8, generator=generator(1)), torch.arange(8) % 3)
    client = client_context(data, 3, model, local=LocalConfig(epochs=1, batch_size=2, device="cpu"))
    plain = fedavg.FedAvg(fedavg.Config()).phase("train").local(Payload(before), client).trees["delta"]
    nova = strategy.local(Payload(before), client).trees
    assert nova["length"]["sum"].item() == 4.0
    for name, change in plain.items():
        assert torch.equal(nova["delta"][name], change if "running" in name else change / 4), name
