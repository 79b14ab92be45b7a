"""When a run ends before its last round, and whom a round draws: by examples, and without those who drop out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers import SMALL, bits, small_run
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core.refusal import Refusal
from umbel.core.schedule import parse_until
from umbel.server.errors import RunStoppedError
from umbel.server.session import Session
from umbel.simulations import api

LEARNS = ("run.rounds=8", "client.lr=0.1", "client.epochs=5", "data.server_validation=0.2")


def test_a_run_ends_when_it_has_what_it_was_for(tmp_path: Path) -> None:
    whole = small_run(tmp_path, *LEARNS, "run.name=whole")
    course = whole.metrics.query("side == 'server' and split == 'validation' and metric == 'accuracy'")
    course = course.sort_values("round").value.tolist()
    bound = course[3]
    first = next(number for number, value in enumerate(course, 1) if value >= bound)
    assert first < 8
    ended = small_run(tmp_path, *LEARNS, f"run.until=validation/accuracy>={bound}", "run.name=ended")
    assert ended.summary["rounds"] == first
    assert ended.summary["ended"] == f"Round {first} meets run.until=validation/accuracy>={bound}: the run ends."
    assert "meets run.until" in (ended.path / "progress.jsonl").read_text()
    # Until there it is the run that it would have been.
    short = small_run(tmp_path, *LEARNS, f"run.rounds={first}", "run.name=short")
    assert bits(ended) == bits(short)
    # It stays ended, unless it is asked to go on.
    again = api.resume(ended.path)
    assert again.summary["rounds"] == first and bits(again) == bits(ended)
    # Another end is another question.
    higher = max(course[:-1])
    assert higher > bound
    further = api.resume(ended.path, f"run.until=validation/accuracy>={higher}")
    assert further.summary["rounds"] == course.index(higher) + 1 and str(higher) in further.summary["ended"]
    on = api.resume(ended.path, "run.until=")
    assert on.summary["rounds"] == 8 and bits(on) == bits(whole) and not on.summary["ended"]


def test_a_run_ends_when_it_no_longer_gets_better(tmp_path: Path) -> None:
    # With a learning rate of 0 no evaluation is better than the first.
    result = small_run(tmp_path, "run.rounds=9", "client.lr=0", "data.server_validation=0.2", "run.patience=3")
    assert result.summary["rounds"] == 4 and result.summary["best_round"] == 1
    assert "No evaluation was better than that of round 1" in result.summary["ended"]


def test_a_run_that_was_stopped_counts_on(tmp_path: Path) -> None:
    overrides = ("run.rounds=9", "client.lr=0", "data.server_validation=0.2", "run.patience=5", "checkpoint.every=1")
    cut = small_run(tmp_path, *overrides, "run.rounds=3", "run.name=cut")
    assert cut.summary["rounds"] == 3
    assert api.resume(cut.path, "run.rounds=9").summary["rounds"] == 6


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["run.until=accuracy"], "run.until"),
        (["run.until=validation/accuracy>0.5"], "run.until"),
        (["run.until=validation/accuracy>=nan"], "run.until"),
        (["run.until=test/accuracy>=0.5"], "run.until"),
        (["run.until=validation/accuracy>=0.5", "data.server_validation=0"], "run.until"),
        (["run.until=clients/validation/accuracy_mean>=0.5"], "run.until"),
        (["run.until=validation/accuracy>=0.5", "evaluate.every=0"], "run.until"),
        (["run.patience=2", "data.server_validation=0"], "run.patience"),
        (["evaluate.metrics=[f3]"], "evaluate.metrics"),
        (["client.lr_schedule=cosine", "client.lr_warmup=2", "run.rounds=2"], "client.lr_warmup"),
        (["client.lr_schedule=cosine", "client.lr_decay=0.9"], "client.lr_decay"),
        (["client.lr_step=10"], "client.lr_step"),
        (["client.lr_rounds=5"], "client.lr_rounds"),
        (["client.lr_schedule=step", "client.lr_step=10"], "client.lr_decay"),
        (["strategy.name=fedloge", "client.label_smoothing=0.1"], "client.label_smoothing"),
        (["strategy.name=fedloge", "client.class_weights=balanced"], "client.class_weights"),
    ],
)
def test_what_can_never_end_or_has_no_part_is_refused(tmp_path: Path, overrides: list[str], key: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        small_run(tmp_path, *overrides)
    assert refused.value.key == key
    assert not list(tmp_path.iterdir())


def test_a_metric_that_is_missing_once_is_not_met() -> None:
    until = parse_until("clients/validation/auroc_mean>=0.5")
    assert not until.is_met({"validation/loss": 0.5})
    until.check({"validation/loss": 0.5}, is_first=True)  # no client has answered
    until.check({"clients/validation/loss_mean": 0.5}, is_first=False)  # it had a value before


def test_a_metric_that_is_not_evaluated_is_named() -> None:
    assert parse_until("validation/loss<=0.5").is_met({"validation/loss": 0.5})
    assert not parse_until("validation/loss <= 0.5").is_met({"validation/loss": 0.6})
    with pytest.raises(Refusal, match=r"no 'validation/f1'") as refused:
        parse_until("validation/f1>=0.5").check({"validation/loss": 0.5, "test/f1": 1.0}, is_first=True)
    assert "validation/loss" in refused.value.remedy and "test/" not in refused.value.remedy


def session_of(*overrides: str) -> Session:
    return Session(load("digits", [*SMALL, "data.partition=quantity_skew", "data.alpha=0.5", *overrides]))


def draws(session: Session, rounds: int = 400) -> list[tuple[int, ...]]:
    (phase,) = session.strategy.every_phase()
    return [session.cohorts.of(phase, round_, {}) for round_ in range(1, rounds + 1)]


def test_clients_are_drawn_by_their_examples() -> None:
    session = session_of("run.clients_per_round=1", "run.sampling=examples")
    shares = session.data.num_train.double() / session.data.num_train.sum()
    drawn = torch.bincount(torch.tensor(draws(session)).flatten(), minlength=4) / 400
    # Four binomials of 400 draws: none is off by four deviations of .025.
    assert (drawn - shares).abs().max() < 0.1
    even = torch.bincount(torch.tensor(draws(session_of("run.clients_per_round=1"))).flatten(), minlength=4) / 400
    assert (even - 0.25).abs().max() < 0.1 < (shares - 0.25).abs().max()


def test_no_client_is_drawn_twice_in_a_round() -> None:
    for cohort in draws(session_of("run.clients_per_round=3", "run.sampling=examples"), 50):
        assert len(set(cohort)) == 3 and cohort == tuple(sorted(cohort))


def test_as_many_stay_as_a_round_needs() -> None:
    session = session_of("run.dropout=0.99", "run.min_replies=2")
    assert {4 - len(session.cohorts.dropped_out(range(4), round_)) for round_ in range(1, 101)} == {2}
    session = session_of("run.dropout=0.99", "run.min_replies=0.6")
    assert {4 - len(session.cohorts.dropped_out(range(4), round_)) for round_ in range(1, 101)} == {3}


def test_a_group_of_which_nobody_is_drawn_is_no_fault() -> None:
    session = session_of("run.clients_per_round=1", "run.sampling=examples")
    phase = replace(session.strategy.every_phase()[0], groups=(0, 1, 1, 2))
    assert {len(session.cohorts.of(phase, round_, {})) for round_ in range(1, 31)} == {1}


def test_who_drops_out_is_a_failure_of_that_round_and_the_others_go_on(tmp_path: Path) -> None:
    session = session_of("run.dropout=0.3")
    share = sum(len(session.cohorts.dropped_out(range(4), round_)) for round_ in range(1, 401)) / 1600
    assert share == pytest.approx(0.3, abs=0.05)
    result = small_run(tmp_path, "run.dropout=0.3", "run.rounds=6", "run.name=a")
    session = Session(load("digits", [*SMALL, "run.dropout=0.3", "run.rounds=6"]))
    expected = sum(len(session.cohorts.dropped_out(range(4), round_)) for round_ in range(1, 7))
    assert result.summary["num_failures"] == expected > 0
    assert "run.dropout" in (result.path / "progress.jsonl").read_text()
    assert bits(small_run(tmp_path, "run.dropout=0.3", "run.rounds=6", "run.name=b")) == bits(result)
    assert bits(small_run(tmp_path, "run.rounds=6", "run.name=c")) != bits(result)


def test_metrics_of_ones_choice_are_measured_on_server_and_clients(tmp_path: Path) -> None:
    chosen = ("evaluate.metrics=[f1, auroc]", "evaluate.clients=-1", "data.client_test=0.3")
    result = small_run(tmp_path, *chosen, "run.name=a")
    metrics = result.summary["metrics"]
    assert 0 < metrics["test/f1"] < 1 and 0 < metrics["validation/auroc"] < 1
    rows = result.metrics.query("side == 'client' and metric == 'f1' and round == 2 and split == 'test'")
    assert sorted(rows.client) == [0, 1, 2, 3]
    assert metrics["clients/test/f1_mean"] == pytest.approx(rows.value.mean())
    assert metrics["clients/test/f1_min"] == rows.value.min()
    assert bits(small_run(tmp_path, *chosen[1:], "run.name=b")) == bits(result)


def test_a_schedule_holds_for_every_strategys_training(tmp_path: Path) -> None:
    # A cosine over two rounds has half the rate in the second: as a step of a half.
    cosine = small_run(tmp_path, "client.lr_schedule=cosine", "run.name=cosine")
    step = small_run(tmp_path, "client.lr_schedule=step", "client.lr_decay=0.5", "run.name=step")
    assert bits(cosine) == bits(step) != bits(small_run(tmp_path, "run.name=plain"))


def test_labels_are_smoothed_and_classes_weighed(tmp_path: Path) -> None:
    plain = bits(small_run(tmp_path, "run.name=plain"))
    smooth = bits(small_run(tmp_path, "run.name=smooth", "client.label_smoothing=0.2"))
    weighed = bits(small_run(tmp_path, "run.name=weighed", "client.class_weights=balanced"))
    assert len({plain, smooth, weighed}) == 3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluate.metrics=[scores_of_a_test:broken]", r"Round 1: .*scores_of_a_test:broken raised.*ZeroDivisionError"),
        ("run.until=validation/f1>=0.5", r"Round 1: run\.until: the evaluation has no 'validation/f1'"),
    ],
)
def test_what_only_an_evaluation_shows_ends_the_run_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, said: str
) -> None:
    (tmp_path / "scores_of_a_test.py").write_text("def broken(logits, labels):\n    return 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RunStoppedError, match=said):
        small_run(tmp_path / "runs", override)
