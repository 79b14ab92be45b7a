"""Flower's own strategies by name, and rules for batch norm, through the inline engine."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from tests.helpers import small_run
from tests.server.test_resume_bits import killed
from umbel import resume
from umbel.client import worker
from umbel.conf.errors import ExperimentError
from umbel.core.files import read_tensors
from umbel.core.tree import Tree
from umbel.server.flower import strategies as flower
from umbel.strategies import scaffold


def model(run):
    return read_tensors(run.path / "model.safetensors")[0]


def largest_difference(left, right):
    assert left.keys() == right.keys()
    return max((left[name].double() - right[name].double()).abs().max().item() for name in left)


def test_flowers_fedavg_is_ours(tmp_path):
    theirs = small_run(tmp_path, "strategy.name=flwr:FedAvg")
    ours = small_run(tmp_path)
    initial = small_run(tmp_path, "client.lr=0")
    assert largest_difference(model(theirs), model(ours)) < 1e-6
    assert largest_difference(model(theirs), model(initial)) > 1e-3
    assert theirs.summary["strategy"] == "flwr:FedAvg"


@pytest.mark.parametrize(
    "options",
    [
        ["flwr:FedTrimmedAvg", "strategy.beta=0.25"],
        ["flwr:Krum", "strategy.num_malicious_nodes=1"],
        ["flwr:FedMedian"],
        ["flwr:FedAdam", "strategy.eta=0.01"],
        ["flwr:FedAvgM", "strategy.server_momentum=0.5"],
    ],
    ids=" ".join,
)
def test_flowers_strategies_run(tmp_path, options):
    name, *more = options
    result = small_run(tmp_path, f"strategy.name={name}", *more)
    assert result.summary["rounds"] == 2 and result.summary["num_failures"] == 0
    assert largest_difference(model(result), model(small_run(tmp_path, f"strategy.name={name}", *more))) == 0
    assert largest_difference(model(result), model(small_run(tmp_path, "client.lr=0"))) > 1e-4


def test_flowers_momentum_is_ours(tmp_path):
    theirs = small_run(tmp_path, "strategy.name=flwr:FedAvgM", "strategy.server_momentum=0.5", "run.rounds=3")
    ours = small_run(tmp_path, "strategy.name=fedopt", "strategy.momentum=0.5", "run.rounds=3")
    plain = small_run(tmp_path, "run.rounds=3")
    assert largest_difference(model(theirs), model(ours)) < 1e-5  # momentum lives from round to round
    assert largest_difference(model(theirs), model(plain)) > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        ["strategy.name=flwr:FedAvgM", "strategy.server_momentum=0.5"],
        ["strategy.name=flwr:FedAdam", "strategy.eta=0.01"],
        ["strategy.name=flwr:FedYogi", "strategy.eta=0.01"],
    ],
    ids=" ".join,
)
def test_flowers_strategies_resume(tmp_path, options):
    options = [*options, "run.rounds=4", "checkpoint.every=2"]
    whole = small_run(tmp_path / "whole", *options)
    resumed = resume(killed(tmp_path / "killed", *options))
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy.name=flwr:FedTrimedAvg"], "strategy.name.*Did you mean 'flwr:FedTrimmedAvg'"),
        (["strategy.name=flwr:FedProx"], "Unknown Flower strategy 'flwr:FedProx'"),
        (["strategy.name=flwr:FedAvgM", "strategy.server_momentun=0.5"], "Did you mean server_momentum"),
        (["strategy.name=flwr:FedAvg", "strategy.fraction_train=0.5"], "strategy.fraction_train"),
        (["strategy.name=flwr:FedAdam", "strategy.eta=fast"], "strategy.eta: expected float, found 'fast'"),
        (["strategy.name=flwr:Krum", "strategy.num_malicious_nodes=0.5"], "expected int, found 0.5"),
    ],
)
def test_refused_before_anything_starts(tmp_path, overrides, message):
    with pytest.raises(ExperimentError, match=message):
        small_run(tmp_path, *overrides)
    assert not list(tmp_path.iterdir())


def test_what_can_be_plugged_in():
    names = flower.flower_names()
    assert {"flwr:FedAvg", "flwr:Krum", "flwr:FedMedian", "flwr:Bulyan"} <= set(names)
    assert "flwr:FedProx" not in names
    assert flower.flower_options("flwr:FedAvgM") == {"server_learning_rate": 1.0, "server_momentum": 0.0}


# Identities through whole runs ------------------------------------------------------------------------------

CVT = ("model.name=cvt_tiny32", "model.sizes={}")


def test_identities_hold_through_whole_runs(tmp_path):
    # With batch norm, minibatches and float32, in which rounding would show.
    hashes = {
        small_run(tmp_path, *CVT, *options).summary["weights_sha256"]
        for options in (
            ["strategy.name=fedavg"],
            ["strategy.name=fedprox", "strategy.mu=0"],
            ["strategy.name=fedopt", "strategy.optimizer=sgd", "strategy.lr=1.0"],
        )
    }
    assert len(hashes) == 1
    assert small_run(tmp_path, *CVT, "run.seed=1").summary["weights_sha256"] not in hashes


# Batch norm ---------------------------------------------------------------------------------------------------


def sent_names(monkeypatch):
    """Names of everything that clients send and receive."""
    names = set()
    run = worker.Worker.run

    def spy(self, work, payload, *rest):
        outcome = run(self, work, payload, *rest)
        trees = [*payload.trees.values()]
        trees += [tree for _, _, partial in outcome.nodes for tree in partial.trees.values()]
        trees += [tree for reply in outcome.singles.values() for tree in reply.trees.values()]
        names.update(name for tree in trees for name in tree if "#" not in name)
        assert all(t.is_floating_point() for tree in trees for name, t in tree.items() if "#" not in name)
        return outcome

    monkeypatch.setattr(worker.Worker, "run", spy)
    return names


RULES = ("average", "local", "group")
KINDS = ("fedavg", "scaffold", "fedopt", "flwr:FedAvg")


@pytest.mark.parametrize(
    ("norm", "strategy"),
    [
        pytest.param(norm, kind, marks=() if i == j % len(RULES) or kind == "fedavg" else pytest.mark.exhaustive)
        for i, norm in enumerate(RULES)
        for j, kind in enumerate(KINDS)
    ],
)
def test_rules_for_batch_norm(tmp_path, monkeypatch, norm, strategy):
    names = sent_names(monkeypatch)
    result = small_run(tmp_path, *CVT, f"model.norm={norm}", f"strategy.name={strategy}")
    state = model(result)
    assert result.summary["num_failures"] == 0 and all(torch.isfinite(t).all() for t in state.values())
    statistics = {name for name in state if "running_" in name}
    counters = {name for name in state if "num_batches_tracked" in name}
    owners = {name.rpartition(".")[0] for name in counters}
    affine = {name for name in state if name.rpartition(".")[0] in owners} - statistics - counters
    assert names and not counters & names
    if norm == "group":
        assert not statistics
        return
    assert statistics and counters and affine
    if norm == "average":
        assert statistics | affine <= names
        return
    assert not (statistics | affine) & names
    files = sorted((result.path / "memory").rglob("*.safetensors"))
    assert len({path.parent for path in files}) == 4
    kept = [read_tensors(path)[0] for path in files if path.name.startswith("000002")]
    own = [{name.removeprefix("#own/"): t for name, t in each.items() if "#own/" in name} for each in kept]
    assert all(each.keys() == statistics | counters | affine for each in own)
    assert len({tuple(each[min(statistics)].tolist()) for each in own}) == 4  # each client's are its own
    first = read_tensors(next(path for path in files if path.name.startswith("000001")))[0]
    second = read_tensors(next(path for path in files if path.name.startswith("000002")))[0]
    for counter in counters:  # the second round went on from the first
        assert second[f"#own/{counter}"] == 2 * first[f"#own/{counter}"] > 0
    initial = model(small_run(tmp_path, *CVT, "client.lr=0", "run.rounds=1"))
    assert all(torch.equal(state[name], initial[name]) for name in affine)  # the generic model has none of theirs


class Overheard(scaffold.Scaffold):
    """SCAFFOLD that keeps what replies come to."""

    trees: ClassVar[dict[str, Tree]] = {}

    def update(self, state, folded, server):
        self.trees.update({name: dict(tree) for name, tree in folded.trees.items()})
        return super().update(state, folded, server)


def test_scaffold_has_no_control_variate_for_statistics(tmp_path):
    small_run(tmp_path, *CVT, f"strategy.name={__name__}:Overheard")
    trees = Overheard.trees
    assert trees["delta"].keys() - trees["control"].keys() == {n for n in trees["delta"] if "running_" in n} != set()
