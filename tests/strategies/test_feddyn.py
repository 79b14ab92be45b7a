"""FedDyn on quadratics: where nothing moves, every client's gradient is known and their mean is 0."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from tests.helpers import Quadratics, unequal
from tests.helpers import tree as T
from tests.strategies.test_quadratics import WEIGHTINGS, close, optimum
from umbel.core.folds import Folded
from umbel.strategies import feddyn


def gradients(problem: Quadratics) -> torch.Tensor:
    """All g_k [K, D], 0 of those who remember nothing."""
    zero = torch.zeros(problem.a.shape[1], dtype=torch.float64)
    known = problem.memory
    return torch.stack([known[k].trees["gradient"]["w"] if k in known else zero for k in range(problem.num_clients)])


# With lr 1/4 and alpha = 2 a local error shrinks by 1 - (a + 2) / 4 in a step: at a = 2 one step is exact.
EXACT = replace(unequal(), a=torch.full((3, 2), 2.0, dtype=torch.float64), num_steps=1)


@pytest.mark.parametrize("problem", [EXACT, unequal()], ids=["exact", "inexact"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_it_ends_at_the_optimum_where_each_client_knows_its_gradient(weighting, problem):
    problem = replace(problem, memory={})
    strategy = feddyn.FedDyn(feddyn.Config(alpha=2.0, weighting=weighting))
    state = strategy.initial(problem.server())
    for round_ in range(1, 81):
        state = problem.round(strategy, state, round_)
    best = optimum(problem, weighting)
    assert close(state.model["w"], best)
    assert close(gradients(problem), problem.a * (best - problem.b))
    assert close(state.mean_gradient["w"], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_h_is_the_mean_of_all_g_whoever_takes_part(weighting):
    problem = unequal()
    strategy = feddyn.FedDyn(feddyn.Config(alpha=2.0, weighting=weighting))
    state = strategy.initial(problem.server())
    cohorts = itertools.cycle([(0, 1), (1, 2), (0, 2), (2,)])
    for round_, cohort in zip(range(1, 101), cohorts, strict=False):
        state = problem.round(strategy, state, round_, cohort)
        mean = (problem.shares(weighting) * gradients(problem)).sum(0)
        assert torch.allclose(state.mean_gradient["w"], mean, rtol=0, atol=1e-12)
    assert close(state.model["w"], optimum(problem, weighting))


def test_an_exact_local_run_leaves_the_gradient_where_it_ended():
    problem = replace(unequal(), num_steps=20)
    strategy = feddyn.FedDyn(feddyn.Config(alpha=2.0))
    state = strategy.initial(problem.server())
    for round_ in (1, 2, 3):
        ends = [state.model["w"] + problem.reply(strategy, state, k, round_).trees["delta"]["w"] for k in range(3)]
        assert close(gradients(problem), problem.a * (torch.stack(ends) - problem.b))
        state = replace(state, model={"w": state.model["w"] + round_})


def test_two_rounds_by_hand():
    # One client of two takes part: a = 2, b = 4, alpha = 2, lr = 1/4, E = 2.
    problem = Quadratics(torch.tensor([[2.0], [1.0]]).double(), torch.tensor([[4.0], [0.0]]).double(), (1, 1), 0.25, 2)
    strategy = feddyn.FedDyn(feddyn.Config(alpha=2.0))
    # From 0: gradient 2(0 - 4) = -8, w = 2; 2(2 - 4) + 2(2 - 0) = 0: stays. g = -2 * 2, h = -2 * 1/2 * 2.
    state = problem.round(strategy, strategy.initial(problem.server()), 1, cohort=[0])
    assert gradients(problem).tolist() == [[-4.0], [0.0]] and state.mean_gradient["w"].tolist() == [-2.0]
    assert state.model["w"].tolist() == [3.0]  # 2 - h / 2
    # From 3: 2(3 - 4) + 4 = 2, w = 2.5; 2(2.5 - 4) + 2(2.5 - 3) + 4 = 0. g = -4 + 2 / 2, h = -2 + 1/2.
    state = problem.round(strategy, state, 2, cohort=[0])
    assert gradients(problem).tolist() == [[-3.0], [0.0]] and state.mean_gradient["w"].tolist() == [-1.5]
    assert state.model["w"].tolist() == [3.25]  # 2.5 - h / 2


def test_batch_norm_statistics_are_averaged_and_have_no_gradient():
    strategy = feddyn.FedDyn(feddyn.Config(alpha=0.5))
    state = feddyn.State(T(x=[1.0], running_mean=[1.0]), T(x=[2.0]))
    folded = Folded({"delta": T(x=[3.0], running_mean=[0.25])}, {}, 2, 1)
    new = strategy.update(state, folded, unequal().server())
    # One of three: h = 2 - 1/2 * 1/3 * 3 = 3/2, and 1 + 3 - 3/2 / (1/2).
    assert new.mean_gradient["x"].item() == pytest.approx(1.5) and new.model["x"].item() == pytest.approx(1.0)
    assert new.model["running_mean"].item() == 1.25 and "running_mean" not in new.mean_gradient
