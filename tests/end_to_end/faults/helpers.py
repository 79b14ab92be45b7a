"""What tests of faults share: a small run in a process of its own, and ways to see what it does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.places import ROOT
from umbel.server.listener import PROGRESS_FILE


def slow(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that starts Ray or a federation."""
    return pytest.mark.slow(pytest.mark.processes(test))


UMBEL = str(Path(sys.executable).parent / "umbel")
SMALL = (
    "model.name=cnn",
    "model.sizes={width: 4, hidden: 16}",
    "data.num_clients=4",
    "data.max_train=100",
    "client.epochs=1",
    "evaluate.every=0",
    "checkpoint.every=0",
)
ENDLESS = (*SMALL, "run.rounds=100000", "run.name=run")


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def events(folder: Path, kind: str) -> list[dict]:
    file = folder / PROGRESS_FILE
    lines = file.read_text().splitlines() if file.is_file() else []
    return [entry for line in lines if line.endswith("}") and (entry := json.loads(line))["event"] == kind]


def start(results: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [UMBEL, "run", "digits", *ENDLESS, f"run.results={results}", *options],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def mentioning(folder: Path) -> list[str]:
    """Command lines of living processes that work in a folder or name it."""
    commands = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if command and (str(folder) in command or str((process / "cwd").readlink()).startswith(str(folder))):
                commands.append(command)
        except OSError:
            continue
    return commands
