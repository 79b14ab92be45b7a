"""Several runs at once: how many, in which order, and what a terminal shows of them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.simulations.compare.jobs import TINY, Ends, jobs
from umbel import load
from umbel.core.refusal import Refusal
from umbel.server.errors import RunStoppedError
from umbel.simulations.commands.display import Display
from umbel.simulations.commands.main import main
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare import at_once
from umbel.simulations.compare.at_once import InTurn, Job, how_many, makespan
from umbel.simulations.compare.comparison import Comparison


def test_how_many_go_by_cores_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_once, "num_cpus", lambda: 8)
    members = [job.member for job in jobs(tmp_path, *"abcdefghijkl")]
    assert how_many(None, members) == how_many("", members) == how_many("1", members) == (1, "")
    assert how_many("auto", members) == (8, "") and how_many("auto", members[:3]) == (3, "")
    assert how_many(20, members)[0] == 12  # no more than there are runs
    number, said = how_many("10", members)
    assert number == 10 and "share 8 cores" in said and "--at-once 8" in said
    threads = [replace(m, experiment=replace(m.experiment, run=replace(m.experiment.run, threads=3))) for m in members]
    assert how_many("auto", threads) == (2, "")
    on_gpu = [replace(m, experiment=replace(m.experiment, client=replace(m.experiment.client, device="auto")))
              for m in members]  # fmt: skip
    monkeypatch.setattr(at_once, "_on_cpu", lambda _: False)
    number, said = how_many("auto", on_gpu)
    assert number == 1 and "one run at a time on a GPU" in said
    assert how_many(2, on_gpu) == (2, "")
    monkeypatch.setattr(at_once, "_on_cpu", lambda _: True)
    assert how_many("auto", on_gpu) == (8, "")


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5", "٣"])
def test_what_is_no_number_is_refused(tmp_path: Path, asked: str) -> None:
    with pytest.raises(Refusal, match="--at-once takes a number"):
        how_many(asked, [job.member for job in jobs(tmp_path, "a")])


@pytest.mark.parametrize("engine", ["processes", "ray", "grpc"])
def test_engines_with_processes_of_their_own_are_refused(tmp_path: Path, engine: str) -> None:
    result = CliRunner().invoke(
        main,
        ["compare", "digits", *TINY, f"engine.name={engine}", "-s", "fedavg,fedprox", "--at-once", "2",
         "-o", str(tmp_path / "c")],
    )  # fmt: skip
    assert result.exit_code == 2 and f"engine.name={engine}" in result.stderr and "--at-once 1" in result.stderr
    assert not (tmp_path / "c").exists()
    members = [job.member for job in jobs(tmp_path, "a", "b")]
    theirs = [replace(m, experiment=replace(m.experiment, engine=replace(m.experiment.engine, name=engine)))
              for m in members]  # fmt: skip
    number, said = how_many("auto", theirs)
    assert number == 1 and engine in said
    with pytest.raises(Refusal, match="seconds"):
        how_many(2, members, "seconds")


def test_time_left_is_that_of_places_that_are_taken_in_turn() -> None:
    assert makespan([3, 3, 3, 3], 1) == 12 and makespan([3, 3, 3, 3], 2) == 6 and makespan([], 3) == 0
    assert makespan([1, 1, 8], 2) == 9  # the last one begins when the first is done
    assert makespan([8, 1, 1], 2) == 8


def test_a_run_whose_cost_is_not_known_yet_is_not_begun(tmp_path: Path) -> None:
    own = [job.member for job in jobs(tmp_path, "hangs", "goes")]
    pair = [replace(member, seed=0) for member in own]
    asked = Comparison(tmp_path, tuple(m.item for m in pair), (0,), tuple(pair), "digits", (), "steps")
    first, second = (Job(member, index, 2, asked) for index, member in enumerate(pair, start=1))
    assert first.reference is None and second.reference is pair[0]
    assert first.budgeted() is pair[0]
    with pytest.raises(RunStoppedError, match="its steps are to be those of hangs-1, which has not ended"):
        second.budgeted()


def test_one_at_a_time_makes_tables_while_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(at_once, "run_member", lambda member, *_: order.append(member.item.label))

    class Told(Ends):
        def meanwhile(self) -> None:
            order.append("-")

    InTurn(Watcher()).go(jobs(tmp_path, "a", "b"), Told())
    assert order == ["-", "a", "-", "b", "-"]


def test_a_terminal_shows_every_run_under_way_until_it_ends(tmp_path: Path) -> None:
    screen = io.StringIO()
    shown = Display(Console(file=screen, width=80, force_terminal=True, color_system=None))
    experiment, rows = load("digits", TINY), {}
    for run, seed in ((3, 0), (4, 1)):
        rows[run] = shown.beside(run, 6, "fedavg", seed, "new", "data.alpha=1")
    for row in rows.values():
        row.begin(experiment, str(tmp_path))
        row.phase(1, "train", 2)
    rows[4].round(1, 2, {"test/accuracy": 0.25}, 1.0)

    def drawn() -> str:
        console = Console(file=io.StringIO(), width=80)
        with console.capture() as caught:
            console.print(shown._render())
        return caught.get()

    both = drawn()
    assert "Run 3 of 6: data.alpha=1, fedavg, seed 0" in both and "Run 4 of 6: data.alpha=1, fedavg, seed 1" in both
    assert "0.2500" in both and both.count("Round 1/2") == 2
    shown.run_failed("fedavg", 0, "no reason")  # is printed above, and ends nothing
    rows[3].close()
    assert "Run 3 of 6" not in drawn() and "Run 4 of 6" in drawn()
    rows[4].round(2, 2, {"test/accuracy": 0.5}, 2.0)
    rows[4].close()
    shown.close()
    assert "Run 4 of 6: data.alpha=1, fedavg, seed 1: test accuracy 0.5000, 0:02" in screen.getvalue()
    assert "fedavg, seed 0, failed: no reason" in screen.getvalue()
