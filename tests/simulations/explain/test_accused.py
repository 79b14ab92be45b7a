"""`umbel explain` accuses the client whose labels are shuffled, says by what, and accuses nobody where none are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from tests.places import ROOT
from umbel import run
from umbel.core.files import read_json
from umbel.simulations.commands.explain import verdict
from umbel.simulations.commands.main import main
from umbel.simulations.explain.look import Inside, Options, explain
from umbel.simulations.explain.pictures import with_columns
from umbel.simulations.report.page import report

TEN = ("model.name=linear", "data.partition=iid", "run.rounds=2", "evaluate.every=2", "evaluate.clients=0")
ALL = Options(clients=-1, images=1, shown=1)


def looked_at(folder: Path, *options: str) -> Inside:
    return explain(run("digits", *TEN, *options, f"run.results={folder}").path, ALL)


@pytest.fixture(scope="module")
def two_at_fault(tmp_path_factory: pytest.TempPathFactory) -> Inside:
    return looked_at(tmp_path_factory.mktemp("accused"), "data.num_shuffled=2", "run.name=two")


def test_those_at_fault_and_none_other(two_at_fault: Inside) -> None:
    summary = read_json(two_at_fault.path / "explain.json")
    assert summary["flagged"] == summary["shuffled"] and len(summary["flagged"]) == 2
    assert "labels.png" in [name for name, _ in summary["pictures"]]
    frame = pd.read_parquet(two_at_fault.path / "explain.parquet")
    for row in summary["clients"]:
        own = frame[frame["client"] == row["client"]].set_index("metric")["value"]
        assert (row["labels"] < row["bound"]) == row["flagged"] and own["client/labels"] == row["labels"]
        assert row["gain"] == pytest.approx(row["learned"] - row["expected"])
    folder = two_at_fault.path.parent
    assert "suspect, labels shuffled" in report([folder], folder / "a.html").read_text()


def test_the_command_names_them_and_the_signs(two_at_fault: Inside, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["explain", str(two_at_fault.path.parent), "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = read_json(tmp_path / "explain.json")["clients"]
    assert sum(row["flagged"] for row in rows) == 2
    for row in rows:
        said = f"Client {row['client']} is suspect: its labels go with its images by {row['labels']:.2f}"
        assert (said in result.stderr) == row["flagged"]


def test_nobody_where_none_is_at_fault(tmp_path: Path) -> None:
    rows = looked_at(tmp_path).clients
    assert len(rows) == 10 and not any(row.flagged for row in rows)
    assert verdict(rows)[0] == "No client is suspect among 10."


def test_nobody_among_four(tmp_path: Path) -> None:
    result = looked_at(tmp_path, "data.num_clients=4", "data.num_shuffled=1")
    assert not any(row.flagged for row in result.clients) and not any(
        "suspect" in line for line in verdict(result.clients)
    )
    assert any(note.startswith("No client is accused: that takes 5 clients") for note in result.notes)


def test_clients_with_one_class_are_named_and_not_judged(tmp_path: Path) -> None:
    options = ("data.partition=pathological", "data.classes_per_client=1", "data.num_shuffled=1")
    result = looked_at(tmp_path, *options)
    assert all(row.labels is None for row in result.clients)
    assert any("0, 1, 2, 3, 4, 5, 6, 7, 8, 9 are not judged" in note for note in result.notes)
    assert not any("suspect" in line for line in verdict(result.clients))


def test_a_suspect_has_a_column_in_the_picture_also_where_fewer_are_asked_for(two_at_fault: Inside) -> None:
    suspects = [row.client for row in two_at_fault.clients if row.flagged]
    others = [row.client for row in two_at_fault.clients if not row.flagged]
    shown = {number: [row.client for row in with_columns(two_at_fault.clients, number)] for number in (0, 1, 4)}
    assert shown == {0: [], 1: suspects, 4: sorted(suspects + others[:2])}


def readme_s_example(seed: int, folder: Path) -> Inside:
    """The README's own run and look, without evaluations, which change no weights, and with fewer maps."""
    lines = re.findall(r"umbel run (.*data\.num_shuffled=1.*)", (ROOT / "README.md").read_text(encoding="utf-8"))
    (words,) = [shlex.split(line, comments=True) for line in lines]
    skipped = ("evaluate.every=3", "evaluate.clients=0")
    path = run(*words, f"run.seed={seed}", *skipped, f"run.results={folder}").path
    return explain(path, Options(images=1, shown=0))


@pytest.mark.slow
@pytest.mark.exhaustive  # twenty seconds each
@pytest.mark.parametrize("seed", range(5))
def test_the_readme_s_example_finds_its_client(seed: int, tmp_path: Path) -> None:
    rows = readme_s_example(seed, tmp_path).clients
    assert [row.client for row in rows if row.flagged] == [row.client for row in rows if row.shuffled]
    assert sum(row.shuffled for row in rows) == 1 and len(rows) == 10


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("cluster")
def test_a_run_on_ray_is_looked_at_with_the_same_numbers(tmp_path: Path) -> None:
    """Scaffold keeps memory with each client, which Ray's workers wrote."""
    options = ("strategy.name=scaffold", "data.num_shuffled=1", "checkpoint.every=2")
    inline = looked_at(tmp_path, *options)
    ray = looked_at(tmp_path, *options, "engine.name=ray", "engine.workers=2")
    assert inline.clients == ray.clients and [row.flagged for row in ray.clients].count(True) == 1
