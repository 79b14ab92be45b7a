"""An inline run that ends before or after any change of files goes on to the same bits and leaves no litter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.crashes import RUNS
from tests.places import ROOT


def crashes(folder: Path, name: str, number: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.end_to_end.crashes", str(folder), name, str(number)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_twenty_moments(tmp_path: Path) -> None:
    """Ten seconds: twenty runs, each of two halves, in processes of their own."""
    answer = crashes(tmp_path, "scaffold", 20)
    assert answer["points"] > 100 and answer["tried"] == 20
    assert answer["wrong"] == {}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", RUNS)
def test_every_moment(name: str, tmp_path: Path) -> None:
    answer = crashes(tmp_path, name, 0)
    assert answer["tried"] == answer["points"] > 100
    assert answer["wrong"] == {}
