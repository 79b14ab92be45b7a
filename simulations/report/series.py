"""What pictures are drawn of: series by round, and values of the last round, taken from a run's metrics.

A frame of metrics is long and tidy, with columns round, side, client, split, metric and value.
"""

from __future__ import annotations

import math

import pandas as pd

from umbel.core.metrics import GROUPS
from umbel.simulations.report import charts
from umbel.simulations.report.charts import Chart
from umbel.simulations.report.measures import MEASURES, Measure

Series = dict[int, float]  # round -> value
Lines = dict[str, list[Series]]  # label -> a series for each seed

MODEL = "model"  # the main predictor, where others stand beside it
# Families of predictors, and the same of the main predictor.
_MAIN_ONES = {"predictor": "test_last", "clients_predictor": "clients_mean"}


def rows(metrics: pd.DataFrame, side: str, split: str, metric: str) -> Series:
    """Return a metric's value by round; NaN is left out."""
    chosen = metrics[(metrics["side"] == side) & (metrics["split"] == split) & (metrics["metric"] == metric)]
    values = zip(chosen["round"], chosen["value"], strict=True)
    return {int(round_): float(value) for round_, value in values if not math.isnan(value)}


def course(metrics: pd.DataFrame, measure: Measure, split: str = "", metric: str = "") -> Series:
    """Return a measure by round, as it is drawn: shares as fractions, everything else as it is.

    Args:
        metrics: Long and tidy.
        measure: What.
        split: Another split than the measure's own.
        metric: Another metric of the same side and unit, such as one of the measure's family.
    """
    side, own_split, own_metric = measure.place
    values = rows(metrics, side, split or own_split, metric or own_metric)
    return {round_: value / (measure.unit.whole or 1) for round_, value in values.items()}


def curves(metrics: pd.DataFrame, chart: Chart) -> Lines:
    """Return the curves of a picture of a run, those that there are."""
    by_label: Lines = {}
    for key, measure in MEASURES.items():
        if measure.chart is not chart:
            continue
        if not measure.legend:
            series = {split: course(metrics, measure, split) for split in ("test", "validation")}
        elif "{}" in measure.legend:
            series = _family(metrics, key, measure)
        else:
            series = {measure.legend: course(metrics, measure)}
        by_label |= {label: [values] for label, values in series.items() if values}
    return by_label


def _family(metrics: pd.DataFrame, key: str, measure: Measure) -> dict[str, Series]:
    """Return the curves of a family, those of predictors behind that of the main one."""
    names = _members(metrics, measure)
    series = {measure.legend.format(part): course(metrics, measure, metric=name) for part, name in names.items()}
    if key in _MAIN_ONES and names:
        return {measure.legend.format(MODEL): course(metrics, MEASURES[_MAIN_ONES[key]])} | series
    return series


def _members(metrics: pd.DataFrame, measure: Measure) -> dict[str, str]:
    """Return the metrics of a family: what stands for `{}`, tasks and classes by number, and the name in the frame."""
    side, split, metric = measure.place
    start = measure.metric.removesuffix(metric)
    names = metrics[(metrics["side"] == side) & (metrics["split"] == split)]["metric"].unique()
    members = {part: name.removeprefix(start) for part, name in measure.members(start + n for n in names).items()}
    if measure in (MEASURES["task"], MEASURES["class"]):
        return {str(part): members[str(part)] for part in sorted(map(int, members))}
    return members


def last_groups(metrics: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the server's test accuracy on head, middle and tail classes in the last round, by predictor."""
    by_predictor = {}
    for name in ("", *_members(metrics, MEASURES["predictor"])):
        start = f"{name}/" if name else ""
        places = {group: start + MEASURES[group].place[2] for group in GROUPS}
        series = {group: course(metrics, MEASURES[group], metric=metric) for group, metric in places.items()}
        if any(series.values()):
            by_predictor[name or MODEL] = {group: _last(values) for group, values in series.items() if values}
    return by_predictor


def last_domains(metrics: pd.DataFrame) -> dict[str, float]:
    """Return the server's test accuracy in each domain in the last round."""
    return _last_of_family(metrics, MEASURES["domain"])


def last_classes(metrics: pd.DataFrame) -> dict[str, float]:
    """Return the server's test accuracy on each class that was tested in the last evaluated round."""
    tested = metrics[(metrics["side"] == "server") & (metrics["split"] == "test")]
    return _last_of_family(tested[tested["round"] == tested["round"].max()], MEASURES["class"])


def _last_of_family(metrics: pd.DataFrame, measure: Measure) -> dict[str, float]:
    names = _members(metrics, measure)
    series = {part: course(metrics, measure, metric=name) for part, name in names.items()}
    return {part: _last(values) for part, values in series.items() if values}


def _last(values: Series) -> float:
    return values[max(values)]


def task_matrix(metrics: pd.DataFrame) -> list[list[float]]:
    """Return R[i][t], the test accuracy on task t after training on task i; NaN where it is not known."""
    series = [seeds[0] for seeds in curves(metrics, charts.TASKS).values()]
    ends = sorted(course(metrics, MEASURES["acc"]))  # it is measured after each task
    return [[values.get(round_, math.nan) for values in series] for round_ in ends]


def sequence(metrics: pd.DataFrame) -> Lines:
    """Return what is measured after each task: mean accuracy, forgetting, forward transfer, by number of tasks."""
    ends = {round_: number for number, round_ in enumerate(sorted(course(metrics, MEASURES["acc"])), start=1)}
    by_task = {
        label: {ends[round_]: value for round_, value in seeds[0].items() if round_ in ends}
        for label, seeds in curves(metrics, charts.AFTER_TASKS).items()
    }
    return {label: [values] for label, values in by_task.items() if values}


def collapse(metrics: pd.DataFrame) -> dict[str, dict[str, Series]]:
    """Return the measures of neural collapse: for each panel a series for each label."""
    panels: dict[str, dict[str, Series]] = {}
    for measure in MEASURES.values():
        for split in ("train", "validation", "test") if measure.chart is charts.COLLAPSE else ():
            if values := course(metrics, measure, split):
                label = measure.legend if split == "train" else f"{measure.legend}, {split}"
                panels.setdefault(measure.title, {})[label] = values
    return panels


def of_clients(metrics: pd.DataFrame) -> dict[str, list[float]]:
    """Return each client's accuracy on its own test, when it was last measured, by predictor; "" is the main one."""
    side, split, metric = MEASURES["client"].place
    own = metrics[(metrics["side"] == side) & (metrics["split"] == split)]
    by_predictor = {}
    for name, own_metric in {"": metric, **_members(metrics, MEASURES["client_predictor"])}.items():
        chosen = own[own["metric"] == own_metric]
        last = chosen[chosen["round"] == chosen["round"].max()]
        if values := [float(value) for value in last["value"].dropna()]:
            by_predictor[name] = values
    return by_predictor
