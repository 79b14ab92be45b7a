"""NIID-Bench's page says what its records say; a record is what runs' folders say."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.places import BENCHMARKS
from umbel.simulations.compare.carry_out import compare

NIID = runpy.run_path(str(BENCHMARKS / "niid.py"))
RECORDED: dict[str, Any] = json.loads(NIID["RECORDS"].read_text("utf-8")) if NIID["RECORDS"].is_file() else {}


def test_the_page_is_that_of_the_records() -> None:
    assert RECORDED, "no row of NIID-Bench is on record"
    assert NIID["PAGE"].read_text(encoding="utf-8") == NIID["page"](RECORDED)


@pytest.mark.parametrize(
    ("ours", "text"),
    [
        ([0.884], "88.4 (89.0)"),
        ([0.8801], "88.0 (89.0)"),
        ([0.8799], "**88.0** (89.0)"),
        ([0.88, 0.90], "89.0 ± 1.4 (89.0)"),
        ([0.90, 0.92], "**91.0 ± 1.4** (89.0)"),
    ],
)
def test_more_than_a_point_is_bold(ours: list[float], text: str) -> None:
    assert NIID["cell"](ours, 89.0) == text


def test_what_was_not_published_stands_by_itself() -> None:
    assert NIID["cell"]([0.88], None) == "88.0" and NIID["cell"]((), None) == "–"


def test_a_row_has_what_was_run_and_dashes_for_the_rest() -> None:
    kept = {"test/accuracy": [0.5], "seeds": [0], "weights_sha256": ["ab" * 32], "minutes": [1.5], "overrides": ["a=1"]}
    kept |= {"commits": ["c" * 40], "processors": ["a processor"], "torch": ["2"]}
    page = NIID["page"]({"mnist/iid/scaffold": kept})
    assert "| mnist | IID | – (99.1) | **50.0** (99.2) | – (99.2) | – (99.0) | – |" in page
    assert "| fashion |" not in page and "Dirichlet .5" not in page
    where = "| mnist | iid | `scaffold` | seed 0: `abababababab`, 1.5 min | `a=1` | a processor, torch 2"
    assert where in page


def test_a_record_is_what_the_runs_came_to(tmp_path: Path) -> None:
    options = ("run.rounds=1", "data.max_train=200", "data.num_clients=2", "client.max_steps=1", "evaluate.clients=0")
    done = compare("digits", *options, strategies="fedavg,fednova", seeds=2, output=tmp_path / "c")
    kept = NIID["recorded"](done, "fednova", ["x=1"])
    runs = sorted(done.of("fednova"), key=lambda member: member.seed)
    summaries = [json.loads((run.path / "summary.json").read_text()) for run in runs]
    assert kept["test/accuracy"] == [each["metrics"]["test/accuracy"] for each in summaries]
    assert kept["weights_sha256"] == [each["weights_sha256"] for each in summaries]
    assert kept["seeds"] == [0, 1] and kept["overrides"] == ["x=1"]
    assert all(re.fullmatch(r"([0-9a-f]{40}\+?)?", commit) for commit in kept["commits"])


def test_another_experiment_does_not_come_into_the_table(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["niid.py", "--data", "mnist", "run.rounds=1"])
    with pytest.raises(SystemExit):
        NIID["main"]()
    assert "run.rounds=1 is not what was published" in capsys.readouterr().err
