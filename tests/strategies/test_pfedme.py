"""pFedMe on quadratics: proximal points, gradients of Moreau envelopes, where all of it ends; and what it is beside it.

The proximal point of a/2 (w - b)^2 at w is theta* = (a b + lambda w) / (a + lambda), and K steps from theta leave
theta* + (1 - lr (a + lambda))^K (theta - theta*). The gradient of its Moreau envelope is c (w - b), with
c = a lambda / (a + lambda).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import Quadratics, small_run, unequal
from tests.strategies.test_quadratics import close
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core.refusal import Refusal
from umbel.core.training import LocalConfig, num_processed
from umbel.strategies.pfedme import Config, PFedMe, toward

PULL = 2.0  # with lr 1/4 an error becomes 1 - (a + 2) / 4 of itself in a step: 1/4, 0 or -1/4
START = torch.tensor([3.0, -1.0], dtype=torch.float64)


def problem(num_steps: int = 1) -> Quadratics:
    return replace(unequal(), lr=0.25, num_steps=num_steps, memory={})


def envelope_minimum(quadratics: Quadratics, weighting: str, share: torch.Tensor | None = None) -> torch.Tensor:
    """Where the mean of the envelopes' gradients is 0; or of changes `share` (b - w)."""
    a, p = quadratics.a, quadratics.shares(weighting)
    c = a * PULL / (a + PULL) if share is None else share
    return (p * c * quadratics.b).sum(0) / (p * c).sum(0)


def test_a_round_is_a_step_down_the_moreau_envelope():
    quadratics, eta = problem(), 0.25
    strategy = PFedMe(Config(pull=PULL, inner_steps=20, eta=eta))
    state = strategy.initial(quadratics.server())
    state.model["w"].copy_(START)
    gradient = quadratics.a * PULL / (quadratics.a + PULL) * (START - quadratics.b)
    for k in range(3):
        reply = quadratics.reply(strategy, state, k, 1)
        assert close(reply.trees["delta"]["w"], -eta * gradient[k])
        a, b = quadratics.a[k], quadratics.b[k]
        assert close(quadratics.memory[k].trees["model"]["w"], (a * b + PULL * START) / (a + PULL))


def test_few_steps_leave_the_personal_model_short_of_its_proximal_point():
    quadratics, eta, steps = problem(3), 0.25, 2
    strategy = PFedMe(Config(pull=PULL, inner_steps=steps, eta=eta))
    state = strategy.initial(quadratics.server())
    state.model["w"].copy_(START)
    for k in range(3):
        a, b, w, theta = quadratics.a[k], quadratics.b[k], START, START
        for _ in range(3):  # theta goes on from one local round to the next
            proximal = (a * b + PULL * w) / (a + PULL)
            theta = proximal + (1 - quadratics.lr * (a + PULL)) ** steps * (theta - proximal)
            w = w - eta * PULL * (w - theta)
        reply = quadratics.reply(strategy, state, k, 1)
        assert close(reply.trees["delta"]["w"], w - START)
        assert close(quadratics.memory[k].trees["model"]["w"], theta)


@pytest.mark.parametrize(("weighting", "beta", "rounds"), [("uniform", 1.0, 35), ("examples", 0.75, 50)])
def test_it_ends_where_the_mean_envelope_is_least(weighting, beta, rounds):
    quadratics = problem()
    config = Config(pull=PULL, inner_steps=18, eta=0.5, server_lr=beta, weighting=weighting)
    end = quadratics.run(PFedMe(config), rounds)
    assert close(end, envelope_minimum(quadratics, weighting))
    for k, memory in quadratics.memory.items():
        a, b = quadratics.a[k], quadratics.b[k]
        assert close(memory.trees["model"]["w"], (a * b + PULL * end) / (a + PULL))
    # Not the minimum of the losses.
    p, a = quadratics.shares(weighting), quadratics.a
    assert (end - (p * a * quadratics.b).sum(0) / (p * a).sum(0)).abs().max() > 0.05


def test_several_local_rounds_end_at_a_biased_point():
    """R rounds move by 1 - (1 - eta c)^R of the way to b, as FedAvg's steps do on the losses."""
    quadratics, eta = problem(4), 0.5
    c = quadratics.a * PULL / (quadratics.a + PULL)
    end = quadratics.run(PFedMe(Config(pull=PULL, inner_steps=18, eta=eta)), 16)
    assert close(end, envelope_minimum(quadratics, "uniform", 1 - (1 - eta * c) ** 4))
    assert (end - envelope_minimum(quadratics, "uniform")).abs().max() > 1e-3


def test_toward_by_hand():
    w, theta = [torch.tensor([4.0]), torch.tensor([[1.0, 2.0]])], [torch.tensor([0.0]), torch.tensor([[5.0, 2.0]])]
    assert [each.tolist() for each in toward(w, theta, 0.25)] == [[3.0], [[2.0, 2.0]]]


def test_one_step_whose_model_is_taken_over_is_fedavgs(tmp_path):
    """K = 1 and eta lambda = 1: w goes to theta after each step, where the next pull is 0; up to rounding."""
    same = ("client.precision=fp64", "client.batch_size=8", "client.lr=0.1", "data.partition=iid")
    average = small_run(tmp_path / "a", *same, "strategy={name: fedavg, weighting: uniform}")
    steps = ("strategy.name=pfedme", "strategy.inner_steps=1")
    tied = small_run(tmp_path / "b", *same, *steps, "strategy.pull=2", "strategy.eta=0.5")
    other = small_run(tmp_path / "c", *same, *steps, "strategy.pull=2", "strategy.eta=0.4")
    expected, found, apart = (load_file(run.path / "model.safetensors") for run in (average, tied, other))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-12)
    assert any((apart[name] - weight).abs().max() > 1e-6 for name, weight in expected.items())


def test_each_batch_is_gone_through_k_times(tmp_path):
    (phase,) = PFedMe(Config(inner_steps=3)).every_phase()
    local = LocalConfig(epochs=2, batch_size=8)
    assert phase.num_processed(local, 20) == 3 * num_processed(local, 20) == 120
    plain = small_run(tmp_path / "plain", "client.batch_size=8")
    thrice = small_run(tmp_path / "thrice", "client.batch_size=8", "strategy.name=pfedme", "strategy.inner_steps=3")
    spent, once = thrice.summary["spent"]["clients"], plain.summary["spent"]["clients"]
    assert spent == {key: 3 * value for key, value in once.items()}


def test_batch_norm_and_weighted_classes_go_with_it(tmp_path):
    options = (
        "model.sizes={width: 4, hidden: 16, norm: batch}",
        "client.class_weights=balanced",
        "evaluate.clients=-1",
    )
    result = small_run(tmp_path, "strategy.name=pfedme", *options)
    assert result.summary["num_failures"] == 0


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (("client.lr=0.2",), "strategy.pull"),
        (("client.lr=0.095", "client.momentum=0.9", "client.nesterov=true"), "strategy.pull"),
        (("strategy.eta=0.2",), "strategy.eta"),
        (("strategy.pull=0",), "strategy.pull"),
        (("strategy.inner_steps=0",), "strategy.inner_steps"),
    ],
)
def test_what_would_diverge_is_refused(more, key):
    with pytest.raises(ExperimentError) as refused:
        load("digits", ["strategy.name=pfedme", *more])
    assert refused.value.key == key


def test_the_bound_is_where_the_pull_alone_diverges():
    """By torch's own SGD on lambda / 2 theta^2, a hundredth below and above; without Nesterov's form it is further."""
    for m, nesterov in ((0.0, False), (0.9, False), (0.9, True), (0.5, True)):
        bound = 2 * (1 + m) / (1 + 2 * m if nesterov else 1)
        for share, diverges in ((0.99, False), (1.01, True)):
            lr = share * bound / 15
            theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
            sgd = torch.optim.SGD([theta], lr=lr, momentum=m, nesterov=nesterov)
            for _ in range(300):
                sgd.zero_grad()
                (7.5 * theta.square()).sum().backward()
                sgd.step()
            assert (abs(theta.item()) > 1) is diverges
            asked = ["strategy.name=pfedme", f"client.lr={lr!r}", f"client.momentum={m}", f"client.nesterov={nesterov}"]
            with pytest.raises(ExperimentError) if diverges else nullcontext():
                load("digits", asked)


def test_one_batch_norm_for_two_models_is_refused(tmp_path):
    with pytest.raises(Refusal) as refused:
        small_run(tmp_path, "strategy.name=pfedme", "model.norm=local")
    assert refused.value.key == "model.norm"
