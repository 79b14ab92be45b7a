"""What a process that carries out runs does: it says how each ended, and ends with who started it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.places import ROOT
from tests.simulations.compare.jobs import TINY, alive, jobs, wait_until
from umbel import load
from umbel.conf.load import as_yaml
from umbel.core.refusal import Refusal
from umbel.server.errors import DivergedError, RunFailedError
from umbel.server.lock import is_held
from umbel.simulations.commands.supervision import Stopper, supervised
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare import side_by_side, worker
from umbel.simulations.compare.matrix_course import failure_of
from umbel.simulations.compare.side_by_side import ElsewhereError


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
    here, there = (failure_of(job.member, each) for each in (error, side_by_side._error(json.loads(json.dumps(end)))))
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
