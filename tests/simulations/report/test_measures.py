"""What people see of runs that are not judged by accuracy: retrieval, tasks, class groups, domains, predictors."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from rich.console import Console

from tests.helpers import compared
from tests.strategies.creamfl.pairs import PAIRS
from umbel import run
from umbel.conf.load import load
from umbel.simulations.commands import display
from umbel.simulations.commands.words import describe
from umbel.simulations.compare.comparison import Comparison, measures
from umbel.simulations.compare.tables import cell, difference_cell, footnote, markdown, table
from umbel.simulations.plots import metrics as metric_plots
from umbel.simulations.plots import runs as plots
from umbel.simulations.report import charts, pictures
from umbel.simulations.report import rows as report_rows
from umbel.simulations.report import series as report_series
from umbel.simulations.report.measures import MEASURES
from umbel.simulations.report.page import report
from umbel.simulations.report.progress import course, headline, lines

SEQUENCE = (
    *(
        "strategy.name=fot",
        "data.partition=split_tasks",
        "data.num_clients=2",
        "data.num_tasks=2",
        "data.max_train=200",
    ),
    *("data.rounds_per_task=1", "run.rounds=2", "evaluate.clients=0", "client.lr=0.1"),
    *("model.name=cnn", "model.sizes={width: 2, hidden: 8}"),
)
RETRIEVAL = {f"test/{way}_recall@{k}": 10.0 * k for way in ("i2t", "t2i") for k in (1, 5, 10)} | {"test/rsum": 320.0}


def frame(*rows: tuple[int, str, str, str, float]) -> pd.DataFrame:
    """Make metrics of (round, side, split, metric, value)."""
    made = pd.DataFrame(rows, columns=["round", "side", "split", "metric", "value"])
    return made.assign(client=range(len(made)))


# ---- lines of the display ------------------------------------------------------------------------------------


def test_a_line_for_each_kind_of_metric_and_none_for_what_is_not_there() -> None:
    assert lines({}) == [] and headline({}) == "" and course({}) is None
    assert lines({"test/accuracy": 0.5, "test/loss": math.nan}) == [("accuracy", [("test", "0.5000")])]
    by_line = dict(lines(RETRIEVAL | {"clients/test/image/accuracy_mean": 0.25}))
    assert by_line == {
        "recall@10": [("image→text", "100.0 %"), ("text→image", "100.0 %")],
        "rsum of 600": [("test", "320.0")],
        "clients": [("image", "0.2500")],
    }
    assert headline(RETRIEVAL) == "image→text R@10 100.0 %, text→image R@10 100.0 %, rsum 320.0"
    assert course(RETRIEVAL) == 320.0


def test_groups_domains_and_predictors_have_lines() -> None:
    by_line = dict(
        lines(
            {"test/accuracy": 0.5, "test/accuracy_head": 0.7, "test/accuracy_tail": 0.1, "test/psi/accuracy": 0.3}
            | {"test/domain/real world/accuracy": 0.6, "test/domains_mean": 0.55, "test/domains_worst": -0.0}
            | {"test/class/1/accuracy": 0.9, "test/task/0/accuracy": 0.9}
        )
    )
    assert by_line["classes"] == [("head", "0.7000"), ("tail", "0.1000")]
    assert by_line["domains"] == [("mean", "0.5500"), ("worst", "0.0000"), ("real world", "0.6000")]
    assert by_line["predictors"] == [("psi", "0.3000")]
    assert len(by_line) == 4
    many = {f"test/domain/{number}/accuracy": 0.5 for number in range(5)} | {"test/domains_mean": 0.5}
    assert dict(lines(many)) == {"domains": [("mean", "0.5000")]}


def test_the_display_keeps_what_was_measured_after_the_last_task() -> None:
    screen = io.StringIO()
    shown = display.Display(Console(file=screen, width=80, force_terminal=True, color_system=None))
    shown.begin(load("digits", [*SEQUENCE, "data.rounds_per_task=2", "run.rounds=4"]), "/results/run")
    shown.round(2, 4, {"test/accuracy": 0.5, "test/acc": 0.625, "test/forgetting": 0.125}, 1.0)
    shown.phase(3, "train", 2)
    shown.round(3, 4, {"test/accuracy": 0.25}, 2.0)
    shown.close()
    last = screen.getvalue()[-1200:]
    for text in ("2 of 2", "test 0.2500", "ACC 0.6250   forgetting 0.1250"):
        assert text in last


def test_options_that_are_long_do_not_fill_the_screen() -> None:
    said = describe(load("digits", PAIRS))
    assert said.startswith("creamfl(num_image=2, ") and "{" not in said and "…)" in said
    assert describe(load("digits", ["strategy.name=fedprox", "strategy.mu=3"])).startswith("fedprox(mu=3.0) ·")


# ---- comparisons ---------------------------------------------------------------------------------------------


def made(values: dict[str, list[dict[str, float]]]) -> Comparison:
    """Make a comparison of runs whose metrics are given, one mapping a seed."""
    moved = {"tensors": 500_000, "framing": 0}
    costs = {"rounds": 1, "seconds": {"total": 2.0}, "bytes_up": moved, "bytes_down": moved}
    return compared({label: [measures(costs | {"metrics": one}) for one in seeds] for label, seeds in values.items()})


def test_retrieval_is_compared_by_recalls_in_per_cent() -> None:
    better = {key: value + 5 for key, value in RETRIEVAL.items()}
    comparison = made({"a": [RETRIEVAL] * 6, "b": [better] * 6})
    assert comparison.main == "rsum_last"
    heads, rows = table(comparison)
    assert heads == [
        *("strategy", "image→text R@10, %", "text→image R@10, %", "rsum, last", "MB a round", "seconds", "difference")
    ]
    assert rows[0][1:4] == ["100.00 ± 0.00", "100.00 ± 0.00", "320.00 ± 0.00"]
    assert rows[1][3] == "325.00 ± 0.00 *" and rows[1][-1] == "+5.00 ± 0.00 (p=.031)"
    assert "R@10" in footnote(comparison) and "Test:" not in footnote(comparison) and "–" not in footnote(comparison)


def test_sequences_are_compared_by_their_tasks_and_less_forgetting_is_better() -> None:
    def values(acc: float, forgetting: float) -> dict[str, float]:
        return {"test/accuracy": 0.5, "best/test/accuracy": 0.5, "test/acc": acc, "test/forgetting": forgetting}

    comparison = made({"a": [values(0.5, 0.3)] * 6, "b": [values(0.6, 0.1)] * 6})
    assert comparison.shown == ("acc", "forgetting", "mb_per_round", "seconds") and comparison.main == "acc"
    assert comparison.best("acc") == comparison.best("forgetting") == "b" and comparison.best("seconds") is None
    assert cell(comparison, "b", "acc") == "0.6000 ± 0.0000 *"
    assert cell(comparison, "b", "forgetting") == "0.1000 ± 0.0000"  # only what strategies are judged by is marked
    assert difference_cell(comparison, "b") == "+0.1000 ± 0.0000 (p=.031)"


def test_groups_and_domains_are_columns_where_they_are_measured() -> None:
    values = {"test/accuracy": 0.5, "test/accuracy_head": 0.7, "test/domains_worst": 0.2}
    assert made({"a": [values]}).shown == ("test_last", "domains_worst", "head", "mb_per_round", "seconds")


def test_strategies_of_different_kinds_have_empty_cells_that_are_explained() -> None:
    comparison = made({"creamfl": [RETRIEVAL] * 2, "fedavg": [{"test/accuracy": 0.5}] * 2})
    assert comparison.main == "rsum_last"  # the reference's
    assert cell(comparison, "fedavg", "rsum_last") == difference_cell(comparison, "fedavg") == "–"
    assert comparison.best("rsum_last") is None and comparison.best("test_last") is None
    said = footnote(comparison)
    assert "not measured in all runs of creamfl: test, last." in said and "no ranking between them" in said
    assert "nan" not in markdown(comparison)


def test_what_one_seed_of_a_strategy_lacks_is_no_column() -> None:
    comparison = made({"a": [{"test/accuracy": 0.5, "clients/test/accuracy_mean": 0.1}, {"test/accuracy": 0.5}]})
    assert comparison.shown == ("test_last", "mb_per_round", "seconds")
    unmeasured = made({"a": [{}], "b": [{}]})
    assert unmeasured.main is None and unmeasured.shown == ("mb_per_round", "seconds")
    assert "difference" not in markdown(unmeasured)


def test_measures_know_where_their_course_is() -> None:
    assert MEASURES["rsum_last"].place == ("server", "test", "rsum")
    assert MEASURES["clients_mean"].place == ("clients", "test", "accuracy_mean")
    assert MEASURES["image_clients"].place == ("clients", "test", "image/accuracy_mean")


# ---- series and pictures -------------------------------------------------------------------------------------


def test_the_matrix_of_tasks_has_a_row_for_each_end_of_a_task() -> None:
    values = {1: (0.5, 0.0), 2: (0.9, 0.1), 3: (0.6, 0.7), 4: (0.4, 0.8)}
    rows = [(r, "server", "test", f"task/{t}/accuracy", v[t]) for r, v in values.items() for t in (0, 1)]
    rows += [(2, "server", "test", "acc", 0.9), (4, "server", "test", "acc", 0.6)]
    rows.append((4, "server", "test", "forgetting", 0.5))
    metrics = frame(*rows)
    assert report_series.task_matrix(metrics) == [[0.9, 0.1], [0.4, 0.8]]
    assert report_series.sequence(metrics) == {"mean accuracy (ACC)": [{1: 0.9, 2: 0.6}], "forgetting": [{2: 0.5}]}
    axes = metric_plots.task_matrix([[0.9, math.nan], [0.4, 0.8]], "title", "accuracy").axes[0]
    assert [text.get_text() for text in axes.texts] == ["90", "40", "80"]
    assert "matrix of tasks" in [what for _, what in pictures.of_run(metrics)]


def test_recalls_are_drawn_as_fractions_and_neural_collapse_in_panels() -> None:
    metrics = frame(
        (1, "server", "test", "i2t_recall@10", 40.0),
        (1, "clients", "test", "retrieval/t2i_recall@1_mean", 25.0),
        (2, "server", "train", "collapse/nc1", 3.0),
        (2, "server", "train", "collapse/psi/nc3", 1.0),
        (2, "server", "train", "collapse/nc3", math.nan),
    )
    assert report_series.curves(metrics, charts.RECALLS) == {"image→text R@10": [{1: 0.4}]}
    assert report_series.curves(metrics, charts.CLIENTS_RECALLS) == {"text→image R@1": [{1: 0.25}]}
    assert [list(lines) for lines in report_series.collapse(metrics).values()] == [["model"], ["psi"]]
    shown = [what for _, what in pictures.of_run(metrics)]
    assert shown == ["recall on test pairs by round", "clients' recall on their own pairs", "neural collapse by round"]


def test_groups_domains_and_predictors_are_found_by_their_names() -> None:
    metrics = frame(
        (1, "server", "test", "accuracy", 0.4),
        (1, "server", "test", "accuracy_head", 0.5),
        (2, "server", "test", "accuracy_head", 0.6),
        (2, "server", "test", "psi/accuracy", 0.3),
        (2, "server", "test", "psi/accuracy_head", 0.2),
        (2, "server", "test", "class/0/accuracy", 0.9),
        (2, "server", "test", "domain/real world/accuracy", 0.7),
        (2, "client", "test", "phi/accuracy", 0.8),
        (2, "clients", "test", "phi/accuracy_mean", 0.8),
    )
    assert report_series.curves(metrics, charts.GROUPS) == {"head": [{1: 0.5, 2: 0.6}]}
    assert report_series.last_groups(metrics) == {"model": {"head": 0.6}, "psi": {"head": 0.2}}
    assert report_series.last_domains(metrics) == {"real world": 0.7}
    names = list(report_series.curves(metrics, charts.PREDICTORS))
    assert names == ["test: model", "test: psi", "clients' own test: phi"]
    assert report_series.of_clients(metrics) == {"phi": [0.8]}
    heads, rows = report_rows.client_facts(report_series.of_clients(metrics))
    assert heads == ["", "phi"] and rows[:2] == [["clients", "1"], ["mean", "0.8000"]]
    assert report_rows.client_facts({}) == ([], [])


def test_bars_are_means_over_seeds() -> None:
    figure = metric_plots.grouped_bars({"a": {"x": [0.2, 0.4], "y": [0.5]}, "b": {"x": [0.1]}}, "title", "accuracy")
    heights = [bar.get_height() for bar in figure.axes[0].patches if isinstance(bar, Rectangle)]
    np.testing.assert_allclose(heights, [0.3, 0.5, 0.1, np.nan])
    assert plots.png(figure).startswith(b"\x89PNG")


def test_forgetting_below_zero_is_drawn_and_a_long_legend_stands_below() -> None:
    figure = plots.curves({"a": [{1: -0.1, 2: 0.2}]}, "title", "forgetting")
    assert figure.axes[0].get_ylim()[0] < -0.1
    many = plots.curves({str(n): [{1: 0.1 * n}] for n in range(6)}, "title", "recall", num_colours=3)
    assert [text.get_text() for text in many.legends[0].get_texts()] == ["0", "3", "1", "4", "2", "5"]
    colours = [line.get_color() for line in many.axes[0].lines]
    assert colours[:3] == colours[3:] and many.axes[0].lines[3].get_linestyle() == "--"


# ---- whole reports -------------------------------------------------------------------------------------------


def test_the_report_of_a_sequence_of_tasks(tmp_path: Path) -> None:
    folder = run("digits", *SEQUENCE, f"run.results={tmp_path}").path
    page = report([folder]).read_text()
    for text in ("mean over tasks (ACC)", "forgetting", "matrix of tasks", "accuracy on each task by round"):
        assert text in page
    assert "test accuracy, best round" not in page and "nan" not in page.split("Made from")[0].split("base64")[0]


@pytest.mark.parametrize("domains", [0, 3])
def test_the_report_of_domains_has_their_bars_only_where_there_are_domains(tmp_path: Path, domains: int) -> None:
    options = f"{{num_examples: 200, num_test: 60, num_classes: 3, image_size: 8, num_domains: {domains}}}"
    small = ("model.name=cnn", "model.sizes={width: 2, hidden: 8}", "data.num_clients=2", "run.rounds=1")
    folder = run("digits", "data.name=synthetic", f"data.options={options}", *small, f"run.results={tmp_path}").path
    page = report([folder]).read_text()
    assert ("accuracy of each domain" in page) == ("worst domain" in page) == bool(domains)
    for text in ("recall", "forgetting", "neural collapse", "head classes", "predictor"):
        assert text not in page.split("Made from")[0].replace("accuracy by predictor", "")


def test_the_report_of_retrieval(tmp_path: Path) -> None:
    folder = run("digits", *PAIRS, "run.rounds=1", "evaluate.clients=1", f"run.results={tmp_path}").path
    page = report([folder]).read_text()
    for text in ("image→text R@10", "sum of six recalls, of 600", "recall on test pairs by round"):
        assert text in page
    assert "test accuracy, last round" not in page and "Accuracy by round" not in page
