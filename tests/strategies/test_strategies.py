"""Strategies: server optimisers against numbers worked by hand, options, names."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from tests.helpers import Quadratics, unequal
from tests.helpers import tree as T
from umbel.conf.schema import Experiment
from umbel.core.folds import Folded
from umbel.core.names import UnknownNameError
from umbel.core.refusal import Refusal
from umbel.core.training import LocalConfig
from umbel.core.training.corrections import AffineCorrection
from umbel.strategies import (
    ditto,
    fedavg,
    fedbabu,
    feddyn,
    fednova,
    fedntd,
    fedopt,
    fedproto,
    fedprox,
    fedrep,
    moon,
    registry,
    scaffold,
)
from umbel.strategies.base import Strategy
from umbel.strategies.long_tail import fedetf, fedrod


def steps(config, *deltas):
    """x after each server step from 0 with these mean changes."""
    x, moments, path = T(x=[0.0]), {}, []
    for delta in deltas:
        x, moments = fedopt.optimize(config, x, T(x=[delta]), moments)
        path.append(x["x"].item())
    return path


def close(*expected):
    return pytest.approx(list(expected), rel=0, abs=1e-12)


def test_sgd_with_momentum():
    # m = 4, x = 1/2 * 4; m = 1/4 * 4 + 2 = 3, x = 2 + 1/2 * 3.
    config = fedopt.Config(optimizer="sgd", lr=0.5, momentum=0.25)
    assert steps(config, 4.0, 2.0) == close(2.0, 3.5)


def test_the_papers_adam():
    # tau = 1, so v_0 = 1; beta_1 = 3/4, beta_2 = 1/2, eta = 12.
    # Delta 7: m = 7/4, v = (1 + 49) / 2 = 25, x = 12 * 7/4 / (5 + 1) = 3.5.
    # Delta 5: m = 3/4 * 7/4 + 5/4 = 41/16, v = (25 + 25) / 2 = 25, x = 3.5 + 12 * 41/16 / 6 = 8.625.
    config = fedopt.Config(optimizer="adam", lr=12.0, momentum=0.75, beta2=0.5, tau=1.0)
    assert steps(config, 7.0, 5.0) == close(3.5, 8.625)


def test_torchs_adam():
    # beta_1 = beta_2 = 1/2, eps = 1, eta = 30.
    # Delta 1: corrected m = 1, v = 1, x = 30 / (1 + 1) = 15.
    # Delta 11: m = 1/4 + 11/2 = 23/4, corrected by 3/4: 23/3; v = 1/4 + 121/2 = 243/4, corrected: 81.
    #           x = 15 + 30 * 23/3 / (9 + 1) = 38.
    config = fedopt.Config(optimizer="adam", lr=30.0, momentum=0.5, beta2=0.5, tau=1.0, bias_correction=True)
    assert steps(config, 1.0, 11.0) == close(15.0, 38.0)
    # beta_2 = 3/4: v = 3/16 + 121/4 = 487/16, corrected by 7/16: 487/7.
    other = fedopt.Config(optimizer="adam", lr=30.0, momentum=0.5, beta2=0.75, tau=1.0, bias_correction=True)
    assert steps(other, 1.0, 11.0) == close(15.0, 15 + 230 / ((487 / 7) ** 0.5 + 1))


def test_yogi():
    # tau = 5, so v_0 = 25; beta_1 = 1/2, 1 - beta_2 = 9/16, eta = 9.
    # Delta 4: 16 < 25, v = 25 - 9 = 16, m = 2, x = 9 * 2 / (4 + 5) = 2.
    # Delta 10: 100 > 16, v = 16 + 56.25 = 8.5^2, m = 1 + 5 = 6, x = 2 + 9 * 6 / (8.5 + 5) = 6.
    config = fedopt.Config(optimizer="yogi", lr=9.0, momentum=0.5, beta2=0.4375, tau=5.0)
    assert steps(config, 4.0, 10.0) == close(2.0, 6.0)


def test_a_step_changes_nothing_that_it_was_given():
    config = fedopt.Config(optimizer="adam", lr=1.0, momentum=0.5)
    x, delta = T(x=[1.0]), T(x=[2.0])
    _, moments = fedopt.optimize(config, x, delta, {})
    kept = {name: value.clone() for name, value in moments["x"].items()}
    fedopt.optimize(config, x, delta, moments)
    assert x["x"].item() == 1.0 and delta["x"].item() == 2.0
    assert all(torch.equal(moments["x"][name], value) for name, value in kept.items())


def test_buffers_are_averaged_and_not_optimised():
    strategy = fedopt.FedOpt(fedopt.Config(optimizer="adam", lr=12.0, momentum=0.75, beta2=0.5, tau=1.0))
    state = fedopt.State(T(x=[0.0], running_mean=[1.0]), ("running_mean",))
    folded = Folded({"delta": T(x=[7.0], running_mean=[0.5])}, {}, 1, 1)
    new = strategy.update(state, folded, unequal().server())
    assert new.model["x"].item() == pytest.approx(3.5) and new.model["running_mean"].item() == 1.5
    assert "running_mean" not in new.moments


@pytest.mark.parametrize(
    "config",
    [
        fedopt.Config(optimizer="sgd", lr=0.5, momentum=0.25),
        fedopt.Config(optimizer="adam", lr=0.1, momentum=0.9),
        fedopt.Config(optimizer="adam", lr=0.1, momentum=0.9, bias_correction=True),
        fedopt.Config(optimizer="yogi", lr=0.1, momentum=0.9),
    ],
    ids=str,
)
def test_fedopt_through_the_whole_round(config):
    # One client, one step of lr 1/4 on (w - 8)^2: the change is (8 - w) / 2.
    problem = Quadratics(torch.tensor([[2.0]]).double(), torch.tensor([[8.0]]).double(), (2,), 0.25, 1)
    strategy = fedopt.FedOpt(config)
    state = strategy.initial(problem.server())
    for round_ in (1, 2):
        state = problem.round(strategy, state, round_)
    first = steps(config, 4.0)[0]
    expected = steps(config, 4.0, (8 - first) / 2)[1]
    assert state.model["w"].item() == pytest.approx(expected, rel=0, abs=1e-12)


def test_weighting_of_fedopt():
    # Changes 2 and 6 of clients with 1 and 3 examples: 5 by examples, 4 uniformly.
    problem = Quadratics(torch.tensor([[2.0], [1.0]]).double(), torch.tensor([[4.0], [24.0]]).double(), (1, 3), 0.25, 1)
    for weighting, expected in (("examples", 5.0), ("uniform", 4.0)):
        strategy = fedopt.FedOpt(fedopt.Config(weighting=weighting))
        state = problem.round(strategy, strategy.initial(problem.server()), 1)
        assert state.model["w"].tolist() == [expected]


def test_means_are_cast_once_and_then_added():
    # A third in float32, added to 1 in float32; not 4/3 computed in float64.
    w = fedavg.step({"w": torch.ones(1)}, T(w=[1 / 3]), 1.0)["w"]
    assert w.dtype == torch.float32
    assert torch.equal(w, torch.ones(1) + torch.tensor([1 / 3], dtype=torch.float32))


def test_proximal_gradient():
    gradient = torch.tensor([1.0, -1.0])
    pull = AffineCorrection(0.5, [torch.tensor([1.0, 4.0])])
    pull([torch.tensor([3.0, 0.0])], [gradient])
    assert gradient.tolist() == [2.0, -3.0]  # 1 + (3 - 1) / 2, -1 + (0 - 4) / 2


def test_scaffolds_renewed_control():
    # One less two, and the mean gradient (8 - 5) / (3 / 4).
    control = scaffold.renewed_control(T(w=1.0), T(w=2.0), T(w=8.0), T(w=5.0), 3, 0.25)
    assert control["w"].item() == 3.0
    assert scaffold.control_step(T(w=1.0), T(w=8.0), 0.25)["w"].item() == 3.0


# Options and names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fedavg.FedAvg(fedavg.Config(weighting="batches")), "strategy.weighting"),
        (lambda: fedprox.FedProx(fedprox.Config(weighting="batches")), "strategy.weighting"),
        (lambda: fedprox.FedProx(fedprox.Config(mu=-0.1)), "strategy.mu"),
        (lambda: feddyn.FedDyn(feddyn.Config(alpha=0.0)), "strategy.alpha"),
        (lambda: fednova.FedNova(fednova.Config(mu=-0.1)), "strategy.mu"),
        (lambda: ditto.Ditto(ditto.Config(pull=-0.1)), "strategy.pull"),
        (lambda: fedetf.FedETF(fedetf.Config(scale=0.0)), "strategy.scale"),
        (lambda: fedrod.FedRoD(fedrod.Config(gamma=-1.0)), "strategy.gamma"),
        (lambda: moon.MOON(moon.Config(temperature=0.0)), "strategy.temperature"),
        (
            lambda: fedbabu.FedBABU(fedbabu.Config(finetune="tail")),
            "strategy.finetune should be one of all, head, body",
        ),
        (lambda: fedrep.FedRep(fedrep.Config(head_epochs=-1)), "strategy.head_epochs"),
        (lambda: fedproto.FedProto(fedproto.Config(strength=-1.0)), "strategy.strength"),
        (lambda: fedproto.FedProto(fedproto.Config(distance="l2")), "strategy.distance"),
        (lambda: fedntd.FedNTD(fedntd.Config(beta=-0.1)), "strategy.beta"),
        (lambda: scaffold.Scaffold(scaffold.Config(option="III")), "strategy.option should be one of I, II"),
        (lambda: fedopt.FedOpt(fedopt.Config(optimizer="adagrad")), "strategy.optimizer"),
        (lambda: fedopt.FedOpt(fedopt.Config(momentum=1.0)), "strategy.momentum"),
        (lambda: fedopt.FedOpt(fedopt.Config(beta2=-0.5)), "strategy.beta2"),
        (lambda: fedopt.FedOpt(fedopt.Config(tau=0.0)), "strategy.tau"),
        (lambda: fedopt.FedOpt(fedopt.Config(bias_correction=True)), "strategy.bias_correction"),
    ],
)
def test_values_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("local", [LocalConfig(clip_norm=1.0), LocalConfig(optimizer="adam")])
def test_scaffolds_option_two_wants_changes_that_are_linear_in_the_gradients(local):
    scaffold.Scaffold(scaffold.Config(option="I")).check(Experiment(client=local))
    linear = LocalConfig(momentum=0.9, nesterov=True, weight_decay=0.1)
    scaffold.Scaffold(scaffold.Config(option="II")).check(Experiment(client=linear))
    with pytest.raises(ValueError, match=r"linear in the gradients, not with client\..*strategy\.option=I"):
        scaffold.Scaffold(scaffold.Config(option="II")).check(Experiment(client=local))


@pytest.mark.parametrize("name", registry.names())
def test_every_name_has_a_strategy_and_a_line(name):
    kind = registry.find(name)
    assert issubclass(kind, Strategy) and kind(kind.config_class())
    assert registry.describe(name) and registry.options(name).keys() & {"weighting", "base", "ensemble"}


def test_names_that_are_not_there():
    with pytest.raises(UnknownNameError, match=r"strategy 'scafold' \(key strategy.name\). Did you mean 'scaffold'"):
        registry.find("scafold")
    assert registry.find("umbel.strategies.fedprox:FedProx") is fedprox.FedProx
    with pytest.raises(ValueError, match="must be installed, or lie in a folder that PYTHONPATH names"):
        registry.find("no_such_package.strategy:Mine")
    with pytest.raises(ValueError, match=r"module 'umbel\.strategies\.fedprox' has no 'Mine'"):
        registry.find("umbel.strategies.fedprox:Mine")
    with pytest.raises(ValueError, match="no subclass of"):
        registry.find("umbel.strategies.fedprox:Config")


def test_a_strategy_of_ones_own_that_lacks_something_is_refused_before_anything_starts(monkeypatch):
    module = types.ModuleType("own_strategies")

    class Bare(fedavg.FedAvg):
        """Says everything but its hyper-parameters."""

        config_class = None

    class Mute(Strategy):
        """Says nothing."""

        config_class = fedavg.Config

    module.Bare, module.Mute = Bare, Mute
    monkeypatch.setitem(sys.modules, "own_strategies", module)
    for name, lacking in (("Bare", "has no config_class"), ("Mute", "does not say every_phase, initial, model")):
        with pytest.raises(Refusal, match=lacking) as refused:
            registry.find(f"own_strategies:{name}")
        assert refused.value.key == "strategy.name" and refused.value.remedy
    with pytest.raises(Refusal, match=r"One of your own is named module:Class\."):
        registry.find("own_strategies.Bare")
