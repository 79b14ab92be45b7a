"""What a run had cost after each round, taken from its metrics, and a measure's course by it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import pandas as pd

from umbel.models.facts import flops
from umbel.simulations.report.charts import COST_AXES

Series = dict[int, float]  # round -> value

SPLIT = "costs"


def costs_by_round(metrics: pd.DataFrame) -> dict[str, Series]:
    """Return what a run had cost after each round, by `COST_AXES` and in its units; nothing where it says none.

    Args:
        metrics: Long and tidy, with columns round, side, split, metric, value and seconds.
    """
    rows = metrics[(metrics["side"] == "server") & (metrics["split"] == SPLIT)]
    if rows.empty:
        return {}
    by_round = rows.pivot_table(index="round", columns="metric", values="value", aggfunc="last").fillna(0.0)
    found = {what: by_round[what] / COST_AXES[what][1] for what in ("steps", "examples", "bytes")}
    found["seconds"] = rows.groupby("round")["seconds"].last()
    rounds = [int(each) for each in by_round.index]
    specs = [name.removeprefix("forward ") for name in by_round.columns if name.startswith("forward ")]
    series = {what: dict(zip(rounds, map(float, column), strict=True)) for what, column in found.items()}
    if specs:
        done = [_flops(row, specs) / COST_AXES["flops"][1] for row in by_round.to_dict("records")]
        series["flops"] = dict(zip(rounds, done, strict=True))
    return {
        what: values for what in COST_AXES if (values := series.get(what)) and not any(map(math.isnan, values.values()))
    }


def _flops(row: Mapping[Hashable, float], specs: Sequence[str]) -> float:
    return flops({spec: {way: int(row[f"{way} {spec}"]) for way in ("forward", "backward", "head")} for spec in specs})


def against(courses: Sequence[Mapping[int, float]], costs: Sequence[Series]) -> list[dict[float, float]]:
    """Return a measure's courses by what they cost: a round is where it ends in the mean over seeds.

    Args:
        courses: The measure by round, a seed each.
        costs: What was spent up to each round, likewise.
    """
    rounds = set.intersection(*map(set, costs)) if costs else set()
    ends = {round_: sum(each[round_] for each in costs) / len(costs) for round_ in sorted(rounds)}
    return [{ends[round_]: value for round_, value in course.items() if round_ in ends} for course in courses]
