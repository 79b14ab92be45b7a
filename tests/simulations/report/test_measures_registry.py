"""The one table of measures: whatever is shown is described in it, and takes its words from it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers import compared
from umbel.core.metrics import matching
from umbel.simulations import commands, compare, report
from umbel.simulations.commands import display
from umbel.simulations.commands.compare import OTHERS
from umbel.simulations.compare.comparison import Comparison
from umbel.simulations.compare.tables import footnote, table
from umbel.simulations.plots import runs as plots
from umbel.simulations.report import charts, measures, pictures, progress, rows
from umbel.simulations.report import series as report_series
from umbel.simulations.report.measures import BESIDE, COLUMNS, COURSE, HEADLINES, MAIN, MEASURES, NOT_OF_TASKS, Measure

_READERS = (compare, report)
_METRIC = re.compile(
    r"(best/)?((clients?|server)/)?(test|validation|train)/[\w@/]*(accuracy|loss|rsum|recall@|acc|fwt|forgetting|domain|nc\d)"
    r"[\w@]*"
)


class Watched(dict[str, Measure]):
    """The table, and what was looked up in it."""

    def __init__(self, table: dict[str, Measure]) -> None:
        super().__init__(table)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Measure:
        self.asked.add(key)
        return super().__getitem__(key)


def everything() -> dict[str, float]:
    """A metric of every measure; families have a member."""
    names = [measure.metric.format("7") for measure in MEASURES.values() if not measure.metric.startswith("client/")]
    return {name: 0.25 for name in names if name} | {"validation/accuracy": 0.25, "test/psi/accuracy": 0.25}


def frame(metrics: dict[str, float]) -> pd.DataFrame:
    """Make two rounds of metrics that hold everything, each client's accuracies too."""
    metric_rows = []
    for name in [*metrics, "client/test/accuracy", "client/test/psi/accuracy"]:
        side, split, metric = Measure(name, "").place
        metric_rows += [(round_, side, 0, split, metric, 0.25 * round_) for round_ in (1, 2) if side != "best"]
    return pd.DataFrame(metric_rows, columns=["round", "side", "client", "split", "metric", "value"])


def comparison() -> Comparison:
    """Compare two strategies that have every measure and their frames."""
    made = compared({label: [dict.fromkeys(COLUMNS, 0.25)] * 2 for label in ("a", "b")})
    moved = {"tensors": 1, "framing": 0}
    for member in made.members:
        member.__dict__.update(metrics=frame(everything()), summary={"bytes_up": moved, "bytes_down": moved})
    return made


def tiles(metrics: dict[str, float]) -> list[tuple[str, str]]:
    costs = {"best_round": 1, "rounds": 2, "seconds": {"total": 1.0}, "num_parameters": 1}
    return rows.tiles(costs | {"metrics": metrics})


# ---- everything is in it ---------------------------------------------------------------------------------------


def test_every_key_that_is_looked_up_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Watched(MEASURES)
    for module in (report_series, rows, progress, pictures):
        monkeypatch.setattr(module, "MEASURES", whole)
    metrics = everything()
    for of_metrics in (progress.lines, progress.headline, tiles):
        assert of_metrics(metrics)
    for of_frame in (rows.class_rows, pictures.of_run):
        assert list(of_frame(frame(metrics)))
    assert list(pictures.of_comparison(comparison())) and progress.course({}) is None
    named = {*MAIN, *COURSE, *BESIDE, *NOT_OF_TASKS, *OTHERS, *(key for keys in HEADLINES for key in keys)}
    assert whole.asked >= {"acc", "domain", "class", "client", "predictor", *BESIDE, *COURSE}
    assert whole.asked | named <= MEASURES.keys()
    assert named - set(COURSE) <= COLUMNS.keys()  # what a comparison or a headline needs is a column
    assert {"test/acc", "validation/forgetting"} < set(display._OF_TASKS)


def literals(path: Path) -> Iterator[str]:
    """Yield the texts of a module, but no docstrings; what is put into an f-string is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, ast.Module)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
            yield node.value


def test_no_other_module_of_these_folders_names_a_metric_or_words_of_one() -> None:
    folders = [Path(str(package.__file__)).parent for package in _READERS]
    modules = [path for folder in folders for path in folder.glob("*.py") if path.name not in ("measures.py",)]
    modules += [Path(str(commands.__file__)).parent / name for name in ("display.py", "words.py", "compare.py")]
    assert len(modules) > 10
    words = {measure.meaning for measure in MEASURES.values()} | {measure.tile for measure in MEASURES.values()}
    words |= {measure.heading for measure in COLUMNS.values()} - {"seconds", "steps", "examples", *measures.GROUPS}
    for path in modules:
        texts = set(literals(path))
        assert not [text for text in texts if _METRIC.fullmatch(text)], path
        if path.name != "charts.py":  # where the table has some from
            assert not texts & (words - {""}), path


def test_every_measure_can_be_told_from_the_others_and_is_whole() -> None:
    metrics = [measure.metric for measure in MEASURES.values() if measure.metric]
    assert len(set(metrics)) == len(metrics)
    for field in ("column", "tile", "line"):
        names = [getattr(measure, field) for measure in MEASURES.values() if getattr(measure, field)]
        assert len(set(names)) == len(names), field
    legends = [(m.chart, m.legend, m.title if m.chart is charts.COLLAPSE else "") for m in MEASURES.values() if m.chart]
    assert len(set(legends)) == len(legends)
    for key, measure in MEASURES.items():
        assert measure.title and measure.aim in (-1, 0, 1), key
        assert bool(measure.metric) or (measure.aim == 0 and measure.column), key
        assert (
            measure.chart is None
            or measure.chart is charts.COLLAPSE
            or measure.chart.percent == bool(measure.unit.whole)
        ), key
        for text in (measure.legend, measure.line[1] if measure.line else ""):
            assert ("{}" in text) <= ("{}" in measure.metric), key
    assert {measure.chart for measure in MEASURES.values()} - {None, charts.COLLAPSE, charts.AFTER_TASKS} == set(
        charts.CURVES
    )
    assert charts.RECALLS.num_colours == charts.CLIENTS_RECALLS.num_colours == len(matching.RECALLS) // 2
    units: dict[str, measures.Unit] = {}
    for measure in MEASURES.values():  # the last part of a metric's name says its unit
        assert units.setdefault(measure.metric.rpartition("/")[2], measure.unit) == measure.unit or not measure.metric


# ---- everything takes its words from it -------------------------------------------------------------------------


def renamed(key: str) -> dict[str, Measure]:
    """The table with other words for one measure."""
    there = MEASURES[key]
    changed = replace(
        there, title="TITLE", brief="BRIEF", column="COLUMN", tile="TILE", meaning="MEANING", legend="LEGEND",
        line=(there.line[0], "NAME") if there.line else None,
    )  # fmt: skip
    return MEASURES | {key: changed}


@pytest.mark.parametrize("key", ["acc", "i2t_recall10", "clients_mean"])
def test_words_of_the_display_the_report_and_the_curves_are_those_of_the_table(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    for module in (report_series, rows, progress, pictures):
        monkeypatch.setattr(module, "MEASURES", renamed(key))
    metrics = {MEASURES[key].metric: 0.25}
    assert tiles(metrics)[0][0] == "TILE"
    assert [name for _, values in progress.lines(metrics) for name, _ in values] == ["NAME"]
    assert progress.headline(metrics).startswith("BRIEF 0.2")
    chart = MEASURES[key].chart
    assert chart is not None and list(report_series.curves(frame(metrics), chart)) == ["LEGEND"]
    drawn = pictures._strategies(comparison(), key).axes[0]
    assert drawn.get_ylabel() == "TITLE" and "TITLE, mean and" in drawn.get_title(loc="left")


def test_columns_footnotes_and_digits_of_a_comparison_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    made = comparison()
    heads, _ = table(made)
    shown = [measure for key, measure in COLUMNS.items() if key not in NOT_OF_TASKS]
    assert heads == ["strategy", *(measure.heading for measure in shown), "difference"]
    assert [measure.meaning for measure in shown if measure.meaning and measure.meaning not in footnote(made)] == []
    changed = renamed("acc")["acc"]
    monkeypatch.setitem(COLUMNS, "acc", replace(changed, unit=measures.PER_CENT))
    heads, cells = table(made)
    assert heads[1] == "COLUMN, %" and cells[0][1] == "0.25 ± 0.00"
    assert "MEANING" in footnote(made) and "of COLUMN, %, to a" in footnote(made)


@pytest.mark.parametrize("chart", charts.CURVES, ids=lambda chart: chart.title)
def test_pictures_of_a_run_have_the_titles_of_their_charts(chart: charts.Chart) -> None:
    drawn: Callable[[pd.DataFrame], Iterator[pictures.Picture]] = pictures.of_run
    figures = {what: figure for figure, what in drawn(frame(everything()))}
    axes = figures[chart.alternative].axes[0]
    assert axes.get_title(loc="left") == chart.title and axes.get_ylabel() == chart.axis
    assert plots.png(figures[chart.alternative]).startswith(b"\x89PNG")
