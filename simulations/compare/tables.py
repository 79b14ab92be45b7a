"""The table of a comparison, as it is printed and written, and how to read it."""

from __future__ import annotations

import math

from umbel.simulations.compare.comparison import Comparison
from umbel.simulations.report.measures import COLUMNS


def markdown(comparison: Comparison) -> str:
    """Return the comparison's table in Markdown."""
    heads, rows = table(comparison)
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n\n" + footnote(comparison) + "\n"


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the heads of the columns and a row for each strategy: its label, its measures, its difference."""
    heads = ["strategy", *(COLUMNS[measure].heading for measure in comparison.shown)]
    rows = [
        [item.label, *(cell(comparison, item.label, measure) for measure in comparison.shown)]
        for item in comparison.items
    ]
    if comparison.main is None:
        return heads, rows
    return [*heads, "difference"], [[*row, difference_cell(comparison, row[0])] for row in rows]


def cell(comparison: Comparison, label: str, measure: str) -> str:
    """Return `mean ± deviation`, with a star for a best that can be told."""
    mean, deviation = comparison.mean_and_deviation(label, measure)
    if math.isnan(mean):
        return "–"
    digits = COLUMNS[measure].unit.digits
    spread = f" ± {deviation:.{digits}f}" if len(comparison.seeds) > 1 else ""
    star = " *" if comparison.best(measure) == label else ""
    return f"{mean:.{digits}f}{spread}{star}"


def difference_cell(comparison: Comparison, label: str) -> str:
    """Return the paired difference to the first strategy in the main measure, with its standard error."""
    reference = comparison.items[0].label
    if label == reference:
        return "reference"
    if comparison.main is None:
        return "–"
    mean, error = comparison.difference(label, reference, comparison.main)
    if math.isnan(mean):
        return "–"
    digits = COLUMNS[comparison.main].unit.digits
    return f"{mean:+.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def footnote(comparison: Comparison) -> str:
    """Say how to read the table."""
    seeds, missing = comparison.seeds, _missing(comparison)
    if len(seeds) < 2:
        return " ".join(["One seed: no deviation and no ranking; add seeds, such as --seeds 3.", *missing])
    shared = comparison.members[0].experiment.data.seed is not None
    partition = "all share one partition" if shared else "each draws its own partition"
    parts = [
        f"Mean ± sample standard deviation over {len(seeds)} seeds ({', '.join(map(str, seeds))}; {partition}).",
        *(COLUMNS[measure].meaning for measure in comparison.shown if COLUMNS[measure].meaning),
    ]
    if comparison.main is not None:
        title = COLUMNS[comparison.main].heading
        parts.append(
            f"Difference: of {title}, to {comparison.items[0].label}, paired by seed, ± its standard error. "
            "* best, by more than one standard error of the paired difference to every other."
        )
    return " ".join([*parts, *missing])


def _missing(comparison: Comparison) -> list[str]:
    """Say why cells are empty: strategies of different kinds are measured by different things."""
    empty: dict[str, list[str]] = {}
    for measure in comparison.shown:
        for label in comparison.lacking(measure):
            empty.setdefault(label, []).append(COLUMNS[measure].column)
    if not empty:
        return []
    parts = [f"– is what is not measured in all runs of {who}: {'; '.join(what)}." for who, what in empty.items()]
    if comparison.main is not None and comparison.lacking(comparison.main):
        parts.append("Strategies of different kinds share no measure of quality: there is no ranking between them.")
    return parts
