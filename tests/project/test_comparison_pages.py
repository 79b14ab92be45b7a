"""Pages of comparisons: their tables say what their runs say, and the parts below a person's words are made anew."""

from __future__ import annotations

import importlib
import itertools
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

from tests.places import BENCHMARKS, ROOT
from umbel.conf.load import load
from umbel.simulations.compare.comparison import read_comparison
from umbel.simulations.compare.prepare import parse_strategies
from umbel.simulations.compare.settings import wanted

PAGES = [page for page in sorted((BENCHMARKS / "results").glob("*.md")) if "\n## Runs\n" in page.read_text("utf-8")]
_RUN = re.compile(r"\| (.+) \| (\d+) \| (-?[\d.]+) \| `([0-9a-f]{16})` \|")
_CELL = re.compile(r"(-?[\d.]+) ± ([\d.]+)")


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of the first table in a text, its header first."""
    lines = itertools.dropwhile(lambda line: not line.startswith("| strategy |"), text.splitlines())
    return [line.strip("| ").split(" | ") for line in itertools.takewhile(lambda line: line.startswith("|"), lines)]


def disagreements(text: str) -> list[str]:
    """Return the strategies whose value in the table, mean and deviation, is not that of their runs."""
    tables, _, runs = text.partition("\n## Runs\n")
    values = defaultdict(list)
    for label, _, percent, _ in _RUN.findall(runs):
        values[label].append(float(percent))
    head, _, *rows = rows_of(tables.partition("## Tables\n")[2])
    judged = re.search(r"Difference: of (.+?), to ", tables)
    assert judged is not None, "a table says what its difference is of"
    column = [name.lower() for name in head].index(judged[1].lower())
    scale = 1 if "rsum" in judged[1] else 100  # a sum of recalls in per cent, or a fraction
    found = {row[0]: _CELL.match(row[column]) for row in rows}
    assert values and found.keys() >= values.keys(), "a page of a comparison has a row for each strategy that has runs"
    wrong = []
    for label, each in values.items():
        cell = found[label]
        assert cell is not None, label
        mean, deviation = scale * float(cell[1]), scale * float(cell[2])
        if abs(mean - statistics.mean(each)) > 1.01e-2 or abs(deviation - statistics.stdev(each)) > 1.01e-2:
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


@pytest.mark.slow  # twelve runs
def test_one_command_tunes_compares_and_writes_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    small = ("data.name=digits", "data.num_clients=3", "data.max_train=300", "data.max_test=50", "tune.trials=1")
    small += ("model.sizes={width: 2, hidden: 8}", "client.max_steps=1", "run.rounds=1", "evaluate.every=1")
    command = [sys.executable, BENCHMARKS / "tables.py", "parties", *small, "--seeds", "2", "--page", page]
    command += ["--results", tmp_path]
    for head in ("# parties_fashion\n\n", "# What I said\n\nIt is so.\n\n"):  # the second time nothing is run
        done = subprocess.run([str(each) for each in command], check=True, cwd=ROOT, capture_output=True, text=True)
        text = page.read_text()
        assert text.startswith(f"{head}## Tables\n") and "of before" not in text
        assert not disagreements(text)
        assert done.stdout.splitlines()[-1] == str(page)
        page.write_text("# What I said\n\nIt is so.\n\n## Tables\n\nof before\n")
    compared = read_comparison(tmp_path / "parties_fashion" / "compared")
    assert len(compared.members) == 8
    for member in compared.members:
        assert f"`{member.summary['weights_sha256'][:16]}`" in text


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tables")


def test_each_method_has_a_comparison_that_can_be_composed(tables: ModuleType) -> None:
    for method in tables.METHODS.values():
        for experiment in (method.experiment, *method.originals):
            items = parse_strategies(wanted(experiment).strategies)
            assert len(items) >= 4, experiment
            for item in items:
                own = [f"strategy.{option}" for option in item.options]
                assert load(experiment, own, strategy=item.name, swept=True).strategy.name == item.name
        if method.ablation:
            script, study = method.ablation
            module = importlib.import_module(script.removesuffix(".py"))
            assert study in module.STUDIES


def test_data_that_no_paper_has_are_refused(
    tables: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tables.py", "fot", "--original", "cifar10_paper"])
    with pytest.raises(SystemExit):
        tables.arguments()
    assert "--original of fot is one of: pmnist_paper, cifar100_paper" in capsys.readouterr().err
