"""An experiment is checked once in a process, and what is refused is refused each time it is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers import small_run
from umbel.client.worker import Worker
from umbel.conf.check import check
from umbel.conf.errors import ExperimentError
from umbel.conf.load import as_yaml, build_strategy, load
from umbel.core.refusal import Refusal
from umbel.server.session import Session
from umbel.strategies.fedavg import FedAvg
from umbel.strategies.setting import Setting

ASKED: list[int] = []


class Asked(FedAvg):
    """Says when it is asked whether it goes with an experiment."""

    def check(self, setting: Setting) -> None:
        ASKED.append(setting.run.seed)


class Unwilling(FedAvg):
    """Goes with no experiment."""

    def check(self, setting: Setting) -> None:
        ASKED.append(setting.run.seed)
        raise Refusal("It does not go.", key="strategy.name", remedy="Take another.")


def name(kind: type) -> str:
    return f"strategy.name={kind.__module__}:{kind.__name__}"


def test_a_run_asks_its_strategy_once(tmp_path):
    from tests.conf import test_checked_once as imported

    small_run(tmp_path, name(imported.Asked), "run.seed=71", "run.rounds=1")
    assert imported.ASKED.count(71) == 1


def test_server_and_clients_of_one_process_share_the_check(tmp_path):
    from tests.conf import test_checked_once as imported

    given = load("x", [name(imported.Asked), "run.seed=72", "model.name=linear"], "{data: {name: digits}}")
    Session(given)
    again = load("x", (), as_yaml(replace(given, run=replace(given.run, results=str(tmp_path)))))
    Worker(again, tmp_path)
    assert imported.ASKED.count(72) == 1
    build_strategy(load("x", ["run.seed=73"], as_yaml(given)))
    assert imported.ASKED.count(73) == 1  # another experiment is another matter


def test_a_refusal_is_no_check_that_was_passed():
    from tests.conf import test_checked_once as imported

    for _ in range(2):
        with pytest.raises(ExperimentError, match="It does not go"):
            load("x", [name(imported.Unwilling), "run.seed=74"], "{data: {name: digits}}")
    assert imported.ASKED.count(74) == 2


def test_an_experiment_that_was_made_by_hand_is_checked_when_it_is_used(tmp_path):
    given = load("digits", ["model.name=linear"])
    wrong = replace(given, client=replace(given.client, lr=-1.0))
    for use in (check, Session, build_strategy, lambda each: Worker(each, tmp_path)):
        with pytest.raises(ExperimentError, match=r"client\.lr should be at least 0, found -1\.0"):
            use(wrong)


def test_a_fault_of_our_own_is_no_refusal(monkeypatch):
    """A `ValueError` that nobody raised for the user ends as a fault: it would name no key, and no remedy."""
    monkeypatch.setattr(FedAvg, "check", lambda self, setting: int("many"))
    with pytest.raises(ValueError, match="invalid literal") as caught:
        load("x", ["run.seed=75"], "{data: {name: digits}}")
    assert not isinstance(caught.value, Refusal)
