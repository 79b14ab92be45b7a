"""A run that is killed at any moment goes on with `umbel resume` and ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.places import ROOT
from umbel import run
from umbel.simulations.engines import federate
from umbel.simulations.engines.processes import alive

pytestmark = [pytest.mark.slow, pytest.mark.processes]

OPTIONS = (
    "model.name=cnn",
    "model.sizes={width: 4, hidden: 16}",
    "data.num_clients=8",
    "data.max_train=400",
    "client.epochs=2",
    "run.rounds=12",
    "run.participation=0.75",
    "checkpoint.every=3",
    "evaluate.every=4",
)
UMBEL = [str(Path(sys.executable).parent / "umbel")]


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*UMBEL, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_round(folder: Path, round_: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the run says that a round is complete."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        progress = folder / "progress.jsonl"
        if progress.is_file():
            lines = [json.loads(line) for line in progress.read_text().splitlines() if line.endswith("}")]
            if any(line["event"] == "round" and line["round"] >= round_ for line in lines):
                return
        time.sleep(0.01)
    assert process.poll() is not None, "the run did not get there in time"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return {
        name: run("digits", *OPTIONS, f"strategy.name={name}", f"run.results={folder}").summary["weights_sha256"]
        for name in ("scaffold", "fedopt")
    }


@pytest.mark.parametrize(
    ("strategy", "seed"),
    [
        ("scaffold", 0),
        *(pytest.param(*each, marks=pytest.mark.exhaustive) for each in (("scaffold", 1), ("fedopt", 2))),
    ],
)
def test_kill_at_random_moments(strategy: str, seed: int, uninterrupted: dict[str, str], tmp_path: Path) -> None:
    """Killed twice within the run, once while resuming, each time at a moment of chance."""
    chance = random.Random(seed)
    folder = tmp_path / "run"
    options = (*OPTIONS, f"strategy.name={strategy}", f"run.results={tmp_path}", "run.name=run")
    process = start("run", "digits", *options)
    wait_for_round(folder, chance.choice([1, 4, 7]), process)
    time.sleep(chance.random() * 0.3)
    kill(process)
    process = start("resume", str(folder))
    wait_for_round(folder, chance.choice([8, 10]), process)
    time.sleep(chance.random() * 0.3)
    kill(process)
    assert start("resume", str(folder)).wait() == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["weights_sha256"] == uninterrupted[strategy]
    assert summary["rounds"] == 12


@pytest.mark.exhaustive
def test_kill_before_the_first_checkpoint(uninterrupted: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start("run", "digits", *OPTIONS, "strategy.name=scaffold", f"run.results={tmp_path}", "run.name=run")
    wait_for_round(folder, 2, process)
    kill(process)
    assert not list((folder / "checkpoints").glob("round-*"))
    assert start("resume", str(folder)).wait() == 0
    assert json.loads((folder / "summary.json").read_text())["weights_sha256"] == uninterrupted["scaffold"]


@pytest.mark.parametrize(
    "engine", ["processes", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("ray", "grpc"))]
)
def test_kill_on_other_engines(engine: str, uninterrupted: dict[str, str], tmp_path: Path) -> None:
    """Workers and nodes end with the process that started them; memory is where the resume looks for it."""
    folder = tmp_path / "run"
    options = (*OPTIONS, "strategy.name=scaffold", f"run.results={tmp_path}", "run.name=run", "engine.nodes=2")
    process = start("run", "digits", *options, f"engine.name={engine}", "engine.workers=2")
    wait_for_round(folder, 5, process)
    kill(process)
    state = folder / "federation" / federate.STATE
    if engine == "grpc":
        superlink = json.loads(state.read_text())["superlink"]
        deadline = time.monotonic() + 20
        while alive(superlink) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(superlink)
    done = subprocess.run(
        [*UMBEL, "resume", str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((folder / "summary.json").read_text())["weights_sha256"] == uninterrupted["scaffold"]


@pytest.mark.exhaustive
def test_a_run_resumes_on_another_engine(uninterrupted: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start("run", "digits", *OPTIONS, "strategy.name=scaffold", f"run.results={tmp_path}", "run.name=run")
    wait_for_round(folder, 4, process)
    kill(process)
    assert start("resume", str(folder), "engine.name=ray", "engine.workers=1").wait() == 0
    assert json.loads((folder / "summary.json").read_text())["weights_sha256"] == uninterrupted["scaffold"]
