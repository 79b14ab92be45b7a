"""The command line in this process and in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from tests.places import ROOT
from umbel.simulations.commands.main import main

TINY = ("model.name=cnn", "run.rounds=2", "data.num_clients=4", "data.max_train=200", "client.epochs=1")


def umbel(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from umbel.simulations.commands.main import main; main()", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def event(process: subprocess.Popen[str]) -> dict[str, object]:
    assert process.stdout is not None
    line: dict[str, object] = json.loads(process.stdout.readline())
    return line
