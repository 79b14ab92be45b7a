"""Sequences of tasks: the schedule, what clients train on, what is measured, and FOT in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from umbel import resume, run
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core.metrics.sequences import summarise
from umbel.core.schedule import Schedule
from umbel.server.errors import StopRequested
from umbel.server.listener import Listener

SMALL = (
    "data.num_clients=3",
    "data.num_tasks=3",
    "data.rounds_per_task=2",
    "run.rounds=6",
    "evaluate.clients=2",
    "model.name=cnn",
    "model.sizes={width: 4, hidden: 16}",
    "client.lr=0.1",
)


def test_the_schedule_by_hand():
    schedule = Schedule(3, 2)
    assert [schedule.task(r) for r in range(9)] == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert [r for r in range(9) if schedule.ends_task(r)] == [2, 4, 6]
    assert [r for r in range(9) if schedule.hands_over(r)] == [2, 4]
    for plain in (Schedule(), Schedule(3, 0), Schedule(1, 5)):
        assert not plain.is_sequence and plain.task(7) == 0 and not plain.ends_task(5) and not plain.hands_over(5)


def test_what_is_measured_by_hand():
    matrix = [[0.9, 0.2, 0.1], [0.95, 0.8, 0.3], [0.5, 0.7, 0.6]]
    assert summarise([]) == {}
    assert summarise(matrix[:1]) == {"acc": 0.9}
    measures = summarise(matrix, before=[0.1, 0.1, 0.1])
    assert measures["acc"] == pytest.approx(0.6)
    assert measures["forgetting"] == pytest.approx(((0.9 - 0.5) + (0.8 - 0.7)) / 2) == -measures["bwt"]
    assert measures["max_forgetting"] == pytest.approx(((0.95 - 0.5) + (0.8 - 0.7)) / 2)
    assert measures["fwt"] == pytest.approx(((0.2 - 0.1) + (0.3 - 0.1)) / 2)
    assert "fwt" not in summarise(matrix)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.rounds_per_task=2",), "needs data.partition=split_tasks or permuted_tasks"),
        (("data.heads=per_task", "data.partition=permuted_tasks"), "needs data.partition=split_tasks"),
        (("data.partition=split_tasks", "data.rounds_per_task=9", "run.rounds=20"), "need 45"),
        (("data.heads=own",), "data.heads"),
    ],
)
def test_what_cannot_be(overrides, message):
    with pytest.raises(ExperimentError, match=message):
        load("digits", overrides)


class Stops(Listener):
    """Asks the run to stop after a round."""

    def __init__(self, after: int) -> None:
        self._after = after

    def begin(self, experiment, folder: str) -> None:
        self._folder = Path(folder)

    def round(self, round_: int, num_rounds: int, metrics, seconds: float) -> None:
        if round_ == self._after:
            (self._folder / "stop").touch()


def rows(result, metric):
    table = result.metrics
    chosen = table[(table.metric == metric) & (table.side == "server") & (table.split == "test")]
    return {int(r): float(v) for r, v in zip(chosen["round"], chosen["value"], strict=True)}


@pytest.mark.parametrize(("partition", "heads"), [("permuted_tasks", "shared"), ("split_tasks", "per_task")])
def test_fot_is_fedavg_until_the_second_task(partition, heads, tmp_path):
    options = (*SMALL, f"data.partition={partition}", f"data.heads={heads}", f"run.results={tmp_path}")
    plain = run("digits", *options, "strategy.weighting=uniform", "run.name=plain")
    off = run("digits", *options, "strategy.name=fot", "strategy.project=false", "run.name=off")
    assert off.summary["weights_sha256"] == plain.summary["weights_sha256"]
    fot = run("digits", *options, "strategy.name=fot", "run.name=fot")
    ours, theirs = rows(fot, "loss"), rows(plain, "loss")
    assert [ours[r] == theirs[r] for r in (1, 2, 3)] == [True, True, False]
    assert rows(fot, "acc").keys() == {2, 4, 6}
    everything = run("digits", *options, "strategy.name=fot", "strategy.threshold=1.0", "run.name=all")
    first = rows(everything, "task/0/accuracy")
    assert set(list(first.values())[1:]) == {first[2]}  # nothing of the first task is forgotten, to the last example


def test_a_sequence_goes_on_after_a_stop_with_the_same_bits(tmp_path):
    options = (*SMALL, "data.partition=permuted_tasks", "strategy.name=fot", "strategy.increment=0.01")
    options = (*options, "checkpoint.every=1", f"run.results={tmp_path}")
    whole = run("digits", *options, "run.name=whole")
    with pytest.raises(StopRequested):
        run("digits", *options, "run.name=part", listener=Stops(3))
    again = resume(tmp_path / "part")
    assert again.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert again.summary["metrics"] == whole.summary["metrics"]
