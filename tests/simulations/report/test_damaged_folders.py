"""What reads a run's folder refuses a damaged piece in one message that names it and says what to do."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.damages import cut, empty, flip, foreign, lose, replaced
from tests.helpers import SMALL, small_run
from tests.simulations.commands.command_line import umbel
from umbel.core.files import read_sealed, write_json
from umbel.server.lock import exclusive
from umbel.simulations.compare.carry_out import compare

TINY = (*SMALL, "data.max_train=60", "evaluate.clients=-1", "checkpoint.every=1")
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, with a stand-in for what `umbel explain` writes, and a comparison."""
    folder = tmp_path_factory.mktemp("runs")
    small_run(folder, *TINY[len(SMALL) :], "run.name=run")
    (folder / "run" / "explain").mkdir()
    write_json(folder / "run" / "explain" / "explain.json", {"weights_sha256": "of an earlier state of the run"})
    compare("digits", *TINY, strategies="fedavg", seeds=1, output=folder / "comparison")
    return folder


def refused(result: Result, name: str) -> None:
    """Check that a command ended with one message about a file, and what to do."""
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line]
    assert lines[0].startswith("Error: ") and sum(line.startswith("Error: ") for line in lines) == 1
    assert f"{name} is damaged" in result.stderr and "Traceback" not in result.stderr
    assert any(word in result.stderr for word in ("umbel ", "copy", "Delete", "command that made it"))


def changed_number(file: Path) -> None:
    replaced(file, '"num_parameters": ', '"num_parameters": 1')


READ = ("summary.json", "metrics.parquet", "config.yaml")
DAMAGED = [
    *(("report", name, damage) for name in READ for damage in (cut, flip, foreign)),
    *(("report", name, cut) for name in ("explain/explain.json", "progress.jsonl", "env.json")),
    *(("report", name, lose) for name in ("metrics.parquet", "env.json")),
    ("report", "summary.json", changed_number),
    *(("explain", name, damage) for name in ("summary.json", "model.safetensors") for damage in (cut, flip, foreign)),
    *(("explain", name, cut) for name in ("config.yaml", "run.json")),
    *(("explain", name, lose) for name in ("model.safetensors", "run.json")),
    *(("resume", name, damage) for name in ("config.yaml", "run.json", "memory.json") for damage in (cut, empty)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "name", "damage"), DAMAGED, ids=lambda value: getattr(value, "__name__", str(value)).replace("/", "-")
)
def test_one_message_names_the_piece(command: str, name: str, damage: Damage, runs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(runs / "run", tmp_path / "run")
    damage(folder / name)
    more = ("--clients", "1", "--images", "1", "--probe", "4") if command == "explain" else ()
    refused(umbel(command, folder, *more), Path(name).name)


def test_explain_refuses_a_damaged_checkpoint(runs: Path, tmp_path: Path) -> None:
    """The clients' models would be made by another way."""
    folder = shutil.copytree(runs / "run", tmp_path / "run")
    flip(folder / "checkpoints" / "round-000002" / "state.safetensors")
    result = umbel("explain", folder, "--clients", "1", "--images", "1", "--probe", "4")
    assert result.exit_code == 2 and "round-000002" in result.stderr and "umbel resume" in result.stderr


@pytest.mark.parametrize("damage", [cut, flip, foreign], ids=lambda damage: damage.__name__)
def test_a_damaged_comparison(damage: Damage, runs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(runs / "comparison", tmp_path / "comparison")
    damage(folder / "comparison.json")
    refused(umbel("report", folder), "comparison.json")


@pytest.mark.parametrize("name", ["summary.json", "metrics.parquet", "env.json"])
def test_a_damaged_run_is_not_used_again(name: str, runs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(runs / "comparison", tmp_path / "comparison")
    member = next(path.parent for path in folder.glob("*/summary.json"))
    cut(member / name)
    words = ("compare", "digits", *TINY, "--strategies", "fedavg", "--seeds", "1", "--output", folder)
    refused(umbel(*words), name)
    refused(umbel("report", folder), name)


def test_a_run_that_other_code_gave_is_run_anew_and_kept(runs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(runs / "comparison", tmp_path / "comparison")
    words = ("compare", "digits", *TINY, "--strategies", "fedavg", "--seeds", "1", "--output", folder, "--json")
    member = next(path.parent for path in folder.glob("*/summary.json"))
    replaced(member / "env.json", '"umbel": "', '"umbel": "0')
    kept = umbel(*words, "--keep")
    assert kept.exit_code == 0, kept.output
    assert "began with other code" in kept.output and '"how": "reused"' in kept.output
    before = (member / "env.json").read_bytes()
    with exclusive(member):
        busy = umbel(*words)
    assert busy.exit_code == 3 and "Another process is at work" in busy.output and member.is_dir()
    other = umbel(*words)
    assert other.exit_code == 0, other.output
    assert "began with other code" in other.output and '"how": "changed"' in other.output
    assert (folder / "earlier" / f"{member.name}-1" / "env.json").read_bytes() == before
    again = umbel(*words)
    assert again.exit_code == 0 and '"how": "reused"' in again.output and "other code" not in again.output


def test_a_comparison_is_what_its_runs_say(runs: Path) -> None:
    file = runs / "comparison" / "comparison.json"
    (run,) = read_sealed(file)["runs"]
    summary = read_sealed(runs / "comparison" / run["folder"] / "summary.json")
    assert run["weights_sha256"] == summary["weights_sha256"]
    assert not re.search(r"\b(NaN|Infinity)\b", file.read_text())  # one seed has no deviation
