"""Whose server has parts that nobody trains: tables and tuning say that what it measures says little."""

from __future__ import annotations

from pathlib import Path

import pytest

from umbel.simulations.compare.carry_out import compare
from umbel.simulations.compare.tables import not_generic
from umbel.simulations.tune.carry_out import tune
from umbel.strategies import registry

SMALL = ("data.max_train=200", "client.max_steps=1", "run.rounds=1", "data.num_clients=2")
LOCAL = "umbel.strategies.local:Local"


def test_they_are_those_whose_parts_stay_with_clients_untrained() -> None:
    said = [name for name in (*registry.names(), LOCAL) if not_generic([name])]
    # FedBABU's clients all train with the head as initialised, so that the server's model is whole.
    assert sorted(said) == sorted(["fedper", "fedrep", "fedproto", "lgfedavg", LOCAL])
    # The last is of a module that is no longer there: tables of its runs can be read all the same.
    assert not not_generic(["flwr:FedMedian", "no_such_strategy", "no_such_module:Strategy"])


def test_a_table_says_it(tmp_path: Path) -> None:
    compare("digits", *SMALL, strategies="fedavg,fedper", seeds=2, output=tmp_path / "c")
    table = (tmp_path / "c" / "table.md").read_text(encoding="utf-8")
    assert "What the server measures says little of fedper: " in table
    compare("digits", *SMALL, strategies="fedavg,fedbabu", seeds=1, output=tmp_path / "d")
    assert "says little" not in (tmp_path / "d" / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("metric", "is_said"), [("validation/accuracy", True), ("clients/validation/accuracy_mean", False)]
)
def test_so_does_tuning_by_what_the_server_measures(metric: str, is_said: bool, tmp_path: Path) -> None:
    held = ("data.client_validation=0.2", "client.lr=choice:0.05,0.1")
    tune("digits", *SMALL, *held, strategies="fedavg,fedper", trials=1, metric=metric, output=tmp_path / "t")
    text = (tmp_path / "t" / "tuning.md").read_text(encoding="utf-8")
    assert ("What the server measures says little of fedper" in text) == is_said
