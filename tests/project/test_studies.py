"""The runs that benchmarks keep: found again while their resolved experiment is the same, and not a moment longer."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.places import BENCHMARKS

PRESET = """
description: "one of the test"
data: {name: digits, num_clients: 2, max_train: 40, encoder: "pca:4", client_test: 0.0}
model: {name: linear}
client: {lr: LR, max_steps: 1, batch_size: 8}
run: {rounds: 1}
evaluate: {clients: 0}
checkpoint: {every: 0}
"""


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Import the script as its own folder would."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("studies")
    del sys.modules["studies"]


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    (tmp_path / "preset.yaml").write_text(PRESET.replace("LR", "0.1"))
    return tmp_path / "preset.yaml"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_is_kept_while_its_experiment_is_the_same(studies, preset, tmp_path, capsys):
    study, folder = studies.Study(str(preset), (), {"plain": ()}, {}), tmp_path / "runs"
    first = studies.measure(study, "plain", (), 0, folder)
    assert "plain, seed 0: " in capsys.readouterr().err
    (identity,) = names(folder)
    assert identity == f"{studies.hash_of(['run.seed=0', f'run.results={folder}']):016x}"

    preset.write_text(PRESET.replace("LR", "0.1").replace("of the test", "with another description"))
    stamp = (folder / identity / "summary.json").stat().st_mtime_ns
    assert studies.measure(study, "plain", (), 0, folder) == first
    assert (folder / identity / "summary.json").stat().st_mtime_ns == stamp

    preset.write_text(PRESET.replace("LR", "5.0"))
    other = studies.measure(study, "plain", (), 0, folder)
    assert other != first and "is of another experiment now: moved to" in capsys.readouterr().err
    assert len(names(folder)) == 2 and identity in names(folder)

    preset.write_text(PRESET.replace("LR", "0.1"))
    assert studies.measure(study, "plain", (), 0, folder) == first
    assert (folder / identity / "summary.json").stat().st_mtime_ns == stamp  # found again, not run again
    assert len(names(folder)) == 2


def test_a_run_of_another_commit_or_version_is_kept_with_a_word(studies, preset, tmp_path, capsys):
    study, folder = studies.Study(str(preset), (), {"plain": ()}, {}), tmp_path / "runs"
    studies.measure(study, "plain", (), 0, folder)
    (path,) = folder.glob("*/env.json")
    facts = json.loads(path.read_text())
    capsys.readouterr()
    path.write_text(json.dumps(facts | {"git_commit": "0" * 40, "versions": facts["versions"] | {"torch": "1.0"}}))
    studies.measure(study, "plain", (), 0, folder)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("plain, seed 0: kept from commit 0000000000, now ")
    assert f"torch 1.0, now {facts['versions']['torch']}" in said and "numpy" not in said


def test_the_same_environment_is_not_worth_a_word(studies):
    clean = {"git_commit": "abc", "versions": {"torch": "2", "ray": None}}
    assert studies.changed(clean, clean) == ""
    changes = clean | {"git_commit": "abc+"}
    assert "not committed" in studies.changed(changes, changes)
    assert studies.changed(clean, changes) == "commit abc, now abc+"
    assert studies.changed({"git_commit": None}, {**clean, "versions": {}}) == "commit unknown, now abc"
