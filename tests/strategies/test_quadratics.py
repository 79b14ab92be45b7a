"""Fixed points in closed form on quadratics of unequal curvature, and identities between strategies.

From w, E steps of f_k(w) = a/2 (w - b)^2 end at b + (1 - lr a)^E (w - b): client k moves by q_k (b_k - w) with
q_k = 1 - (1 - lr a_k)^E. A mean of these changes vanishes at sum p q b / sum p q, which is not the optimum
sum p a b / sum p a.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from tests.helpers import Quadratics, unequal
from umbel.strategies import fedavg, fedopt, fedprox, scaffold

WEIGHTINGS = ("examples", "uniform")


def close(w, expected):
    return torch.allclose(w, expected, rtol=0, atol=1e-9)


def biased_point(problem: Quadratics, weighting: str, mu: float = 0.0):
    """The fixed point of FedAvg, and of FedProx.

    With the proximal term client k heads for c_k = (a_k b_k + mu w) / (a_k + mu) at the rate a_k + mu, and moves
    by (1 - (1 - lr (a_k + mu))^E) (c_k - w), where c_k - w = a_k / (a_k + mu) (b_k - w).
    """
    p, a = problem.shares(weighting), problem.a
    q = (1 - (1 - problem.lr * (a + mu)) ** problem.num_steps) * a / (a + mu)
    return (p * q * problem.b).sum(0) / (p * q).sum(0)


def optimum(problem: Quadratics, weighting: str):
    p, a = problem.shares(weighting), problem.a
    return (p * a * problem.b).sum(0) / (p * a).sum(0)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_fedavg_ends_at_its_biased_point(weighting):
    problem = unequal()
    end = problem.run(fedavg.FedAvg(fedavg.Config(weighting=weighting)), 40)
    assert close(end, biased_point(problem, weighting))
    assert (end - optimum(problem, weighting)).abs().max() > 0.05
    other = WEIGHTINGS[weighting == "examples"]
    assert (end - biased_point(problem, other)).abs().max() > 0.05


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_fedprox_ends_at_its_biased_point(weighting, mu):
    problem = unequal()
    end = problem.run(fedprox.FedProx(fedprox.Config(mu=mu, weighting=weighting)), 60)
    assert close(end, biased_point(problem, weighting, mu))
    assert (end - biased_point(problem, weighting)).abs().max() > 1e-3  # mu is seen


@pytest.mark.parametrize("server_lr", [1.0, 0.5])
@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_scaffold_ends_at_the_optimum(weighting, option, server_lr):
    problem = unequal()
    config = scaffold.Config(option=option, weighting=weighting, server_lr=server_lr)
    end = problem.run(scaffold.Scaffold(config), 80)
    assert close(end, optimum(problem, weighting))


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_scaffold_ends_at_the_optimum_when_two_of_three_take_part(weighting, option):
    problem = unequal()
    strategy = scaffold.Scaffold(scaffold.Config(option=option, weighting=weighting))
    state = strategy.initial(problem.server())
    cohorts = itertools.cycle([(0, 1), (1, 2), (0, 2), (1, 2)])
    for round_, cohort in zip(range(1, 81), cohorts, strict=False):
        state = problem.round(strategy, state, round_, cohort)
    assert close(state.model["w"], optimum(problem, weighting))
    # c stays the mean of the c_i over all clients, by the same weights; at the optimum the gradient there: 0.
    own = torch.stack([problem.memory[k].trees["control"]["w"] for k in range(3)])
    assert close((problem.shares(weighting) * own).sum(0), state.control["w"])
    assert close(state.control["w"], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize(
    "sgd", [{"momentum": 0.6}, {"momentum": 0.6, "nesterov": True}, {"weight_decay": 0.3}], ids=str
)
@pytest.mark.parametrize("num_steps", [1, 3])
def test_scaffold_ends_at_the_optimum_with_momentum_and_of_the_penalised_loss(num_steps, sgd, option):
    problem = replace(unequal(), lr=0.2, num_steps=num_steps, sgd=sgd)
    end = problem.run(scaffold.Scaffold(scaffold.Config(option=option)), 100)
    a, decay = problem.a, sgd.get("weight_decay", 0.0)
    assert close(end, (a * problem.b).sum(0) / (a + decay).sum(0))


@pytest.mark.parametrize("nesterov", [False, True])
def test_scaffolds_control_variate_with_momentum_is_the_weighted_mean_of_the_gradients(nesterov):
    rho, lr, steps = 0.5, 0.25, 3
    sgd = {"momentum": rho, "nesterov": nesterov}
    problem = Quadratics(torch.tensor([[2.0]]).double(), torch.tensor([[4.0]]).double(), (1,), lr, steps, sgd=sgd)
    strategy = scaffold.Scaffold(scaffold.Config())
    problem.round(strategy, strategy.initial(problem.server()), 1)
    # By torch's own optimiser: the gradients on the way, and how often later steps repeat each.
    w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer, gradients = torch.optim.SGD([w], lr, **sgd), []
    for _ in range(steps):
        w.grad = 2 * (w.detach() - 4)
        gradients.append(float(w.grad))
        optimizer.step()
    counts = [sum(rho**i for i in range(steps - k)) for k in range(steps)]
    if nesterov:
        counts = [sum(rho**i for i in range(steps - k + 1)) for k in range(steps)]
    mean = sum(n * g for n, g in zip(counts, gradients, strict=True)) / sum(counts)
    assert problem.memory[0].trees["control"]["w"].item() == pytest.approx(mean, rel=1e-14)


def test_scaffold_first_round_by_hand():
    # One client of two takes part: a = 2, b = 4, lr = 1/4, E = 2. From 0: gradient -8, w = 2; gradient -4, w = 3.
    problem = Quadratics(torch.tensor([[2.0], [1.0]]).double(), torch.tensor([[4.0], [0.0]]).double(), (1, 1), 0.25, 2)
    strategy = scaffold.Scaffold(scaffold.Config(server_lr=0.5))
    state = problem.round(strategy, strategy.initial(problem.server()), 1, cohort=[0])
    assert state.model["w"].tolist() == [1.5]  # 0 + 1/2 * 3
    assert problem.memory[0].trees["control"]["w"].tolist() == [-6.0]  # (0 - 3) / (2 / 4)
    assert state.control["w"].tolist() == [-3.0]  # |S| / N = 1/2
    # Round 2 from 1.5, shift c - c_0 = 3: gradients 2(1.5 - 4) + 3 = -2, w = 2; 2(2 - 4) + 3 = -1, w = 2.25.
    state = problem.round(strategy, state, 2, cohort=[0])
    assert state.model["w"].tolist() == [1.875]  # 1.5 + 1/2 * 0.75
    # c_0+ = -6 + 3 + (1.5 - 2.25) / (1/2) = -4.5, and c = -3 + 1/2 * 1.5
    assert problem.memory[0].trees["control"]["w"].tolist() == [-4.5]
    assert state.control["w"].tolist() == [-2.25]


def test_scaffold_option_one_keeps_the_gradient_at_the_servers_model():
    problem = Quadratics(torch.tensor([[2.0]]).double(), torch.tensor([[4.0]]).double(), (3,), 0.25, 2)
    strategy = scaffold.Scaffold(scaffold.Config(option="I"))
    problem.round(strategy, strategy.initial(problem.server()), 1)
    assert problem.memory[0].trees["control"]["w"].tolist() == [-8.0]  # 2 (0 - 4)


STRATEGIES = [
    fedavg.FedAvg(fedavg.Config(server_lr=0.5)),
    fedprox.FedProx(fedprox.Config(mu=0.0, server_lr=0.5)),
    scaffold.Scaffold(scaffold.Config(server_lr=0.5, weighting="examples")),
    fedopt.FedOpt(fedopt.Config(optimizer="sgd", lr=0.5)),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_server_learning_rate(strategy):
    # Two clients with n = 1 and 3, one step of lr 1/4 from 0: 1/4 * 2 * 4 = 2 and 1/4 * 1 * 24 = 6; by n
    # (1 * 2 + 3 * 6) / 4 = 5, and half of it is 2.5.
    problem = Quadratics(torch.tensor([[2.0], [1.0]]).double(), torch.tensor([[4.0], [24.0]]).double(), (1, 3), 0.25, 1)
    state = problem.round(strategy, strategy.initial(problem.server()), 1)
    assert state.model["w"].tolist() == [2.5]


def test_proximal_step_by_hand():
    # a = 2, b = 4, mu = 2, lr = 1/4, E = 2 from 0: w = 2; gradient 2(2 - 4) + 2(2 - 0) = 0: stays at 2.
    problem = Quadratics(torch.tensor([[2.0]]).double(), torch.tensor([[4.0]]).double(), (1,), 0.25, 2)
    assert problem.run(fedprox.FedProx(fedprox.Config(mu=2.0)), 1).tolist() == [2.0]


def test_fedprox_0_and_fedopt_sgd_1_are_fedavg_bit_for_bit():
    start = torch.tensor([0.1, 0.7], dtype=torch.float64)
    for weighting in WEIGHTINGS:
        ends = [
            unequal().run(strategy, 7, start)
            for strategy in (
                fedavg.FedAvg(fedavg.Config(weighting=weighting)),
                fedprox.FedProx(fedprox.Config(mu=0.0, weighting=weighting)),
                fedopt.FedOpt(fedopt.Config(optimizer="sgd", lr=1.0, weighting=weighting)),
            )
        ]
        assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


@pytest.mark.parametrize(
    "strategy",
    [fedavg.FedAvg(fedavg.Config()), scaffold.Scaffold(scaffold.Config(weighting="examples"))],
    ids=lambda s: type(s).__name__,
)
def test_replies_in_any_order_give_the_same_bits(strategy):
    random = torch.Generator().manual_seed(3)
    a = torch.rand(5, 3, generator=random, dtype=torch.float64) + 0.1
    b = torch.randn(5, 3, generator=random, dtype=torch.float64)
    ends = set()
    for arrival in list(itertools.permutations(range(5)))[::7]:
        problem = Quadratics(a, b, (1, 2, 3, 4, 7))
        state = strategy.initial(problem.server())
        for round_ in (1, 2):
            state = problem.round(strategy, state, round_, arrival=arrival)
        ends.add(tuple(state.model["w"].tolist()))
    assert len(ends) == 1
    # That they are distinct numbers to begin with: plain sums in another order do differ.
    values = (b * torch.tensor([1.0, 2, 3, 4, 7], dtype=torch.float64)[:, None])[:, 0].tolist()
    assert len({sum(order) for order in itertools.permutations(values)}) > 1
