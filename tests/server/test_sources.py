"""A run says which code it was made with, umbel's and a user's own, so that a change of either is seen."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from tests.helpers import small_run
from umbel.conf.load import load
from umbel.core.files import read_json
from umbel.server import sources as module
from umbel.server.sources import changed, sources
from umbel.strategies import registry as strategies
from umbel.strategies.registry import module_of

STRATEGY = """
from umbel.strategies.fedavg import FedAvg


class Mine(FedAvg):
    pass
"""


VERSIONS = {"python", "torch", "numpy", "scikit-learn"}
OF_DIGITS = {"umbel", "umbel.data.sets.digits", "umbel.models.cvt", *VERSIONS}


def test_a_run_has_what_it_uses_of_umbel() -> None:
    """Of strategies, models, sets, encoders and operators those that it names, wherever; the rest is one hash."""
    moon = sources(load("digits", ["strategy.name=moon"]))
    assert set(moon) == {*OF_DIGITS, "umbel.strategies.moon"}
    prox = sources(load("digits", ["strategy.name=fedprox", "model.name=uniformer_tiny32"]))
    assert changed(moon, prox) == [
        "umbel.models.cvt", "umbel.models.uniformer", "umbel.strategies.fedprox", "umbel.strategies.moon",
    ]  # fmt: skip
    more = ["data.encoder=pca:8", "model.name=linear", "strategy.name=ggeur", "strategy.base=scaffold"]
    over = set(sources(load("digits", more)))
    assert {"umbel.strategies.ggeur", "umbel.strategies.scaffold", "umbel.models.linear"} <= over
    assert any(name.startswith("umbel.data.encoders.") for name in over)
    operated = sources(load("digits", ["model.operators={dcls: {layers: depthwise}}"]))
    assert "umbel.models.operators.dcls" in operated


def test_what_all_runs_go_through_is_one_hash_and_no_strategy_is_in_it() -> None:
    common = module._needed(module._ALWAYS)
    for name in ("core.training.loop", "core.folds", "server.rounds", "client.share", "data.partition", "models.wrap"):
        assert f"umbel.{name}" in common
    table = {module_of(name) for name in strategies.names()} - {None}
    assert len(table) > 15 and not table & common.keys()


def test_ones_own_strategy_and_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    package = tmp_path / "path" / "own_package_of_a_test"
    package.mkdir(parents=True)
    for name, text in (("__init__", ""), ("method", STRATEGY), ("beside", "")):
        (package / f"{name}.py").write_text(text)
    name = f"{package.name}.method"
    result = small_run(tmp_path / "runs", f"strategy.name={name}:Mine", "run.rounds=1")
    experiment = load("config", (), (result.path / "config.yaml").read_text())
    recorded = read_json(result.path / "env.json")["sources"]
    uses = {*OF_DIGITS, "umbel.models.cnn", "umbel.strategies.fedavg"} - {"umbel.models.cvt"}  # it builds on FedAvg
    assert set(recorded) == {*uses, name}
    assert changed(recorded, sources(experiment)) == []
    (package / "beside.py").write_text("# a comment, and another place of the lines\n\n")
    assert changed(recorded, sources(experiment)) == []
    (package / "beside.py").write_text("a = 1\n")
    assert changed(recorded, sources(experiment)) == [name]
    for name in [each for each in sys.modules if each.startswith(package.name)]:
        del sys.modules[name]


def test_what_changed_is_named() -> None:
    assert changed({"umbel": "a", "own": "b"}, {"umbel": "c", "own": "b"}) == ["umbel"]
    assert changed({}, {"umbel": "c"}) == ["umbel"]  # nobody knows with what it was made
    assert changed({"umbel": "c"}, {"umbel": "c"}) == []


def test_flowers_own_strategies_go_by_its_version() -> None:
    assert "flwr" in sources(load("digits", ["strategy.name=flwr:FedMedian"]))
    assert "flwr" not in sources(load("digits"))


def test_a_module_without_a_file_has_no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, where a strategy is `__main__:Mine`."""
    made = types.ModuleType("module_of_a_notebook")
    exec(STRATEGY, vars(made))
    monkeypatch.setitem(sys.modules, made.__name__, made)
    assert set(sources(load("digits", ["strategy.name=module_of_a_notebook:Mine"]))) == OF_DIGITS
