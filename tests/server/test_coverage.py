"""Who took part: rounds that are alike are one row, and a client is lost only when it does not come back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import SMALL, Notices, small_run
from umbel.conf.load import load
from umbel.core.clients import written
from umbel.server import coverage, reading
from umbel.server.coverage import RoundCoverage, Turn
from umbel.server.errors import RunStoppedError
from umbel.server.main import execute
from umbel.server.results import new_folder
from umbel.simulations import api
from umbel.simulations.engines.inline import InlinePort
from umbel.simulations.engines.local import LocalPort

STRATEGY = "strategy.name=tests.end_to_end.faults.clients.strategy:Bad"
GOOD, AWAY = "an honest answer", ""
QUICK = ("evaluate.every=0", "checkpoint.every=0")


def test_rounds_that_are_alike_are_one_row_for_each_phase() -> None:
    rows: list[coverage.Row] = []
    for round_, failed in enumerate([(), (), (3,), (), ()], start=1):
        counted = RoundCoverage(round_)
        if round_ == 1:
            counted.count("statistics", range(4), ())
        counted.count("train", range(4), failed)
        if round_ in (2, 4):
            counted.count("evaluate", range(8), ())
        rows = counted.rows(rows)
    assert rows == [
        ("statistics", 1, 1, 4, 4),
        ("train", 1, 2, 4, 4),
        ("evaluate", 2, 2, 8, 8),
        ("train", 3, 3, 4, 3),
        ("train", 4, 5, 4, 4),
        ("evaluate", 4, 4, 8, 8),
    ]


def turns_of(course: str) -> tuple[dict[str, Turn], int]:
    """The turns of client 0 after rounds of each of which a letter says: `+` took part, `-` failed, `.` not asked."""
    turns: dict[str, Turn] = {}
    for round_, letter in enumerate(course, start=1):
        counted = RoundCoverage(round_)
        if letter != ".":
            counted.ask([0], [0] if letter == "-" else [])
        turns = counted.turns(turns)
    return turns, len(course)


@pytest.mark.parametrize(
    ("course", "is_lost"),
    [
        *[("++++", False), ("-+++", False), ("---+", False), ("+++-", False), ("....", False), ("-...", False)],
        *[("++--", True), ("----", True), ("+---", True), ("--", True), ("-", True), ("+-", False)],
        *[("++++++--", True), ("+++++++-", False), ("+-......-", True), ("..+..+-.", False), ("-.......", False)],
        ("+" * 75 + "-" * 25, True),  # none of the last quarter
        ("+" * 76 + "-" * 24, False),  # one of them
        ("+" * 60 + "-" * 30 + "." * 10, True),
    ],
)
def test_who_is_lost_for_good(course: str, is_lost: bool) -> None:
    turns, num_rounds = turns_of(course)
    assert coverage.lost(turns, num_rounds, []) == ([0] if is_lost else [])
    assert coverage.lost(turns, num_rounds, [0, 4]) == [0, 4]  # whoever no node holds
    assert coverage.never(turns) == ([0] if "-" in course and "+" not in course else [])


def test_a_client_that_fails_in_one_phase_of_a_round_did_not_take_part_in_it() -> None:
    turns: dict[str, Turn] = {}
    for round_ in (1, 2):
        counted = RoundCoverage(round_)
        counted.ask([0, 1], [])
        counted.ask([0, 1], [1])
        turns = counted.turns(turns)
    assert turns == {"0": (2, 0), "1": (0, 2)}


@pytest.mark.parametrize(
    ("kinds", "lost", "never"),
    [
        ([GOOD, AWAY, GOOD, GOOD], [], []),
        ([GOOD, GOOD, AWAY, AWAY], [1], []),
        ([AWAY] * 4, [1], [1]),
    ],
    ids=["came back", "left", "never came"],
)
def test_a_runs_summary_says_who_took_part_by_round(
    kinds: list[str], lost: list[int], never: list[int], tmp_path: Path
) -> None:
    heard = Notices()
    chosen = f"strategy.kinds={json.dumps(kinds)}"
    result = small_run(tmp_path, STRATEGY, chosen, "run.rounds=4", *QUICK, listener=heard)
    covered = result.summary["coverage"]
    assert (covered["lost"], covered["never"], covered["num_clients"]) == (lost, never, 4)
    answered = [row["answered"] for row in covered["rounds"] for _ in range(row["first_round"], row["last_round"] + 1)]
    assert answered == [4 if kind else 3 for kind in kinds]
    assert all((row["phase"], row["selected"]) == ("train", 4) for row in covered["rounds"])
    assert (result.path / "model.safetensors").is_file()
    said = [text for text in heard.texts if "lost for good" in text]
    assert said == ([result.lost] if lost else [])
    assert result.lost.startswith("Client 1 of 4 was lost for good") == bool(lost)
    assert ("in no round at all: 1" in result.lost) == bool(never)


def test_a_share_of_the_cohort_that_is_not_met_ends_the_run(tmp_path: Path) -> None:
    options = (STRATEGY, f"strategy.kinds={json.dumps([GOOD, AWAY])}", "run.rounds=2", *QUICK)
    assert small_run(tmp_path, *options, "run.min_replies=0.75").summary["rounds"] == 2
    with pytest.raises(RunStoppedError, match=r"3 of 4 clients .* 4 are needed \(run.min_replies=0.8\)"):
        small_run(tmp_path, *options, "run.min_replies=0.8")


def test_who_drops_out_by_chance_is_not_lost(tmp_path: Path) -> None:
    result = small_run(tmp_path, "run.dropout=0.7", "run.rounds=8", *QUICK)
    assert result.summary["num_failures"] > 8
    assert result.summary["coverage"]["lost"] == []


@pytest.mark.parametrize("seed", [0, 9])
def test_nor_is_who_drops_out_of_one_phase_of_several(tmp_path: Path, seed: int) -> None:
    """Of another phase of the round it was asked: who drops out is drawn within what the phase can spare."""
    ggeur = ("strategy.name=ggeur", "strategy.refresh=1", "data.encoder=pca:8", "model.name=linear", "model.sizes={}")
    course = ("run.dropout=0.7", "data.num_clients=8", "run.participation=0.25", "run.rounds=8", "evaluate.clients=0")
    result = small_run(tmp_path, *ggeur, f"run.seed={seed}", *course)
    assert result.summary["num_failures"] > 8
    assert result.summary["coverage"]["lost"] == []


def test_nor_is_who_has_nothing_of_the_current_task(tmp_path: Path) -> None:
    tasks = ("data.partition=split_tasks", "data.num_tasks=3", "data.rounds_per_task=2", "run.rounds=6")
    result = small_run(tmp_path, *tasks, "data.num_clients=60", "data.max_train=300", "evaluate.clients=0")
    assert result.summary["num_failures"] > 10
    assert result.summary["coverage"]["lost"] == []


def test_an_evaluation_that_fails_is_counted_and_takes_nobody_away(tmp_path: Path) -> None:
    result = small_run(tmp_path, STRATEGY, "strategy.evaluates=true", "evaluate.clients=-1")
    covered = result.summary["coverage"]
    assert covered["lost"] == []
    assert {(row["phase"], row["answered"]) for row in covered["rounds"]} == {("train", 4), ("evaluate", 3)}


def test_a_resume_goes_on_counting(tmp_path: Path) -> None:
    kinds = f"strategy.kinds={json.dumps([GOOD, AWAY, AWAY, GOOD])}"
    common = (STRATEGY, kinds, "evaluate.every=0")
    whole = small_run(tmp_path, *common, "run.rounds=4", "run.name=whole").summary["coverage"]
    first = small_run(tmp_path, *common, "run.rounds=3", "run.name=part")
    assert first.summary["coverage"]["lost"] == [1]
    assert api.resume(first.path).summary["coverage"] == first.summary["coverage"]  # nothing was left to do
    assert api.resume(first.path, "run.rounds=4").summary["coverage"] == whole
    assert whole["lost"] == []


class TwoNodes(LocalPort):
    """Two nodes in this process; the second leaves after some rounds, and may come back."""

    def __init__(self, config: dict[str, str], state: Path, left: range) -> None:
        self._left, self.round = left, 1
        self._nodes = {
            node: InlinePort(config, {"state-folder": str(state), "partitions": held}, lambda _: None)
            for node, held in ((1, "0-1"), (2, "2-3"))
        }

    def nodes(self) -> set[int]:
        return {1} if self.round in self._left else {1, 2}

    def say(self, question):
        return self._nodes[question.node].say(question)

    def exchange(self, tasks, deadline, on_wait=None):
        for task in tasks:
            yield from self._nodes[task.node].exchange([task], deadline)


class Rounds(Notices):
    """Tells the nodes how far the run is."""

    def __init__(self, port: TwoNodes) -> None:
        super().__init__()
        self._port = port

    def round(self, round_, num_rounds, metrics, seconds):
        self._port.round = round_ + 1


@pytest.mark.parametrize(
    ("left", "lost"),
    [(range(2, 4), []), (range(3, 9), [2, 3]), (range(5, 9), [2, 3])],
    ids=["comes back", "stays away", "leaves behind the last round"],
)
def test_the_clients_of_a_node_that_left_are_lost_unless_it_comes_back(
    left: range, lost: list[int], tmp_path: Path
) -> None:
    """The model and the summary are there all the same."""
    experiment = load("digits", [*SMALL, *QUICK, "run.rounds=4", f"run.results={tmp_path}"])
    folder = new_folder(experiment)
    port = TwoNodes(api.run_config(experiment), folder / "memory", left)
    heard = Rounds(port)
    execute(experiment, port, heard, folder)
    summary = reading.summary(folder)
    missed = len([round_ for round_ in left if round_ <= 4])
    assert summary["coverage"]["lost"] == lost
    assert summary["num_failures"] == 2 * missed
    assert [text for text in heard.texts if "lost for good" in text] == (
        [f"Clients {written(lost)} of 4 were lost for good; the model is that of the others."] if lost else []
    )
    assert reading.model(folder)
