"""Runs that lose clients for good have a model, a line that says so, and the exit status of what is incomplete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.simulations.commands.command_line import TINY, umbel
from umbel.core.files import read_json
from umbel.simulations.report.page import report

BAD = "tests.end_to_end.faults.clients.strategy:Bad"
GOOD, AWAY = "an honest answer", ""
WORDS = "Client 1 of 4 was lost for good; the model is that of the others"


def options(folder: Path, *kinds: str) -> list[str]:
    rounds = f"run.rounds={len(kinds)}"
    return [*TINY, f"strategy.name={BAD}", f"strategy.kinds={json.dumps(kinds)}", rounds, f"run.results={folder}"]


@pytest.mark.parametrize(
    ("kinds", "status"),
    [((GOOD, GOOD, AWAY, AWAY), 3), ((GOOD, AWAY, GOOD), 0)],
    ids=["lost", "came back"],
)
def test_the_status_of_a_run_says_whether_it_lost_clients(kinds: tuple[str, ...], status: int, tmp_path: Path) -> None:
    result = umbel("run", "digits", *options(tmp_path, *kinds))
    assert result.exit_code == status, result.output
    folder = Path(result.stdout.splitlines()[-1])
    assert (folder / "model.safetensors").is_file() and (folder / "summary.json").is_file()
    assert (WORDS in result.stderr) == (status == 3)
    if status == 3:
        assert f"Incomplete: {WORDS}." in result.stderr
        assert f"umbel resume {folder} run.rounds=8" in result.stderr.splitlines()[-1]
        again = umbel("resume", folder)  # has nothing to do, and says the same
        assert again.exit_code == 3 and f"Incomplete: {WORDS}." in again.stderr


def test_a_client_that_is_back_after_a_resume_is_not_lost(tmp_path: Path) -> None:
    kinds = json.dumps([GOOD, AWAY, AWAY, GOOD])
    first = umbel("run", "digits", *options(tmp_path, *[GOOD] * 3), f"strategy.kinds={kinds}")
    assert first.exit_code == 3, first.output
    assert umbel("resume", first.stdout.splitlines()[-1], "run.rounds=4").exit_code == 0


def test_a_comparison_keeps_such_a_run_and_says_so(tmp_path: Path) -> None:
    strategies = f"fedavg,{BAD}(kinds={json.dumps([GOOD, AWAY, AWAY])})"
    words = ["compare", "digits", *TINY, "run.rounds=3", "-s", strategies, "--seeds", "1", "-o", tmp_path / "c"]
    for _ in range(2):  # the second finds both runs there
        result = umbel(*words)
        assert result.exit_code == 3, result.output
        assert result.stdout.splitlines()[-1] == str(tmp_path / "c")
        assert f"seed 0: {WORDS}." in result.stderr
    assert WORDS in (tmp_path / "c" / "table.md").read_text()
    runs = read_json(tmp_path / "c" / "comparison.json")["runs"]
    assert [bool(each["lost"]) for each in runs] == [False, True]
    assert all(each["test_last"] > 0 for each in runs)


def test_a_report_says_who_answered(tmp_path: Path) -> None:
    folder = Path(umbel("run", "digits", *options(tmp_path, AWAY, AWAY)).stdout.splitlines()[-1])
    page = report([folder]).read_text()
    assert "train: 6 of 8 replies came; the fewest in round 1, 3 of 4." in page
    assert "evaluate: all 8 replies came." in page
    assert "Asked, and in no round with a good reply: 1." in page
    assert f"{WORDS} (in no round at all: 1)." in page
