"""Several runs at once: how many, in which order, what is said of them, and what happens when their processes end."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.places import ROOT
from umbel import load
from umbel.conf.load import as_yaml
from umbel.core.refusal import Refusal
from umbel.server.errors import DivergedError, RunFailedError, RunStoppedError, StopRequested
from umbel.server.lock import is_held
from umbel.simulations.commands.display import Display
from umbel.simulations.commands.main import main
from umbel.simulations.commands.supervision import Stopper, supervised
from umbel.simulations.commands.watcher import JsonLines, Watcher
from umbel.simulations.compare import at_once, side_by_side, worker
from umbel.simulations.compare.at_once import Course, InTurn, Job, how_many, makespan
from umbel.simulations.compare.carry_out import _All
from umbel.simulations.compare.comparison import Comparison, Item, Member
from umbel.simulations.compare.go_through import _failure
from umbel.simulations.compare.side_by_side import ElsewhereError, SideBySide

TINY = ("data.num_clients=2", "data.max_train=60", "model.name=linear", "evaluate.clients=0", "run.rounds=2")
# A process that does what the name of its run says, without torch.
STAND_IN = """
import json, os, signal, subprocess, sys, time
sys.stdin.readline()
pipe = os.fdopen(int(sys.argv[2]), "w")
def say(event, **more):
    pipe.write(json.dumps({"event": event, **more}) + "\\n"); pipe.flush()
def stopped(*_):
    say("over", end={"how": "asked"}); os._exit(0)
for line in sys.stdin:
    order = json.loads(line)
    os.dup2(os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    what = os.path.basename(order["folder"]).split("-")[0]
    say("begin", folder=order["folder"])
    say("phase", round=1, phase="train", num_clients=2)
    say("round", round=1, num_rounds=2, metrics={}, seconds=float(os.getpid()))
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exits":
        print("a word before its end", flush=True); os._exit(7)
    if what == "raises":
        pipe.close(); time.sleep(0.3); raise ValueError("an odd end")
    if what == "leaves":
        left = subprocess.Popen(["sleep", "60"], pass_fds=(int(sys.argv[2]),)); print(left.pid, flush=True)
        os._exit(7)
    if what == "talks":
        for _ in range(200):
            if os.path.exists(os.path.join(os.path.dirname(order["folder"]), "noticed")):
                break
            time.sleep(0.05); say("round", round=1, num_rounds=2, metrics={}, seconds=float(os.getpid()))
        else:
            say("over", end={"how": "diverged", "text": "nobody noticed"}); continue
    if what == "saves":
        def saved(*_):
            time.sleep(1.0); open(order["folder"] + ".saved", "w").close(); stopped()
        signal.signal(signal.SIGTERM, saved)
        open(os.path.join(os.path.dirname(order["folder"]), "noticed"), "w").close(); time.sleep(60)
    if what == "hangs":
        signal.signal(signal.SIGTERM, stopped); time.sleep(60)
    ends = {
        "diverges": {"how": "diverged", "text": "no longer finite"},
        "stops": {"how": "asked"},
        "breaks": {"how": "failed", "text": "ValueError: odd", "trace": "line 1"},
        "fills": {"how": "failed", "text": "full", "trace": "", "errno": 28, "strerror": "full", "filename": "/full"},
    }
    say("over", end=ends.get(what))
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "_PROGRAM", STAND_IN)


def jobs(folder: Path, *names: str) -> list[Job]:
    experiment = load("digits", TINY)
    made = []
    for index, name in enumerate(names, start=1):
        path = folder / f"{name}-{index}"
        run = replace(experiment.run, results=str(folder), name=path.name)
        member = Member(Item(name, "fedavg"), index, replace(experiment, run=run), path)
        made.append(Job(member, index, len(names)))
    return made


class Ends(Course):
    """Remembers how jobs ended; what is unforeseen passes, a request to stop does not."""

    def __init__(self) -> None:
        self.errors: dict[str, Exception | None] = {}
        self.begun: list[str] = []

    def begins(self, job: Job) -> None:
        self.begun.append(job.member.item.label)

    def ended(self, job: Job, error: Exception | None) -> None:
        if isinstance(error, StopRequested):
            raise error
        self.errors[job.member.item.label] = error


class Heard(Watcher):
    """Remembers by run in which process its rounds were."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: dict[int, int] = {}

    def beside(self, index: int, total: int, label: str, seed: int, how: str, setting: str = "") -> Watcher:
        heard, own = self.processes, index

        class Row(Watcher):
            def round(self, round_: int, num_rounds: int, metrics: object, seconds: float) -> None:
                heard[own] = int(seconds)

        return Row()


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.02)


# ---- how many --------------------------------------------------------------------------------------------------


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


# ---- processes -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stand_in")
def test_each_of_several_has_a_process_and_what_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    course, heard = Ends(), Heard()
    names = ("goes", "diverges", "dies", "breaks", "exits", "fills", "ends")
    with SideBySide(2, heard, keep=False) as runs:
        runs.go(jobs(tmp_path, *names), course)
    assert course.begun == list(names) and course.errors.keys() == set(names)
    assert course.errors["goes"] is None is course.errors["ends"]
    assert isinstance(course.errors["diverges"], RunStoppedError)
    killed = course.errors["dies"]
    assert isinstance(killed, RunStoppedError) and "SIGKILL" in str(killed)
    assert isinstance(course.errors["breaks"], RunFailedError) and str(course.errors["breaks"]) == "ValueError: odd"
    assert isinstance(course.errors["fills"], OSError) and course.errors["fills"].errno == 28
    # What a run printed is in a log of its own; the others left none.
    exited = course.errors["exits"]
    assert isinstance(exited, ElsewhereError) and "status 7" in str(exited)
    (log,) = (tmp_path / "logs").iterdir()
    assert log.name == "exits-5.log" and log.read_text() == "a word before its end\n" and str(log) in str(exited)
    # Two at once need no more processes than two, and one for each that died.
    assert len(heard.processes) == len(names) and len(set(heard.processes.values())) <= 4
    assert not any(map(alive, heard.processes.values())) and heard.started


@pytest.mark.usefixtures("stand_in")
def test_a_stop_of_one_or_of_all_ends_every_process_in_order(tmp_path: Path) -> None:
    heard, began = Heard(), time.monotonic()
    with pytest.raises(StopRequested), SideBySide(3, heard) as runs:
        runs.go(jobs(tmp_path / "one", "hangs", "hangs", "stops", "never"), Ends())
    assert 4 not in heard.processes and not any(map(alive, heard.processes.values()))

    class Interrupts(Ends):
        def ended(self, job: Job, error: Exception | None) -> None:
            raise KeyboardInterrupt

    heard = Heard()
    with pytest.raises(KeyboardInterrupt), SideBySide(2, heard) as runs:
        runs.go(jobs(tmp_path / "all", "hangs", "goes", "never"), Interrupts())
    assert 3 not in heard.processes and not any(map(alive, heard.processes.values()))
    assert time.monotonic() - began < 30  # nobody waited for those who sleep for a minute


@pytest.mark.usefixtures("stand_in")
def test_a_process_that_ends_by_itself_was_not_killed(tmp_path: Path) -> None:
    course = Ends()
    with SideBySide(1, Watcher()) as runs:
        runs.go(jobs(tmp_path, "raises"), course)
    error = course.errors["raises"]
    assert isinstance(error, ElsewhereError) and "status 1" in str(error) and "SIGKILL" not in str(error)
    assert "ValueError: an odd end" in (tmp_path / "logs" / "raises-1.log").read_text()


@pytest.mark.usefixtures("stand_in")
def test_a_process_whose_child_holds_its_line_is_missed_while_others_talk(tmp_path: Path) -> None:
    class Notices(Ends):
        def ended(self, job: Job, error: Exception | None) -> None:
            super().ended(job, error)
            if job.member.item.label == "leaves":
                (tmp_path / "noticed").touch()

    course = Notices()
    with SideBySide(2, Watcher()) as runs:
        runs.go(jobs(tmp_path, "leaves", "talks"), course)
    assert course.errors["talks"] is None and "status 7" in str(course.errors["leaves"])
    child = int((tmp_path / "logs" / "leaves-1.log").read_text())
    wait_until(lambda: not alive(child), 5.0)  # what it had started went with it


@pytest.mark.usefixtures("stand_in")
def test_a_stop_waits_until_runs_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_END_SECONDS", "_PATIENCE_SECONDS"):  # the first is of a process that is at no run
        monkeypatch.setattr(side_by_side, name, 0.1, raising=False)

    class Interrupts(Ends):
        def ended(self, job: Job, error: Exception | None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), SideBySide(2, Watcher()) as runs:
        runs.go(jobs(tmp_path, "saves", "talks"), Interrupts())
    assert (tmp_path / "saves-1.saved").is_file()


@pytest.mark.usefixtures("stand_in")
def test_runs_that_a_further_signal_kept_from_saving_are_named(tmp_path: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    class Interrupts(Ends):
        def ended(self, job: Job, error: Exception | None) -> None:
            runs._look = interrupted  # type: ignore[method-assign]
            raise StopRequested

    told, notices = Heard(), list[str]()
    told.notice = notices.append  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt), SideBySide(2, told) as runs:
        runs.go(jobs(tmp_path, "hangs", "goes"), Interrupts())
    assert notices == ["Ended before they had saved; their last checkpoints are kept: hangs-1."]
    assert not any(map(alive, told.processes.values()))


@pytest.mark.usefixtures("stand_in")
def test_lines_of_several_runs_are_told_apart(tmp_path: Path) -> None:
    stream = io.StringIO()
    with SideBySide(2, JsonLines(stream)) as runs:
        runs.go(jobs(tmp_path, "goes", "goes"), Course())
    lines: list[dict[str, Any]] = [json.loads(line) for line in stream.getvalue().splitlines()]
    for run in (1, 2):
        assert [each["event"] for each in lines if each["run"] == run] == ["member", "begin", "round"]


@pytest.mark.usefixtures("stand_in")
def test_runs_wait_for_the_one_whose_cost_they_may_have(tmp_path: Path) -> None:
    """Two seeds at once: of each the first strategy begins, and the other when that has ended."""
    made = [job.member for job in jobs(tmp_path, "goes", "budgeted", "goes", "budgeted")]
    pairs = [replace(member, seed=index // 2) for index, member in enumerate(made)]
    for member in pairs[::2]:
        member.__dict__["costs"] = {"steps": 12}
    asked = Comparison(tmp_path, (pairs[0].item, pairs[1].item), (0, 1), tuple(pairs), "digits", (), "steps")
    order: list[tuple[str, str, int]] = []

    class Told(_All):
        def begins(self, job: Job) -> None:
            order.append(("begins", job.member.item.label, job.member.seed))

        def ended(self, job: Job, error: Exception | None) -> None:
            super().ended(job, error)
            order.append(("ended", job.member.item.label, job.member.seed))
            job.member.path.mkdir(exist_ok=True)
            (job.member.path / "summary.json").touch()

    with SideBySide(2, Watcher()) as runs:
        runs.go([Job(member, index, 4, asked) for index, member in enumerate(pairs, start=1)], Told())
    assert order[:2] == [("begins", "goes", 0), ("begins", "goes", 1)] and len(order) == 8
    for seed in (0, 1):
        assert order.index(("begins", "budgeted", seed)) > order.index(("ended", "goes", seed))


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


# ---- what a process does ---------------------------------------------------------------------------------------


def test_a_process_says_how_its_run_ended(tmp_path: Path) -> None:
    def carried_out(*overrides: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        pipe = io.StringIO()
        experiment = load("digits", [*TINY, f"run.results={tmp_path}", *overrides])
        end = worker._carry_out({"do": "run", "experiment": as_yaml(experiment)}, pipe)
        return end, [json.loads(line) for line in pipe.getvalue().splitlines()]

    end, told = carried_out("run.name=good")
    assert end is None and {"begin", "phase", "round"} <= {each["event"] for each in told}
    assert not {"end", "costs", "stages"} & {each["event"] for each in told}
    end, told = carried_out("strategy.server_lr=1e30", "model.name=cnn")
    assert end is not None and end["how"] == "diverged"
    (tmp_path / "file").touch()
    end, _ = carried_out(f"run.results={tmp_path / 'file'}")
    assert end is not None and end.get("errno")


@pytest.mark.parametrize(
    "error",
    [
        OSError("torn"), OSError(5, "no such luck", "/there"), ValueError("odd,\nvery"), ValueError(), KeyError("a"),
        RunFailedError("gone"), Refusal("not this", key="run.rounds", remedy="Another."), DivergedError("NaN"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_run_fails_in_the_same_words_wherever_it_is(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(worker.api, "run", raises)
    (job,) = jobs(tmp_path, "a")
    end = worker._carry_out({"do": "run", "experiment": as_yaml(job.member.experiment)}, io.StringIO())
    here, there = (_failure(job.member, each) for each in (error, side_by_side._error(json.loads(json.dumps(end)))))
    assert here is not None and there is not None
    assert (here.reason, here.is_saved, bool(here.trace)) == (there.reason, there.is_saved, bool(there.trace))


def test_what_nobody_foresaw_in_another_process_is_printed_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, Stopper() as stopper, supervised(Watcher(), stopper, again="the same"):
        raise ElsewhereError("ValueError: odd", "Traceback: line 1 of it")
    said = capsys.readouterr().err
    assert left.value.code == 1 and "Traceback: line 1 of it" in said and "Error: ValueError: odd" in said


def test_what_has_ended_is_told_of_where_it_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for page in (None, tmp_path / "report.html"):
        watcher = Watcher()
        watcher.page = page
        with pytest.raises(SystemExit), Stopper() as stopper, supervised(watcher, stopper, again="the same"):
            raise KeyboardInterrupt
        assert ("What has ended so far" in capsys.readouterr().err) == (page is not None)


@pytest.fixture
def left(tmp_path: Path) -> Iterator[list[int]]:
    pids: list[int] = []
    yield pids
    for pid in filter(alive, pids):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="Elsewhere a process looks once a second whether it has a parent")
def test_a_run_ends_with_who_started_it_and_is_saved(tmp_path: Path, left: list[int]) -> None:
    """A kill -9 of the process that started it: the run stops as on request, long before its last round."""
    experiment = load("digits", [*TINY, "run.rounds=100000", "checkpoint.every=100000", f"run.results={tmp_path}"])
    experiment = replace(experiment, run=replace(experiment.run, name="r"))
    order = {"do": "run", "log": str(tmp_path / "log"), "experiment": as_yaml(experiment), "folder": ""}
    starter = f"""
import json, os, subprocess, sys, time
ours, theirs = os.pipe()
command = [sys.executable, "-c", {side_by_side._PROGRAM!r}, str(os.getpid()), str(theirs)]
process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(theirs,), start_new_session=True)
print(process.pid, flush=True)
for line in ({[str(ROOT), *sys.path]!r}, {order!r}):
    process.stdin.write(json.dumps(line).encode() + b"\\n")
process.stdin.flush()
while os.read(ours, 1 << 16):
    pass
"""
    started = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    left.append(int(started.stdout.readline()))
    progress = tmp_path / "r" / "progress.jsonl"
    wait_until(lambda: progress.is_file() and '"event": "round"' in progress.read_text())
    assert is_held(tmp_path / "r")
    started.kill()
    started.wait()
    started.stdout.close()
    wait_until(lambda: not alive(left[0]))
    assert not is_held(tmp_path / "r") and not (tmp_path / "r" / "summary.json").exists()
    saved = list((tmp_path / "r" / "checkpoints").iterdir())
    assert saved and '"how": "asked"' in progress.read_text().splitlines()[-1]
