"""What it took to come to a target: rounds, operations, bytes and seconds until a measure first was so good."""

from __future__ import annotations

import math
from dataclasses import dataclass

from umbel.core.metrics import mean_and_deviation
from umbel.simulations.compare.comparison import Comparison, Member
from umbel.simulations.report import series as report_series
from umbel.simulations.report.charts import COST_AXES
from umbel.simulations.report.measures import COLUMNS, MEASURES

_COSTS = ("steps", "flops", "bytes", "seconds")


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


def table(comparison: Comparison, target: float) -> tuple[list[str], list[list[str]]]:
    """Return the heads of the columns and a row for each strategy: how many runs came to the target, and at what cost.

    Means and sample standard deviations are over the runs that did; a dash where none did, or none says.
    """
    measure = comparison.main or "test_last"
    heads = ["strategy", "reached", "rounds", *(COST_AXES[cost][0] for cost in _COSTS)]
    rows = []
    for item in comparison.items:
        found = [reached(member, measure, target) for member in comparison.of(item.label)]
        there = [each for each in found if each.round is not None]
        cells = [_cell([float(each.round or 0) for each in there], 1)]
        cells += [_cell([each.costs.get(cost, math.nan) for each in there], 1) for cost in _COSTS]
        rows.append([item.label, f"{len(there)} of {len(found)}", *cells])
    return heads, rows


def title(comparison: Comparison, target: float) -> str:
    """Say what the table of a target shows."""
    measure = COLUMNS[comparison.main or "test_last"]
    return f"To {measure.title} of {target:g}: what it took, mean ± deviation over the runs that came there"


def _cell(values: list[float], digits: int) -> str:
    if not values or any(map(math.isnan, values)):
        return "–"
    mean, deviation = mean_and_deviation(values)
    spread = f" ± {deviation:,.{digits}f}" if len(values) > 1 else ""
    return f"{mean:,.{digits}f}{spread}"
