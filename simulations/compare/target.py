"""What it took to come to a target: rounds, operations, bytes and seconds until a measure was first so good."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from umbel.core.metrics import mean_and_deviation
from umbel.simulations.compare.comparison import Comparison, Member
from umbel.simulations.report import series as report_series
from umbel.simulations.report.charts import COST_AXES
from umbel.simulations.report.measures import MEASURES

_SHOWN = {"steps": 0, "flops": 1, "bytes": 1, "seconds": 1}  # and their digits


@dataclass(frozen=True)
class Reached:
    """When a run first met a target.

    Attributes:
        round: In which of its rounds, or None if it never did.
        costs: What it had cost by then, by `charts.COST_AXES` and in its units, as far as it says.
    """

    round: int | None
    costs: dict[str, float]


def reached(member: Member, measure: str, target: float) -> Reached:
    """Return when a run first met a target: the first round that was evaluated and as good.

    Args:
        member: The run.
        measure: A key of `MEASURES` that it has by round.
        target: The value to come to; accuracies as fractions.
    """
    aim = MEASURES[measure].aim or 1
    course = report_series.course(member.metrics, MEASURES[measure])
    first = min((round_ for round_, value in course.items() if aim * value >= aim * target), default=None)
    if first is None:
        return Reached(None, {})
    return Reached(first, {cost: spent[first] for cost, spent in member.costs_by_round.items() if first in spent})


def is_asked(comparison: Comparison) -> bool:
    """Say whether there is a target, and something by which it is reached."""
    return comparison.target is not None and comparison.main is not None


def title(comparison: Comparison) -> str:
    """Say what the table of a target shows."""
    measure, target = MEASURES[comparison.main or "test_last"], comparison.target
    most = " (which is a fraction, of at most 1)" if target and measure.unit.whole and target > 1 else ""
    return f"To a {measure.title} of {target:g}{most} in an evaluated round: mean ± deviation over runs that came there"


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the heads of the columns and a row for each strategy: how many runs met the target, and at what cost.

    A dash stands where no run met it, or one does not say what it cost.
    """
    heads = ["strategy", "reached", "rounds", *(COST_AXES[cost][0] for cost in _SHOWN)]
    rows = []
    for label, found in _found(comparison).items():
        there = [each for each in found if each.round is not None]
        cells = [_cell([float(each.round or 0) for each in there], 1)]
        cells += [_cell([each.costs.get(cost, math.nan) for each in there], digits) for cost, digits in _SHOWN.items()]
        rows.append([label, f"{len(there)} of {len(found)}", *cells])
    return heads, rows


def markdown(comparison: Comparison) -> str:
    """Return the table in Markdown, under its title; empty where there is no target, or nothing to measure it by."""
    if not is_asked(comparison):
        return ""
    heads, rows = table(comparison)
    lines = [f"{title(comparison)}.", "", "| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    return "\n".join(["", *lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def as_dict(comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    """Return for each strategy, a seed each, the round and the costs; the round of a run that never came is None."""
    return {
        label: [{"round": each.round, **each.costs} for each in found] for label, found in _found(comparison).items()
    }


def _found(comparison: Comparison) -> dict[str, list[Reached]]:
    if comparison.target is None or comparison.main is None:
        return {}
    return {
        item.label: [reached(member, comparison.main, comparison.target) for member in comparison.of(item.label)]
        for item in comparison.items
    }


def _cell(values: list[float], digits: int) -> str:
    if not values or any(map(math.isnan, values)):
        return "–"
    mean, deviation = mean_and_deviation(values)
    spread = f" ± {deviation:,.{digits}f}" if len(values) > 1 else ""
    return f"{mean:,.{digits}f}{spread}"
