"""What training costs is counted, and ends a run that may cost so much."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.helpers import SMALL, bits, small_run
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core.refusal import Refusal
from umbel.core.schedule import Budget, parse_budget
from umbel.core.spent import Spent, count, counted
from umbel.server.session import Session
from umbel.simulations import api


def expected(*overrides: str) -> dict[str, int]:
    """Steps and examples of all rounds in which all clients train, by the sizes of their parts."""
    experiment = load("digits", [*SMALL, *overrides])
    sizes, local = Session(experiment).data.num_train.tolist(), experiment.client
    times = local.epochs * experiment.run.rounds
    return {"steps": times * sum(math.ceil(n / local.batch_size) for n in sizes), "examples": times * sum(sizes)}


def test_a_scope_counts_what_is_not_within_another() -> None:
    count(7, 7)  # nobody asked
    with counted() as outer:
        count(1, 10)
        with pytest.raises(KeyError), counted() as inner:
            count(2, 20)
            raise KeyError
        count(3, 30)
    assert (outer, inner) == (Spent(4, 40), Spent(2, 20))


@pytest.mark.parametrize("together", ["1", "2"])
def test_steps_and_examples_of_all_clients_are_counted(tmp_path: Path, together: str) -> None:
    overrides = ("client.batch_size=16", "client.epochs=2", f"client.together={together}")
    result = small_run(tmp_path, *overrides)
    want = expected(*overrides)
    assert result.summary["spent"] == {"clients": want, "server": {"steps": 0, "examples": 0}}


def test_what_a_run_was_stopped_after_counts_on(tmp_path: Path) -> None:
    cut = small_run(tmp_path, "run.rounds=1", "checkpoint.every=1")
    assert api.resume(cut.path, "run.rounds=3").summary["spent"]["clients"] == expected("run.rounds=3")


def test_to_fine_tune_for_an_evaluation_is_no_training(tmp_path: Path) -> None:
    overrides = ("strategy.name=fedbabu", "evaluate.clients=-1", "data.client_test=0.2")
    result = small_run(tmp_path, *overrides)
    assert result.summary["spent"]["clients"] == expected("data.client_test=0.2")


def test_completed_data_are_more_examples(tmp_path: Path) -> None:
    result = small_run(tmp_path, "strategy.name=ggeur", "data.encoder=pca:8", "model.name=linear", "model.sizes={}")
    assert result.summary["spent"]["server"]["steps"] == 0
    assert result.summary["spent"]["clients"]["examples"] > expected()["examples"]


def test_the_server_counts_for_itself(tmp_path: Path) -> None:
    """Also in the process in which clients do."""

    result = small_run(tmp_path, "strategy.name=tests.server.counting:Counting")
    assert result.summary["spent"] == {"clients": expected(), "server": {"steps": 6, "examples": 80}}


def test_a_budget_that_is_spent_when_a_run_goes_on_ends_it_after_the_next_round(tmp_path: Path) -> None:
    """Which is finished and evaluated; that of the checkpoint was neither."""
    cut = small_run(tmp_path, "run.rounds=2", "run.name=cut", "evaluate.every=7", "checkpoint.every=1")
    on = api.resume(cut.path, "run.rounds=9", "run.budget=steps=1")
    assert on.summary["rounds"] == 3 and "test/accuracy" in on.summary["metrics"]
    assert api.resume(cut.path).summary["rounds"] == 3  # it has ended, and stays so


def test_a_run_ends_at_the_round_that_comes_nearest(tmp_path: Path) -> None:
    per_round = expected("run.rounds=1")["steps"]
    whole = ("run.rounds=9", "evaluate.every=7")
    for name, most, rounds in (("a", 3 * per_round, 3), ("b", 3.4 * per_round, 3), ("c", 3.6 * per_round, 4)):
        result = small_run(tmp_path, *whole, f"run.budget=steps={most}", f"run.name={name}")
        assert result.summary["rounds"] == rounds
        assert result.summary["ended"] == f"Round {rounds} comes nearest to run.budget=steps={most}: the run ends."
        assert "test/accuracy" in result.summary["metrics"]  # the last round is evaluated, whatever evaluate.every
    short = small_run(tmp_path, *whole, "run.rounds=4", "run.name=short")
    assert bits(result) == bits(short)
    on = api.resume(result.path, f"run.budget=steps={5 * per_round}")
    assert on.summary["rounds"] == 5


@pytest.mark.parametrize(("cost", "spent"), [(0, False), (700, False), (750, True), (2e9, True)])
def test_nearest_is_within_half_a_round(cost: float, spent: bool) -> None:
    # After 2 rounds of 375 bytes on average the next would end at 1125: as far above 937.5 as 750 is below.
    assert Budget("bytes", 937.5).is_spent(cost, 2) is spent


@pytest.mark.parametrize("text", ["steps", "steps=", "steps=0", "steps=-1", "steps=inf", "steps=nan", "joules=3", "=3"])
def test_other_budgets_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"run\.budget"):
        parse_budget(text)
    with pytest.raises(ExperimentError):
        small_run(tmp_path, f"run.budget={text}")
    assert not list(tmp_path.iterdir())


def test_a_budget_does_not_end_a_sequence_of_tasks() -> None:
    with pytest.raises(ExperimentError, match="last of its tasks"):
        load("fot_permuted", ["run.budget=steps=5"])
