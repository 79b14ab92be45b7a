"""Runs that are stopped: by a signal, by Ctrl-C, by `umbel stop`; and how they go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.places import ROOT
from tests.simulations.commands.command_line import TINY, event, start, umbel
from umbel.core.files import read_json
from umbel.core.folds import Folded
from umbel.simulations.commands.supervision import Stopper
from umbel.simulations.commands.watcher import Watcher
from umbel.strategies.base import ServerContext
from umbel.strategies.fedavg import FedAvg, State


def test_sigterm_saves_and_resume_ends_with_the_same_weights(tmp_path: Path) -> None:
    arguments = ("digits", *TINY, "run.rounds=100", "checkpoint.every=200")
    process = start("run", *arguments, f"run.results={tmp_path / 'stopped'}")
    assert event(process)["event"] == "begin"
    assert event(process)["event"] == "round"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    folder = next((tmp_path / "stopped").iterdir())
    assert f"Go on with: umbel resume {folder}" in said
    assert not (folder / "summary.json").exists()
    stopped_after = int(said.split("Stopped after round ")[1].split(".")[0])
    assert 1 <= stopped_after < 100

    rounds = f"run.rounds={stopped_after + 2}"
    resumed = umbel("resume", folder, rounds)
    assert resumed.exit_code == 0, resumed.output
    assert resumed.stdout.splitlines()[-1] == str(folder)
    whole = umbel("run", *arguments, rounds, f"run.results={tmp_path / 'whole'}")
    uninterrupted = Path(whole.stdout.splitlines()[-1])
    assert (
        read_json(folder / "summary.json")["weights_sha256"]
        == (read_json(uninterrupted / "summary.json")["weights_sha256"])
    )


class Interrupted(FedAvg):
    """FedAvg under which somebody presses Ctrl-C in the middle of round 3."""

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        if server.round == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return super().update(state, folded, server)


def test_ctrl_c_in_the_middle_of_a_round_leaves_the_last_one(tmp_path: Path) -> None:
    result = umbel(
        "run", "digits", *TINY, f"strategy.name={__name__}:Interrupted", "run.rounds=5", f"run.results={tmp_path}"
    )
    assert result.exit_code == 130, result.output
    assert f"Stopped after round 2. Go on with: umbel resume {next(tmp_path.iterdir())}" in result.stderr


def test_a_second_signal_while_saving_is_answered_and_a_late_one_too() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stopper() as stopper:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # nothing is raised into the saving
    assert signal.getsignal(signal.SIGTERM) is before
    with Stopper() as stopper:
        stopper.watcher = Watcher()
        stopper.watcher.round(5, 5, {}, 1.0)
        signal.raise_signal(signal.SIGINT)  # all rounds are done: the results are written


def test_stop_asks_a_run_to_stop(tmp_path: Path) -> None:
    process = start("run", "digits", *TINY, "run.rounds=500", f"run.results={tmp_path}")
    folder = Path(str(event(process)["folder"]))
    assert umbel("stop", folder).exit_code == 0
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "umbel resume" in said


@pytest.mark.parametrize("code", [3, 130])
def test_the_status_is_that_of_the_run_where_nobody_takes_what_it_prints(code: int) -> None:
    program = f"from umbel.simulations.commands.supervision import leave; print('a round'); leave({code})"
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=buffered, stdout=full, check=False)
    assert done.returncode == code


class Signals:
    """Sends a signal when it is deleted, where Python swallows whatever is raised."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)
        for _ in range(1000):  # the handler runs in here
            pass


def test_a_signal_that_python_swallows_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", others.append)
    with pytest.raises(KeyboardInterrupt), Stopper():
        sent = Signals()
        del sent
        time.sleep(20)
        pytest.fail("nobody was interrupted")
    assert not others and sys.unraisablehook == others.append


class Broken:
    def __del__(self) -> None:
        raise ValueError("no signal")


def test_what_else_python_swallows_goes_where_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[sys.UnraisableHookArgs] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: others.append(what.exc_type))
    with Stopper():
        broken = Broken()
        del broken
    assert others == [ValueError]
