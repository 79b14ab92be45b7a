"""Which pictures a report shows of a run, and of a comparison: those that it has the metrics for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from umbel.simulations.compare.comparison import Comparison, Member
from umbel.simulations.compare.verdict import verdict
from umbel.simulations.plots import metrics as metric_plots
from umbel.simulations.plots import runs as plots
from umbel.simulations.report import charts, cost_series
from umbel.simulations.report import series as report_series
from umbel.simulations.report.charts import Chart
from umbel.simulations.report.measures import BESIDE, MEASURES, Measure

Picture = tuple[Figure, str]  # and what it shows, for those who cannot see it
Courses = Callable[[Sequence[Member], Measure], Sequence[plots.Series]]


def of_run(metrics: pd.DataFrame) -> Iterator[Picture]:
    """Draw what a run measured.

    Args:
        metrics: Long and tidy.
    """
    for chart in charts.CURVES:
        if series := report_series.curves(metrics, chart):
            yield _curves(series, chart), chart.alternative
    if matrix := report_series.task_matrix(metrics):
        chart = charts.TASK_MATRIX
        yield metric_plots.task_matrix(matrix, chart.title, chart.axis), "matrix of tasks"
    after_tasks = report_series.sequence(metrics)
    if any(len(seeds[0]) > 1 for seeds in after_tasks.values()):
        figure = _curves(after_tasks, charts.AFTER_TASKS)
        yield figure, "mean accuracy, forgetting and forward transfer after each task"
    if panels := report_series.collapse(metrics):
        yield metric_plots.panels(panels, charts.COLLAPSE.title), "neural collapse by round"
    groups = report_series.last_groups(metrics)
    if len(groups) > 1:
        bars = {label: {group: [value] for group, value in one.items()} for label, one in groups.items()}
        yield _bars(bars, charts.LAST_GROUPS), "accuracy of class groups by predictor"
    if domains := report_series.last_domains(metrics):
        one = {"": {name: [value] for name, value in domains.items()}}
        yield _bars(one, charts.LAST_DOMAINS), "accuracy of each domain"
    if spread := report_series.of_clients(metrics):
        chart, title = charts.CLIENTS_BY_PREDICTOR, charts.CLIENTS_BY_PREDICTOR.title
        if set(spread) == {""}:
            chart, title = charts.CLIENTS, f"{len(spread[''])} {charts.CLIENTS.alternative}"
        values_by_label = {name or report_series.MODEL: values for name, values in spread.items()}
        yield plots.clients(values_by_label, title, chart.axis), "accuracy of each client, from the worst to the best"


def _curves(series: report_series.Lines, chart: Chart) -> Figure:
    return plots.curves(series, chart.title, chart.axis, chart.percent, chart.across, chart.num_colours)


def _bars(values: dict[str, dict[str, list[float]]], chart: Chart) -> Figure:
    return metric_plots.grouped_bars(values, chart.title, chart.axis)


# ---- a comparison --------------------------------------------------------------------------------------------


def main_curves(comparison: Comparison) -> Figure:
    """Draw what the strategies are judged by, by round."""
    return _strategies(comparison, comparison.main or "test_last")


def of_comparison(comparison: Comparison) -> Iterator[Picture]:
    """Draw a comparison's runs against each other."""
    judged = MEASURES[comparison.main or "test_last"]
    yield main_curves(comparison), f"{judged.title} of each strategy by round. {verdict(comparison)}"
    if panels := _by_cost(comparison):
        title, percent = f"{comparison.members[0].experiment.name}: {judged.title} by its cost", bool(judged.unit.whole)
        yield (
            metric_plots.by_cost(panels, title, judged.title, percent),
            f"{judged.title} of each strategy by steps, examples, operations, bytes and seconds",
        )
    if "virtual_seconds" in comparison.shown:
        yield (
            _strategies(comparison, comparison.main or "test_last", _over_time),
            f"{judged.title} of each strategy by virtual time",
        )
    for measure in BESIDE:
        if measure in comparison.shown:
            yield _strategies(comparison, measure), f"{MEASURES[measure].title} by round of each strategy"
    for chart, last in ((charts.LAST_GROUPS, _groups), (charts.LAST_DOMAINS, report_series.last_domains)):
        if values := _last(comparison, last):
            yield _bars(values, chart), f"{chart.title}, by strategy"
    pooled = {
        item.label: [v for m in comparison.of(item.label) for v in report_series.of_clients(m.metrics).get("", [])]
        for item in comparison.items
    }
    if any(pooled.values()):
        figure = plots.clients(pooled, f"{charts.CLIENTS.title}, all seeds", charts.CLIENTS.axis)
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


def _by_round(members: Sequence[Member], measure: Measure) -> Sequence[plots.Series]:
    return [report_series.course(member.metrics, measure) for member in members]


def _over_time(members: Sequence[Member], measure: Measure) -> Sequence[plots.Series]:
    """Return a measure's course by virtual time: a round is where it ends in the mean over seeds."""
    ends = [report_series.course(member.metrics, MEASURES["virtual_seconds"]) for member in members]
    return cost_series.against([report_series.course(member.metrics, measure) for member in members], ends)


def _by_cost(comparison: Comparison) -> metric_plots.ByCost:
    """Return the course of what the strategies are judged by, by each of the costs that all of them say."""
    measure = MEASURES[comparison.main or "test_last"]
    spent = {item.label: [member.costs_by_round for member in comparison.of(item.label)] for item in comparison.items}
    panels: dict[str, dict[str, Sequence[Mapping[float, float]]]] = {}
    for cost, (axis, _) in charts.COST_AXES.items():
        if all(cost in one for seeds in spent.values() for one in seeds):
            panels[axis] = {
                label: cost_series.against(_by_round(comparison.of(label), measure), [one[cost] for one in seeds])
                for label, seeds in spent.items()
            }
    return panels


_ACROSS: dict[Courses, str] = {_by_round: "round", _over_time: "virtual seconds"}


def _strategies(comparison: Comparison, key: str, courses: Courses = _by_round) -> Figure:
    """Draw a measure's course, a line for each strategy that has it."""
    measure = MEASURES[key]
    series = {item.label: courses(comparison.of(item.label), measure) for item in comparison.items}
    num = len(comparison.seeds)
    band = f", mean and standard deviation of {num} seeds" if num > 1 else f", seed {comparison.seeds[0]}"
    title = f"{comparison.members[0].experiment.name}: {measure.title}{band}"
    return plots.curves(series, title, measure.title, bool(measure.unit.whole), _ACROSS[courses])


def _groups(metrics: pd.DataFrame) -> dict[str, float]:
    return report_series.last_groups(metrics).get(report_series.MODEL, {})


def _last(
    comparison: Comparison, last: Callable[[pd.DataFrame], dict[str, float]]
) -> dict[str, dict[str, list[float]]]:
    """Return the values of the last round, one a seed, by strategy and group."""
    by_strategy: dict[str, dict[str, list[float]]] = {}
    for member in comparison.members:
        for group, value in last(member.metrics).items():
            by_strategy.setdefault(member.item.label, {}).setdefault(group, []).append(value)
    return by_strategy
