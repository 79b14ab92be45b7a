"""Pages of comparisons: their tables say what their runs say, and the parts below a person's words are made anew."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.places import BENCHMARKS, ROOT
from umbel.simulations.compare.carry_out import compare
from umbel.simulations.tune.carry_out import tune

PAGES = [page for page in sorted((BENCHMARKS / "results").glob("*.md")) if "\n## Runs\n" in page.read_text("utf-8")]
_RUN = re.compile(r"\| (.+) \| (\d+) \| (-?[\d.]+) \| `([0-9a-f]{16})` \|")
_ROW = re.compile(r"\| (.+?) \| (-?[\d.]+) ± ([\d.]+) \|")


def disagreements(text: str) -> list[str]:
    """Return the strategies whose row of the first table is not the mean and deviation of their runs."""
    tables, _, runs = text.partition("\n## Runs\n")
    values = defaultdict(list)
    for label, _, percent, _ in _RUN.findall(runs):
        values[label].append(float(percent) / 100)
    rows: dict[str, tuple[float, float]] = {}
    for label, mean, deviation in _ROW.findall(tables.partition("## Tables\n")[2]):
        rows.setdefault(label, (float(mean), float(deviation)))
    assert values and rows.keys() >= values.keys(), "a page of a comparison has a row for each strategy that has runs"
    wrong = []
    for label, found in values.items():
        mean, deviation = rows[label]
        if abs(mean - statistics.mean(found)) > 1.01e-4 or abs(deviation - statistics.stdev(found)) > 1.01e-4:
            wrong.append(label)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_table_and_its_runs_agree(page: Path) -> None:
    assert not disagreements(page.read_text(encoding="utf-8"))


def test_a_table_that_says_otherwise_is_found() -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    first = _RUN.search(text.partition("\n## Runs\n")[2])
    assert first is not None
    changed = first[0].replace(f"| {first[3]} |", f"| {float(first[3]) + 1:.2f} |")
    assert disagreements(text.replace(first[0], changed)) == [first[1]]


@pytest.mark.slow  # six runs
def test_a_page_is_made_of_a_comparison(tmp_path: Path) -> None:
    options = ("run.rounds=1", "data.max_train=200", "data.num_clients=2", "client.max_steps=1", "evaluate.clients=0")
    searched = "client.lr=choice:0.05,0.1"
    tune("digits", *options, searched, strategies="fedavg,fednova", trials=1, output=tmp_path / "t")
    done = compare(
        "digits", *options, strategies="fedavg,fednova", seeds=2, output=tmp_path / "c", tuned=tmp_path / "t"
    )
    page = tmp_path / "page.md"
    page.write_text("# What I said\n\nIt is so.\n\n## Tables\n\nof before\n")
    command = [sys.executable, BENCHMARKS / "comparison_page.py", tmp_path / "c", tmp_path / "t", page]
    subprocess.run([str(each) for each in command], check=True, cwd=ROOT)
    text = page.read_text()
    assert text.startswith("# What I said\n\nIt is so.\n\n## Tables\n") and "of before" not in text
    assert not disagreements(text)
    for member in done.members:
        assert f"`{member.summary['weights_sha256'][:16]}`" in text
