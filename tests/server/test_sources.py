"""A run says which code it was made with, umbel's and a user's own, so that a change of either is seen."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from tests.helpers import small_run
from umbel.conf.load import load
from umbel.core.files import read_json
from umbel.server.sources import changed, sources

STRATEGY = """
from umbel.strategies.fedavg import FedAvg


class Mine(FedAvg):
    pass
"""


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
    assert set(recorded) == {"umbel", name}
    assert changed(recorded, sources(experiment)) == []
    (package / "beside.py").write_text("a = 1\n")
    assert changed(recorded, sources(experiment)) == [name]
    for module in [each for each in sys.modules if each.startswith(package.name)]:
        del sys.modules[module]


def test_what_changed_is_named() -> None:
    assert changed({"umbel": "a", "own": "b"}, {"umbel": "c", "own": "b"}) == ["umbel"]
    assert changed({}, {"umbel": "c"}) == ["umbel"]  # nobody knows with what it was made
    assert changed({"umbel": "c"}, {"umbel": "c"}) == []


def test_a_module_without_a_file_has_no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, where a strategy is `__main__:Mine`."""
    made = types.ModuleType("module_of_a_notebook")
    exec(STRATEGY, vars(made))
    monkeypatch.setitem(sys.modules, made.__name__, made)
    assert set(sources(load("digits", ["strategy.name=module_of_a_notebook:Mine"]))) == {"umbel"}
