"""What a run had cost after each round, taken from its metrics, and a measure's course by it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from umbel.models.facts import flops

Series = dict[int, float]  # round -> value

SPLIT = "costs"
# What is on the axis, in what unit, and how many of its own unit that is.
AXES = {
    "steps": ("steps of training", 1.0),
    "examples": ("examples trained on", 1.0),
    "flops": ("GFLOP", 1e9),
    "bytes": ("MB moved", 1e6),
    "seconds": ("seconds", 1.0),
}


def costs_by_round(metrics: pd.DataFrame) -> dict[str, Series]:
    """Return what a run had cost after each round, by `AXES`, in the units there; nothing where it does not say it.

    Args:
        metrics: Long and tidy, with columns round, side, split, metric, value and seconds.
    """
    rows = metrics[(metrics["side"] == "server") & (metrics["split"] == SPLIT)]
    if rows.empty:
        return {}
    by_round = rows.pivot_table(index="round", columns="metric", values="value", aggfunc="last").fillna(0.0)
    found = {what: by_round[what] / AXES[what][1] for what in ("steps", "examples", "bytes")}
    found["seconds"] = rows.groupby("round")["seconds"].last()
    specs = [name.removeprefix("forward ") for name in by_round.columns if name.startswith("forward ")]
    series = {what: {int(r): float(value) for r, value in column.items()} for what, column in found.items()}
    if specs:
        series["flops"] = {
            int(round_): _flops(row, specs) / AXES["flops"][1] for round_, row in by_round.iterrows()
        }
    return {what: values for what in AXES if (values := series.get(what)) and not any(map(math.isnan, values.values()))}


def _flops(row: pd.Series, specs: Sequence[str]) -> float:
    return flops({spec: {way: int(row[f"{way} {spec}"]) for way in ("forward", "backward", "head")} for spec in specs})


def against(courses: Sequence[Series], costs: Sequence[Series]) -> list[dict[float, float]]:
    """Return a measure's courses by what they cost: a round is where it ends in the mean over seeds.

    Args:
        courses: The measure by round, a seed each.
        costs: What was spent up to each round, likewise.
    """
    rounds = set.intersection(*map(set, costs)) if costs else set()
    ends = {round_: sum(each[round_] for each in costs) / len(costs) for round_ in sorted(rounds)}
    return [{ends[round_]: value for round_, value in course.items() if round_ in ends} for course in courses]
