"""Images that go through models are counted, in training and besides, and make floating-point operations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.helpers import Notices, small_run
from umbel.core import spent
from umbel.core.records import Payload, Reply
from umbel.core.spent import Passes, count_trained, counted
from umbel.models import registry
from umbel.models.assemble import assemble
from umbel.models.base import Model
from umbel.models.facts import flops, macs, macs_of
from umbel.server.errors import RunStoppedError
from umbel.simulations.compare.comparison import costs
from umbel.strategies.base import ClientContext, Phase, train_and_subtract
from umbel.strategies.fedavg import FedAvg, State

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
    with counted() as found, torch.no_grad():
        model(torch.zeros(5, 1, 8, 8))
    assert found.passes == {model.spec: Passes(5, 0, 0)}


def test_a_class_that_asks_its_base_counts_once() -> None:
    class Twice(type(registry.build("cnn", 3, 8, 1))):
        def features(self, x):
            return super().features(x) + super().features(x)

    model = registry.build("cnn", 3, 8, 1)
    model.__class__ = Twice
    with counted() as found:
        model(torch.zeros(5, 1, 8, 8))
    assert found.passes[model.spec].forward == 5


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


class Liar(FedAvg):
    """Its clients count models that nobody has built, one of which would import a module."""

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send_model, self.local, self.fold, self.update),)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        for name in (f"model {client.id}", json.dumps(["tests.server.no_such:module", 3, 8, 1, {}])):
            spent._scopes[-1].passes[name] = Passes(10**9, 10**9, 0)
        return train_and_subtract(payload, client)


def test_what_a_node_counts_of_other_models_is_left_out_and_said(tmp_path: Path) -> None:
    told = Notices()
    honest = small_run(tmp_path, *CNN, "run.name=honest")
    result = small_run(tmp_path, *CNN, "strategy.name=tests.server.test_passes:Liar", "run.name=liar", listener=told)
    assert passes(result) == passes(honest)
    assert [text for text in told.texts if "which the server has not built" in text] == [
        "A node counts images that went through a model which the server has not built; its operations are not counted."
    ]


def test_operators_are_a_part_of_what_a_model_costs() -> None:
    """As `models.facts.macs` counts them on the model itself."""
    with torch.device("meta"):
        models = [assembled({}), assembled({"dcls": {}}), assembled({"dolg": {}})]
    assert len({model.spec for model in models}) == 3
    assert [macs_of(model.spec)[0] for model in models] == [macs(model) for model in models]
    for model in models:
        assert [module.spec for module in model.modules() if isinstance(module, Model) and module is not model] in (
            [],
            [""],
        )


def assembled(operators: dict[str, dict[str, int]]) -> Model:
    return assemble("cnn", 10, 8, 1, sizes={}, operators_=operators, norm_rule="")


def test_a_budget_of_operations_ends_a_run(tmp_path: Path) -> None:
    whole = costs(small_run(tmp_path, *CNN, "run.name=whole").summary)["flops"]
    half = small_run(tmp_path, *CNN, f"run.budget=flops={whole / 2}", "run.name=half")
    assert half.summary["rounds"] == 1 and costs(half.summary)["flops"] == whole / 2


def test_a_budget_of_operations_that_are_not_known_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umbel.core.spent._spec", lambda model: "")
    with pytest.raises(RunStoppedError, match="operations are not known"):
        small_run(tmp_path, *CNN, "run.budget=flops=1e6")
