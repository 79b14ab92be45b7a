"""Which pictures a report shows of a run, and of a comparison: those that it has the metrics for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd
from matplotlib.figure import Figure

from umbel.core.metrics import matching
from umbel.simulations.compare.tables import Comparison
from umbel.simulations.plots import metrics as metric_plots
from umbel.simulations.plots import runs as plots
from umbel.simulations.report import series as report_series
from umbel.simulations.report.measures import MEASURES

Picture = tuple[Figure, str]  # and what it shows, for those who cannot see it

# Curves that a comparison shows beside those of its main measure.
_BESIDE = ("forgetting", "i2t_recall10", "t2i_recall10", "image_clients", "text_clients")


def of_run(metrics: pd.DataFrame) -> Iterator[Picture]:
    """Draw what a run measured.

    Args:
        metrics: Long and tidy.
    """
    yield from _curves(metrics)
    yield from _of_tasks(metrics)
    if panels := report_series.collapse(metrics):
        yield (
            metric_plots.panels(panels, "Neural collapse"),
            "neural collapse by round",
        )
    groups = report_series.last_groups(metrics)
    if len(groups) > 1:
        bars = {label: {group: [value] for group, value in one.items()} for label, one in groups.items()}
        yield (
            metric_plots.grouped_bars(bars, "Classes by frequency, last round"),
            "accuracy of class groups by predictor",
        )
    if domains := report_series.last_domains(metrics):
        one = {"": {name: [value] for name, value in domains.items()}}
        yield metric_plots.grouped_bars(one, "Test accuracy by domain, last round"), "accuracy of each domain"
    if spread := report_series.of_clients(metrics):
        title = f"{len(spread[''])} clients' accuracy" if set(spread) == {""} else "Clients' accuracy by predictor"
        figure = plots.clients({name or "model": values for name, values in spread.items()}, f"{title}, last round")
        yield figure, "accuracy of each client, from the worst to the best"


def _curves(metrics: pd.DataFrame) -> Iterator[Picture]:
    course = report_series.course
    num_recalls = len(matching.RECALLS) // 2  # one way's are solid, the other's are dashed
    sums, loss = "sum of six recalls in %, of 600", "cross-entropy in nats"
    for series, title, label, percent in (
        (course(metrics, "accuracy"), "Accuracy by round", "accuracy", True),
        (report_series.recalls(metrics), "Recall on test pairs by round", "recall", True),
        (report_series.sums_of_recalls(metrics), "Sum of recalls by round", sums, False),
        (report_series.predictors(metrics), "Accuracy of each predictor by round", "accuracy", True),
        (report_series.groups(metrics), "Test accuracy by frequency of the class", "accuracy", True),
        (report_series.recalls(metrics, "clients"), "Clients' recall on their own pairs", "recall, mean", True),
        (course(metrics, "loss"), "Loss by round", loss, False),
    ):
        if series:
            ways = num_recalls if label.startswith("recall") else len(plots.COLOURS)
            yield plots.curves(series, title, label, percent, num_colours=ways), title.lower()


def _of_tasks(metrics: pd.DataFrame) -> Iterator[Picture]:
    """Draw a sequence of tasks."""
    if tasks := report_series.tasks(metrics):
        yield plots.curves(tasks, "Test accuracy on each task by round", "accuracy"), "accuracy on each task by round"
    if matrix := report_series.task_matrix(metrics):
        yield metric_plots.task_matrix(matrix, "Accuracy on each task after each task"), "matrix of tasks"
    if any(len(seeds[0]) > 1 for seeds in report_series.sequence(metrics).values()):
        figure = plots.curves(report_series.sequence(metrics), "After each task", "", xlabel="tasks trained on")
        yield figure, "mean accuracy, forgetting and forward transfer after each task"


# ---- a comparison --------------------------------------------------------------------------------------------


def main_curves(comparison: Comparison) -> Figure:
    """Draw what the strategies are judged by, by round."""
    return _strategies(comparison, comparison.main or "test_last")


def of_comparison(comparison: Comparison) -> Iterator[Picture]:
    """Draw a comparison's runs against each other."""
    yield main_curves(comparison), "by round of each strategy, what it is judged by"
    for measure in _BESIDE:
        if measure in comparison.shown:
            yield _strategies(comparison, measure), f"{MEASURES[measure].curve or measure} by round of each strategy"
    for title, last in (
        ("Classes by frequency, last round", _groups),
        ("Test accuracy by domain, last round", report_series.last_domains),
    ):
        if values := _last(comparison, last):
            yield metric_plots.grouped_bars(values, title), f"{title}, by strategy"
    pooled = {
        item.label: [v for m in comparison.of(item.label) for v in report_series.of_clients(m.metrics).get("", [])]
        for item in comparison.items
    }
    if any(pooled.values()):
        figure = plots.clients(pooled, "Clients' accuracy, last round, all seeds")
        yield figure, "accuracy of clients by strategy"
    traffic = {
        item.label: [
            sum(sum(m.summary[key].values()) for m in comparison.of(item.label)) / 1e6 / len(comparison.seeds)
            for key in ("bytes_down", "bytes_up")
        ]
        for item in comparison.items
    }
    figure = plots.bars(traffic, ("to clients", "from clients"), "Bytes of a whole run", "MB (mean over seeds)")
    yield figure, "bytes by strategy"


def _strategies(comparison: Comparison, key: str) -> Figure:
    """Draw a measure's course, a line for each strategy that has it."""
    measure = MEASURES[key]
    scale = measure.scale or 1
    series = {
        item.label: [
            {round_: value / scale for round_, value in report_series.rows(member.metrics, *measure.place).items()}
            for member in comparison.of(item.label)
        ]
        for item in comparison.items
    }
    num = len(comparison.seeds)
    band = f", mean and standard deviation of {num} seeds" if num > 1 else f", seed {comparison.seeds[0]}"
    name = measure.curve or measure.title
    title = f"{comparison.members[0].experiment.name}: {name}{band}"
    return plots.curves(series, title, name, percent=bool(measure.scale))


def _groups(metrics: pd.DataFrame) -> dict[str, float]:
    return report_series.last_groups(metrics).get("model", {})


def _last(
    comparison: Comparison, last: Callable[[pd.DataFrame], dict[str, float]]
) -> dict[str, dict[str, list[float]]]:
    """Return the values of the last round, one a seed, by strategy and group."""
    found: dict[str, dict[str, list[float]]] = {}
    for member in comparison.members:
        for group, value in last(member.metrics).items():
            found.setdefault(member.item.label, {}).setdefault(group, []).append(value)
    return found
