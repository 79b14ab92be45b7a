"""What tests of comparisons in several settings share: a tiny one, the command, and matrices of given numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from tests.helpers import compared
from umbel.conf.sweep import Setting
from umbel.simulations.commands.main import main
from umbel.simulations.compare.matrix import Cell, Failure, Matrix

TINY = """\
data: {name: digits, num_clients: 2, max_train: 60, partition: dirichlet}
model: {name: linear}
run: {rounds: 4}
client: {epochs: 1}
evaluate: {clients: 0}
compare: {strategies: [fedavg, fedprox(mu=1.0)], seeds: 1}
sweep: {data.alpha: [0.5, 5]}
"""


def umbel(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def written(folder: Path, text: str = TINY) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def events(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def hows(result: Result) -> list[str]:
    return [event["how"] for event in events(result) if event["event"] == "member"]


def hashes(matrix: Matrix) -> list[str]:
    return [each.summary["weights_sha256"] for cell in matrix.cells for each in cell.comparison.members]


def made(values: dict[str, dict[str, list[float]]], failures: dict[str, list[Failure]] | None = None) -> Matrix:
    """Make a matrix: by setting and strategy the test accuracies, one a seed."""
    cells = []
    for setting, by_label in values.items():
        given = {label: [{"test_last": each} for each in row] for label, row in by_label.items()}
        comparison = compared(given)
        for number, member in enumerate(comparison.members):
            member.__dict__["summary"] = {"weights_sha256": f"{setting}-{number}"}
        cells.append(
            Cell(Setting(setting, (f"data.alpha={setting}",)), comparison, tuple((failures or {}).get(setting, ())))
        )
    return Matrix(Path("somewhere"), tuple(cells), "digits")
