"""A run that ends before its first phase leaves no folder, or one that can be gone on with."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.helpers import SMALL
from tests.simulations.commands.command_line import umbel
from umbel.server.reading import configuration, identity, memory_place
from umbel.strategies.fedavg import FedAvg, State

MARKER = "UMBEL_TEST_MARKER"


class Fails(FedAvg):
    """A strategy of somebody's own that has a fault."""

    def initial(self, server: Any) -> State:
        raise ZeroDivisionError("a fault of mine")


class Interrupted(FedAvg):
    """Somebody presses Ctrl-C while the run is set up, once."""

    def initial(self, server: Any) -> State:
        marker = Path(os.environ[MARKER])
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGINT)
        return super().initial(server)


def start(results: Path, strategy: type[FedAvg]) -> Result:
    own = f"strategy.name={__name__}:{strategy.__name__}"
    return umbel("run", "digits", *SMALL, own, f"run.results={results}", "run.name=run", "--quiet")


def test_a_set_up_that_fails_leaves_no_folder_to_go_on_with(tmp_path: Path) -> None:
    result = start(tmp_path, Fails)
    assert result.exit_code == 1 and "a fault of mine" in result.stderr
    assert "umbel resume" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_it_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARKER, str(tmp_path / "marker"))
    folder = tmp_path / "runs" / "run"
    result = start(tmp_path / "runs", Interrupted)
    assert result.exit_code == 130 and f"umbel resume {folder}" in result.stderr
    again = start(tmp_path / "runs", Interrupted)
    assert again.exit_code == 2 and f"umbel resume {folder}" in again.stderr
    resumed = umbel("resume", folder, "--quiet")
    assert resumed.exit_code == 0, resumed.output
    assert (folder / "summary.json").is_file()


def test_a_folder_is_there_with_all_that_a_resume_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets its name last; until then nobody sees it."""
    monkeypatch.setenv(MARKER, str(tmp_path / "marker"))
    start(tmp_path / "runs", Interrupted)
    folder = tmp_path / "runs" / "run"
    assert "Interrupted" in configuration(folder)
    assert identity(folder)["id"].startswith("run-") and memory_place(folder) == "run"
    assert [path.name for path in folder.parent.iterdir()] == ["run"]
