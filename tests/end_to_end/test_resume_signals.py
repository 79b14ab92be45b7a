"""Runs that a signal ends, at a terminal, while Ray starts, or in a process of Ray's: each says so and can go on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.places import ROOT
from umbel import resume, run

OPTIONS = (
    *("model.name=cnn", "model.sizes={width: 4, hidden: 16}", "data.num_clients=4", "data.max_train=200"),
    *("run.name=run", "evaluate.every=0", "checkpoint.every=0", "strategy.name=scaffold"),
)
UMBEL = [sys.executable, "-c", "from umbel.simulations.commands.main import main; main()"]


def until(condition: Callable[[], object], process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended too soon"
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def rounds(folder: Path) -> list[int]:
    file = folder / "progress.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    told = [json.loads(line) for line in lines if line.endswith("}")]
    return [each["round"] for each in told if each["event"] == "round"]


def start(tmp_path: Path, *options: str, **more: object) -> subprocess.Popen[bytes]:
    command = [*UMBEL, "run", "digits", *OPTIONS, *options, f"run.results={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **more)  # type: ignore[call-overload, no-any-return]


def same_bits_as_a_whole_run(folder: Path, tmp_path: Path, last: int) -> None:
    resumed = resume(folder, f"run.rounds={last}", "engine.name=inline")
    whole = run("digits", *OPTIONS, f"run.rounds={last}", f"run.results={tmp_path / 'whole'}")
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]


@pytest.mark.slow
def test_the_end_of_the_terminal_is_a_stop(tmp_path: Path) -> None:
    """A process of its own, at a terminal of its own, which takes seconds to load. Nobody reads what it says then."""
    ours, theirs = pty.openpty()

    def take_the_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = start(
        tmp_path, "run.rounds=400", stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=take_the_terminal,
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)

    def read() -> int:
        with contextlib.suppress(OSError):  # nothing to read yet, or nobody writes any more
            os.read(ours, 1 << 16)
        return len(rounds(tmp_path / "run"))

    until(lambda: read() >= 2, process)
    os.close(ours)
    assert process.wait(timeout=60) == 130
    after = rounds(tmp_path / "run")[-1]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"round-{after:06d}"]
    same_bits_as_a_whole_run(tmp_path / "run", tmp_path, after + 1)


@pytest.mark.exhaustive
def test_under_nohup_a_run_outlives_its_terminal(tmp_path: Path) -> None:
    process = start(
        tmp_path, "run.rounds=30", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    until(lambda: rounds(tmp_path / "run"), process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=120) == 0


@pytest.mark.exhaustive
@pytest.mark.processes
@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.5, 3.0])
def test_sigterm_while_ray_starts(seconds: float, tmp_path: Path) -> None:
    """Ray's own handler would end the process with status 15 and without a word."""
    process = start(tmp_path, "run.rounds=400", "engine.name=ray", "engine.workers=1", stderr=subprocess.PIPE)
    until((tmp_path / "run" / "ray").exists, process)
    time.sleep(seconds)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said[-2000:]
    assert b"Stopped" in said and b"Traceback" not in said
    if (tmp_path / "run").exists():
        assert f"Go on with: umbel resume {tmp_path / 'run'}".encode() in said
    _, left = psutil.wait_procs(children, timeout=20)
    assert not left


@pytest.mark.exhaustive
@pytest.mark.processes
def test_a_killed_raylet_ends_the_run_with_a_word(tmp_path: Path) -> None:
    process = start(tmp_path, "run.rounds=400", "engine.name=ray", "engine.workers=1", stderr=subprocess.PIPE)
    until(lambda: len(rounds(tmp_path / "run")) > 3, process)
    children = psutil.Process(process.pid).children(recursive=True)
    (raylet,) = (child for child in children if child.name() == "raylet")
    raylet.kill()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 3, said[-2000:]
    assert b"raylet" in said and f"Go on with: umbel resume {tmp_path / 'run'}".encode() in said
    _, left = psutil.wait_procs(children, timeout=20)
    assert not left
    same_bits_as_a_whole_run(tmp_path / "run", tmp_path, rounds(tmp_path / "run")[-1] + 1)
