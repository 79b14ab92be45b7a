"""What pictures are drawn of: series by round, and values of the last round, taken from a run's metrics.

A frame of metrics is long and tidy, with columns round, side, client, split, metric and value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import pandas as pd

from umbel.core.metrics import GROUPS
from umbel.core.metrics.matching import RECALLS

Series = dict[int, float]  # round -> value
Lines = dict[str, list[Series]]  # label -> a series for each seed

_WAYS = {"i2t": "image→text", "t2i": "text→image"}
# Metric without `collapse/` -> panel and label.
_COLLAPSE = {
    "nc1": ("NC1: within over between classes → 0", "model"),
    "nc2_angles": ("NC2: class means, deviation from a simplex → 0", "angles"),
    "nc2_lengths": ("NC2: class means, deviation from a simplex → 0", "lengths"),
    "nc3": ("NC3: classifier from the class means → 0", "model"),
    "psi/nc3": ("NC3: classifier from the class means → 0", "psi"),
    "frame/nc3": ("NC3: classifier from the class means → 0", "frame"),
    "nc4": ("NC4: agreement with the nearest mean → 1", "model"),
}


def rows(metrics: pd.DataFrame, side: str, split: str, metric: str) -> Series:
    """Return a metric's value by round; NaN is left out."""
    chosen = metrics[(metrics["side"] == side) & (metrics["split"] == split) & (metrics["metric"] == metric)]
    values = zip(chosen["round"], chosen["value"], strict=True)
    return {int(round_): float(value) for round_, value in values if not math.isnan(value)}


def _lines(found: Iterable[tuple[str, Series]]) -> Lines:
    return {label: [values] for label, values in found if values}


def course(metrics: pd.DataFrame, metric: str) -> Lines:
    """Return the curves of accuracy or loss."""
    of_clients = "accuracy_mean" if metric == "accuracy" else "loss_mean"
    found = [
        ("test", rows(metrics, "server", "test", metric)),
        ("validation", rows(metrics, "server", "validation", metric)),
        ("clients' own test, mean", rows(metrics, "clients", "test", of_clients)),
    ]
    if metric == "accuracy":
        found.append(("clients' own test, worst 10 %", rows(metrics, "clients", "test", "accuracy_worst10")))
    else:
        found.append(("clients' training", rows(metrics, "clients", "train", "loss")))
    return _lines(found)


def _predictors(metrics: pd.DataFrame, side: str, ending: str) -> list[str]:
    """Return the predictors beside the main one, such as `psi` of `psi/accuracy`."""
    names = metrics[(metrics["side"] == side) & (metrics["split"] == "test")]["metric"].unique()
    found = (re.fullmatch(f"([^/]+)/{ending}", name) for name in names)
    return [match.group(1) for match in found if match]


def predictors(metrics: pd.DataFrame) -> Lines:
    """Return the accuracy of every predictor, where there is one beside the main one."""
    kinds = (("server", "accuracy", "test"), ("clients", "accuracy_mean", "clients' own test"))
    found = []
    for side, metric, what in kinds:
        if others := _predictors(metrics, side, metric):
            found.append((f"{what}: model", rows(metrics, side, "test", metric)))
            found += [(f"{what}: {name}", rows(metrics, side, "test", f"{name}/{metric}")) for name in others]
    return _lines(found)


def recalls(metrics: pd.DataFrame, side: str = "server") -> Lines:
    """Return the six recalls on the server's test pairs, or the clients' means on theirs, as fractions."""
    form = "{}" if side == "server" else "retrieval/{}_mean"
    found = []
    for name in RECALLS:
        way, _, at = name.partition("_recall@")
        values = rows(metrics, side, "test", form.format(name))
        found.append((f"{_WAYS[way]}, R@{at}", {round_: value / 100 for round_, value in values.items()}))
    return _lines(found)


def sums_of_recalls(metrics: pd.DataFrame) -> Lines:
    """Return the sums of the six recalls in per cent, on test and validation pairs."""
    return _lines((split, rows(metrics, "server", split, "rsum")) for split in ("test", "validation"))


def groups(metrics: pd.DataFrame) -> Lines:
    """Return the server's test accuracy on head, middle and tail classes."""
    return _lines((name, rows(metrics, "server", "test", f"accuracy_{name}")) for name in GROUPS)


def last_groups(metrics: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the server's test accuracy on head, middle and tail classes in the last round, by predictor."""
    found = {}
    for name in ("", *_predictors(metrics, "server", "accuracy")):
        start = f"{name}/" if name else ""
        series = {group: rows(metrics, "server", "test", f"{start}accuracy_{group}") for group in GROUPS}
        if any(series.values()):
            found[name or "model"] = {group: _last(values) for group, values in series.items() if values}
    return found


def last_domains(metrics: pd.DataFrame) -> dict[str, float]:
    """Return the server's test accuracy in each domain in the last round."""
    names = metrics[(metrics["side"] == "server") & (metrics["split"] == "test")]["metric"].unique()
    found = [name for name in names if re.fullmatch("domain/.+/accuracy", name)]
    series = {name[7:-9]: rows(metrics, "server", "test", name) for name in found}
    return {name: _last(values) for name, values in series.items() if values}


def _last(values: Series) -> float:
    return values[max(values)]


def tasks(metrics: pd.DataFrame) -> Lines:
    """Return the server's test accuracy on each task of a sequence."""
    names = metrics[(metrics["side"] == "server") & (metrics["split"] == "test")]["metric"].unique()
    numbers = sorted(int(name.split("/")[1]) for name in names if re.fullmatch(r"task/\d+/accuracy", name))
    return _lines((f"task {number}", rows(metrics, "server", "test", f"task/{number}/accuracy")) for number in numbers)


def task_matrix(metrics: pd.DataFrame) -> list[list[float]]:
    """Return R[i][t], the test accuracy on task t after training on task i; NaN where it is not known."""
    series = [seeds[0] for seeds in tasks(metrics).values()]
    ends = sorted(rows(metrics, "server", "test", "acc"))  # it is measured after each task
    return [[values.get(round_, math.nan) for values in series] for round_ in ends]


def sequence(metrics: pd.DataFrame) -> Lines:
    """Return what is measured after each task: mean accuracy, forgetting, forward transfer, by number of tasks."""
    ends = {round_: number for number, round_ in enumerate(sorted(rows(metrics, "server", "test", "acc")), start=1)}
    names = (("mean accuracy (ACC)", "acc"), ("forgetting", "forgetting"), ("forward transfer", "fwt"))
    series = ((label, rows(metrics, "server", "test", metric)) for label, metric in names)
    return _lines((label, {ends[r]: value for r, value in values.items() if r in ends}) for label, values in series)


def collapse(metrics: pd.DataFrame) -> dict[str, dict[str, Series]]:
    """Return the measures of neural collapse: for each panel a series for each label."""
    panels: dict[str, dict[str, Series]] = {}
    for metric, (panel, label) in _COLLAPSE.items():
        for split in ("train", "validation", "test"):
            if values := rows(metrics, "server", split, f"collapse/{metric}"):
                panels.setdefault(panel, {})[label if split == "train" else f"{label}, {split}"] = values
    return panels


def of_clients(metrics: pd.DataFrame) -> dict[str, list[float]]:
    """Return each client's accuracy on its own test, when it was last measured, by predictor; "" is the main one."""
    own = metrics[(metrics["side"] == "client") & (metrics["split"] == "test")]
    found = {}
    for name in ("", *_predictors(metrics, "client", "accuracy")):
        chosen = own[own["metric"] == (f"{name}/accuracy" if name else "accuracy")]
        last = chosen[chosen["round"] == chosen["round"].max()]
        if values := [float(value) for value in last["value"].dropna()]:
            found[name] = values
    return found
