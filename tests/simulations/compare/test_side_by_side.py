"""Processes that runs have beside each other: what is said of them, and what happens when one or all end."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.simulations.compare.jobs import Ends, alive, jobs, wait_until
from umbel.server.errors import RunFailedError, RunStoppedError, StopRequested
from umbel.simulations.commands.watcher import JsonLines, Watcher
from umbel.simulations.compare import side_by_side
from umbel.simulations.compare.at_once import Course, Job
from umbel.simulations.compare.carry_out import _All
from umbel.simulations.compare.comparison import Comparison
from umbel.simulations.compare.side_by_side import ElsewhereError, SideBySide

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
            job.member.path.mkdir(exist_ok=True)
            (job.member.path / "summary.json").write_text('{"metrics": {}}')
            super().ended(job, error)
            order.append(("ended", job.member.item.label, job.member.seed))

    with SideBySide(2, Watcher()) as runs:
        runs.go([Job(member, index, 4, asked) for index, member in enumerate(pairs, start=1)], Told(Watcher()))
    assert order[:2] == [("begins", "goes", 0), ("begins", "goes", 1)] and len(order) == 8
    for seed in (0, 1):
        assert order.index(("begins", "budgeted", seed)) > order.index(("ended", "goes", seed))
