"""Images that go through models are counted, in training and besides, and make floating-point operations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.helpers import small_run
from umbel.core.spent import Passes, Spent, count_trained, counted
from umbel.models import registry
from umbel.models.facts import flops, macs_of
from umbel.server.checkpoint import Progress
from umbel.server.errors import RunStoppedError
from umbel.simulations.compare.comparison import costs

ROUNDS = 2
CNN = ("model.name=cnn", "model.sizes={width: 4}", f"run.rounds={ROUNDS}")


def passes(result) -> dict[str, int]:
    """The only model's passes at the clients."""
    assert result.summary["passes"]["server"] == {}
    (found,) = result.summary["passes"]["clients"].values()
    return found


def test_training_goes_once_through_the_model(tmp_path: Path) -> None:
    result = small_run(tmp_path, *CNN)
    examples = result.summary["spent"]["clients"]["examples"]
    assert passes(result) == {"forward": examples, "backward": examples, "head": 0}


def test_more_at_once_count_as_much(tmp_path: Path) -> None:
    result = small_run(tmp_path, *CNN, "client.together=2")
    examples = result.summary["spent"]["clients"]["examples"]
    assert passes(result) == {"forward": examples, "backward": examples, "head": 0}


def test_a_full_gradient_is_another_pass(tmp_path: Path) -> None:
    """SCAFFOLD's option I takes one over all examples a round; it is no step of training."""
    result = small_run(tmp_path, *CNN, "strategy.name=scaffold", "strategy.option=I", "client.epochs=1")
    examples = result.summary["spent"]["clients"]["examples"]
    assert passes(result) == {"forward": 2 * examples, "backward": 2 * examples, "head": 0}


def test_models_that_are_looked_at_go_forward_only(tmp_path: Path) -> None:
    """MOON's global model, and from the second round on the client's one before."""
    result = small_run(tmp_path, *CNN, "strategy.name=moon", "client.epochs=1")
    examples = result.summary["spent"]["clients"]["examples"]
    first, more = examples // ROUNDS, examples - examples // ROUNDS
    assert passes(result) == {"forward": first + 3 * more, "backward": examples, "head": 0}


def test_a_head_that_learns_alone_is_told_apart(tmp_path: Path) -> None:
    result = small_run(tmp_path, *CNN, "strategy.name=fedrep", "strategy.head_epochs=3", "client.epochs=1")
    examples = result.summary["spent"]["clients"]["examples"]
    assert passes(result) == {"forward": examples, "backward": examples // 4, "head": 3 * examples // 4}


@pytest.mark.parametrize("name", ["linear", "cnn"])
def test_what_is_not_seen_to_be_called_is_counted_alike(name: str) -> None:
    """Steps that are compiled, or stacked, say what they did."""
    model = registry.build(name, 3, 8, 1)
    with counted() as seen:
        model(torch.zeros(5, 1, 8, 8)).sum().backward()
    with counted() as said:
        count_trained(model, 5)
    assert seen == said and seen.passes[model.spec].forward == 5


def test_nothing_is_counted_where_nothing_learns() -> None:
    model = registry.build("cnn", 3, 8, 1)
    with counted() as spent, torch.no_grad():
        model(torch.zeros(5, 1, 8, 8))
    assert spent.passes == {model.spec: Passes(5, 0, 0)}


def test_a_class_that_asks_its_base_counts_once() -> None:
    class Twice(type(registry.build("cnn", 3, 8, 1))):
        def features(self, x):
            return super().features(x) + super().features(x)

    model = registry.build("cnn", 3, 8, 1)
    model.__class__ = Twice
    with counted() as spent:
        model(torch.zeros(5, 1, 8, 8))
    assert spent.passes[model.spec].forward == 5


def test_operations_by_hand() -> None:
    """A linear head of 64 inputs and 3 outputs; LeNet's products, layer by layer."""
    linear, lenet = registry.build("linear", 3, 8, 1).spec, registry.build("lenet", 10, 28, 1).spec
    assert macs_of(linear) == (192, 192)
    products = 24 * 24 * 6 * 25 + 8 * 8 * 16 * 6 * 25 + 256 * 120 + 120 * 84 + 84 * 10
    assert macs_of(lenet) == (products, 840)
    assert flops({linear: {"forward": 10, "backward": 0, "head": 10}}) == 2 * 192 * 20
    assert flops({lenet: {"forward": 7, "backward": 5, "head": 2}}) == 2 * (products * 17 + 840 * 2)


@pytest.mark.parametrize("spec", ["", "{", "[1]", json.dumps(["no_such_model", 3, 8, 1, {}])])
def test_what_is_no_model_here_has_no_known_operations(spec: str) -> None:
    assert math.isnan(flops({spec: {"forward": 1, "backward": 1, "head": 0}}))


def test_a_run_whose_models_are_not_known_has_no_operations_rather_than_none() -> None:
    known = {"bytes_up": {}, "bytes_down": {}, "seconds": {"total": 1.0}, "passes": {"clients": {}, "server": {}}}
    trained, idle = ({"clients": {"steps": steps, "examples": 0}} for steps in (4, 0))
    assert math.isnan(costs({**known, "spent": trained})["flops"]) and costs({**known, "spent": idle})["flops"] == 0


def test_a_node_cannot_fill_the_server_with_names() -> None:
    progress = Progress()
    for number in range(100):
        progress.spend("clients", Spent(passes={f"model {number}": Passes(1, 1, 0)}))
    assert len(progress.passes["clients"]) == 16


def test_a_budget_of_operations_ends_a_run(tmp_path: Path) -> None:
    whole = costs(small_run(tmp_path, *CNN, "run.name=whole").summary)["flops"]
    half = small_run(tmp_path, *CNN, f"run.budget=flops={whole / 2}", "run.name=half")
    assert half.summary["rounds"] == 1 and costs(half.summary)["flops"] == whole / 2


def test_a_budget_of_operations_that_are_not_known_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umbel.core.spent._spec", lambda model: "")
    with pytest.raises(RunStoppedError, match="operations are not known"):
        small_run(tmp_path, *CNN, "run.budget=flops=1e6")
