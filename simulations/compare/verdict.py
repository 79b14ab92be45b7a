"""What a comparison asks, and what it can tell, in a sentence or two."""

from __future__ import annotations

import math

from umbel.simulations.compare.comparison import Comparison
from umbel.simulations.compare.statistics import seeds_needed, smallest_p
from umbel.simulations.compare.tables import p_value, unequal
from umbel.simulations.report.measures import COLUMNS, MEASURES


def question(comparison: Comparison) -> str:
    """Return what is asked: of whom, by what, on what, at which budget, over how many seeds."""
    labels = [item.label for item in comparison.items]
    seeds = f"{len(comparison.seeds)} seed{'s' if len(comparison.seeds) > 1 else ''}"
    budget = f"with equal {comparison.budget}, {seeds}"
    name = comparison.members[0].experiment.name
    if comparison.main is None:
        return f"How do {_and(labels)} do on {name} {budget}?"
    measure = MEASURES[comparison.main]
    if len(labels) == 1:
        return f"Which {measure.title} has {labels[0]} on {name}, {seeds}?"
    most = "highest" if measure.aim >= 0 else "lowest"
    return f"Which of {_and(labels)} has the {most} {measure.title} on {name} {budget}?"


def verdict(comparison: Comparison) -> str:
    """Return what the runs tell about that, and no more: a difference is one only if its corrected p is below .05."""
    main = comparison.main
    if main is None or comparison.lacking(main):
        return "They share no measure of quality: there is no verdict."
    means = {item.label: comparison.mean_and_deviation(item.label, main)[0] for item in comparison.items}
    ordered = sorted(means, key=lambda label: -(COLUMNS[main].aim or 1) * means[label])
    told = {label: _number(comparison, means[label]) for label in ordered}
    if len(ordered) == 1:
        return f"{told[ordered[0]]}; there is nobody to compare it with."
    first, second = ordered[:2]
    if len(comparison.seeds) < 2:
        text = f"{first} has {told[first]}, {second} {told[second]}: one seed says nothing of what seeds alone change."
        return " ".join([text, *_with_care(comparison)])
    parts = [_best(comparison, first, second, told) or _against_reference(comparison, main)]
    return " ".join([*parts, *_with_care(comparison)])


def _with_care(comparison: Comparison) -> list[str]:
    """Return what else is to be known, which the table's note has in full."""
    said = []
    if comparison.failed:
        said.append("Of strategies with runs that failed nothing is said.")
    if unequal(comparison):
        said.append("They did not cost the same, as the table's note says.")
    return said


def _best(comparison: Comparison, first: str, second: str, told: dict[str, str]) -> str:
    if comparison.main is None or comparison.best(comparison.main) != first:
        return ""
    others = "the other" if len(comparison.items) == 2 else f"all {len(comparison.items) - 1} others"
    return (
        f"{first} is better than {others}: {told[first]}, and the next, {second}, {told[second]} (p below .05 against "
        "each, corrected)."
    )


def _against_reference(comparison: Comparison, main: str) -> str:
    """Return who is told from the first strategy, or that nobody is, and whether more seeds could tell."""
    reference, aim = comparison.items[0].label, COLUMNS[main].aim or 1
    differences = comparison.differences(main)
    apart = {label: each for label, each in differences.items() if each.is_told}
    if apart:
        texts = [
            f"{label} is {'better' if aim * each.mean > 0 else 'worse'} than {reference} by "
            f"{_number(comparison, abs(each.mean))} ({p_value(each.corrected)})"
            for label, each in apart.items()
        ]
        rest = [label for label in differences if label not in apart]
        left = f"; of {_and(rest)} no difference to it can be told" if rest else ""
        return f"{_and(texts)}{left}. Corrected over all pairs, nobody is told from every other."
    label, largest = max(differences.items(), key=lambda each: abs(each[1].mean))
    text = (
        f"No difference to {reference} can be told from chance. The largest is {label}'s, "
        f"{_number(comparison, largest.mean, '+')} ± {_number(comparison, largest.error)} "
        f"({p_value(largest.corrected)})"
    )
    number, needed = len(comparison.seeds), seeds_needed(len(differences))
    if number < needed:
        return f"{text}; {number} seeds cannot give a p below {min(smallest_p(number) * len(differences), 1):.2g}."
    return f"{text}."


def _number(comparison: Comparison, value: float, sign: str = "") -> str:
    if comparison.main is None or math.isnan(value):
        return "–"
    return f"{value:{sign}.{COLUMNS[comparison.main].unit.digits}f}"


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
