"""The table of a comparison, as it is printed and written, and how to read it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import pandas as pd

from umbel.core.refusal import Refusal
from umbel.simulations.compare.comparison import Comparison
from umbel.simulations.compare.statistics import seeds_needed, smallest_p
from umbel.simulations.report.measures import COLUMNS
from umbel.strategies import registry

_TENTH = 0.1
_OWN = re.compile(r"(?!flwr:).+:")  # a strategy of somebody's own, by its module
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "±": r"$\pm$", "–": "--", "→": r"$\rightarrow$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}", "<": r"$<$", ">": r"$>$", "χ": r"$\chi$", "²": r"$^2$",
}  # fmt: skip


def markdown(comparison: Comparison) -> str:
    """Return the comparison's table in Markdown."""
    heads, rows = table(comparison)
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n\n" + footnote(comparison) + "\n"


def latex(comparison: Comparison) -> str:
    """Return the comparison's table in LaTeX, for the package booktabs, with its footnote as the caption."""
    heads, rows = table(comparison)
    texts = pd.DataFrame([[in_latex(cell) for cell in row] for row in rows], columns=[in_latex(head) for head in heads])
    return str(
        texts.style.hide(axis="index").to_latex(
            hrules=True, column_format="l" + "r" * (len(heads) - 1), caption=in_latex(footnote(comparison))
        )
    )


def in_latex(text: str) -> str:
    """Return a text as LaTeX reads it."""
    return "".join(_LATEX.get(character, character) for character in text)


def frame(comparison: Comparison) -> pd.DataFrame:
    """Return a row for each measure and strategy: what is known over seeds, and the difference to the first."""
    rows = []
    for measure in comparison.shown:
        differences = comparison.differences(measure)
        for item in comparison.items:
            numbers = comparison.numbers(item.label, measure, differences.get(item.label))
            low, high = numbers.pop("interval", (math.nan, math.nan))
            difference = numbers.pop("difference", {})
            told = {f"difference_{name}": value for name, value in difference.items()}
            rows.append({"strategy": item.label, "measure": measure, **numbers, "low": low, "high": high, **told})
    return pd.DataFrame(rows)


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
    """Return `mean ± deviation`; in the main measure with a star for a best that can be told."""
    mean, deviation = comparison.mean_and_deviation(label, measure)
    if math.isnan(mean):
        return "–"
    digits = COLUMNS[measure].unit.digits
    spread = f" ± {deviation:.{digits}f}" if len(comparison.seeds) > 1 else ""
    star = " *" if measure == comparison.main and comparison.best(measure) == label else ""
    return f"{mean:.{digits}f}{spread}{star}"


def difference_cell(comparison: Comparison, label: str) -> str:
    """Return the paired difference to the first strategy in the main measure, its standard error and corrected p."""
    if label == comparison.items[0].label:
        return "reference"
    difference = comparison.differences(comparison.main).get(label) if comparison.main else None
    if difference is None or comparison.main is None:
        return "–"
    digits = COLUMNS[comparison.main].unit.digits
    if len(comparison.seeds) < 2:
        return f"{difference.mean:+.{digits}f}"
    return f"{difference.mean:+.{digits}f} ± {difference.error:.{digits}f} ({p_value(difference.corrected)})"


def p_value(p: float) -> str:
    """Write a p as tables have it: three digits, `p<.001` below."""
    return "p<.001" if p < 0.001 else f"p={p:.3f}".replace("0.", ".", 1)


def footnote(comparison: Comparison) -> str:
    """Say how to read the table."""
    seeds, missing = (
        comparison.seeds,
        [*_missing(comparison), *not_generic([item.name for item in comparison.items]), *comparison.incomplete],
    )
    missing += [*comparison.failed, *comparison.to_come, *tuning(comparison)]
    if len(seeds) < 2:
        said = "One seed: no deviation and no ranking; add seeds, such as --seeds 3."
        return " ".join([said, *missing, *unequal(comparison)])
    shared = comparison.members[0].experiment.data.seed is not None
    partition = "all share one partition" if shared else "each draws its own partition"
    missing += unequal(comparison)
    parts = [
        f"Mean ± sample standard deviation over {len(seeds)} seeds ({', '.join(map(str, seeds))}; {partition}).",
        *(COLUMNS[measure].meaning for measure in comparison.shown if COLUMNS[measure].meaning),
    ]
    if comparison.main is not None:
        title, reference = COLUMNS[comparison.main].heading, comparison.items[0].label
        parts.append(f"Difference: of {title}, to {reference}, paired by seed, ± its standard error; p of the paired")
        parts.append("permutation test, after Holm's correction.")
        parts.append(_what_can_be_told(comparison))
    return " ".join([part for part in [*parts, *missing] if part])


def _what_can_be_told(comparison: Comparison) -> str:
    """Say what a star means, or that so few seeds can tell nothing."""
    num_strategies, num_seeds, reference = len(comparison.items), len(comparison.seeds), comparison.items[0].label
    if num_strategies < 2 or comparison.main is None or comparison.lacking(comparison.main):
        return ""
    for_one, for_best = seeds_needed(num_strategies - 1), seeds_needed(math.comb(num_strategies, 2))
    if num_seeds < for_one:
        smallest = smallest_p(num_seeds) * (num_strategies - 1)
        return (
            f"Of {num_seeds} seeds the smallest p is {min(smallest, 1):.2g}: nothing can be told from chance, and "
            f"nothing is marked. {for_one} seeds could tell a difference to {reference}, {for_best} a best."
        )
    if num_seeds < for_best:
        return f"A best needs p below .05 against every other, which takes {for_best} seeds: nothing is marked."
    return "* best: p below .05 against every other, corrected over all pairs."


def unequal(comparison: Comparison) -> list[str]:
    """Say which strategies cost more or less than the first by over a tenth; seconds vary by themselves."""
    reference, parts = comparison.items[0].label, []
    for item in comparison.items[1:]:
        ratios = []
        for cost in ("steps", "examples", "flops", "bytes"):
            ours, theirs = (sum(each.costs[cost] for each in comparison.of(label)) for label in (item.label, reference))
            ratio = ours / theirs if theirs else math.inf if ours > 0 else math.nan
            if abs(ratio - 1) > _TENTH:
                ratios.append(f"{ratio:.2g} times the {cost}" if math.isfinite(ratio) else f"{cost} where it has none")
        if ratios:
            parts.append(f"{item.label} has {' and '.join(ratios)}")
    if not parts:
        return []
    return [f"Budgets are not equal: beside {reference}, {'; '.join(parts)} (--budget makes one of them so)."]


def tuning(comparison: Comparison, settings: Mapping[str, Comparison] | None = None) -> list[str]:
    """Say which values each strategy was given by tuning, what the search took, and what is not fair about it.

    Args:
        comparison: Whose strategies were tuned.
        settings: Comparisons of the same strategies in several settings, by label; None is this one alone.
    """
    tuned = comparison.tuned
    if tuned is None:
        return []
    chosen = [each for item in comparison.items if (each := tuned.of(item.label))]
    values = [
        f"{each.label} {each.in_words} ({each.costs['steps']:,.0f} steps, {each.costs['examples']:,.0f} examples, "
        f"{each.costs['seconds']:,.0f} s)"
        for each in chosen
    ]
    parts = [
        f"Tuned by {tuned.trials} trials each on {tuned.metric}, seeds of their own "
        f"({', '.join(map(str, tuned.seeds))}); in brackets what all trials of each took: {'; '.join(values)}."
    ]
    if comparison.untuned:
        parts.append(f"Not tuned, with the experiment's own values: {', '.join(comparison.untuned)}; this is not fair.")
    parts += [
        f"The best of {each.label} may lie beyond what was searched: {text}."
        for each in chosen
        for text in each.edges.values()
    ]
    for name, own in ({"here": comparison} if settings is None else settings).items():
        experiments = {item.label: own.of(item.label)[0].experiment for item in own.items}
        if moved := tuned.elsewhere(experiments):
            texts = [f"{key}={was}, {'here' if settings is None else 'now'} {now}" for key, (was, now) in moved.items()]
            where = "" if settings is None else f" than {name}"
            parts.append(f"Tuned under other settings{where}: {'; '.join(texts)}.")
    return parts


def not_generic(names: Iterable[str]) -> list[str]:
    """Say of which strategies the server evaluates what nobody has trained.

    Args:
        names: Of strategies, as `strategy.name` has them.
    """
    which = [name for name in dict.fromkeys(names) if not _is_generic(name)]
    if not which:
        return []
    return [
        f"What the server measures says little of {'; '.join(which)}: parts of the model stay with the clients, and "
        "the server has them as initialised. They are to be judged by the clients' mean."
    ]


def _is_generic(name: str) -> bool:
    if name not in registry.names() and not _OWN.match(name):
        return True
    try:
        return registry.find(name).is_generic
    except Refusal:  # its module is not here, where tables of earlier runs are read
        return True


def _missing(comparison: Comparison) -> list[str]:
    """Say why cells are empty: strategies of different kinds are measured by different things."""
    empty: dict[str, list[str]] = {}
    for measure in comparison.shown:
        for label in comparison.lacking(measure):
            empty.setdefault(label, []).append(COLUMNS[measure].column)
    if not empty:
        return []
    alike: dict[str, list[str]] = {}
    for label, columns in empty.items():
        alike.setdefault("; ".join(columns), []).append(label)
    parts = [f"– is what is not measured in all runs of {'; '.join(who)}: {what}." for what, who in alike.items()]
    if comparison.main is not None and comparison.lacking(comparison.main):
        parts.append("Strategies of different kinds share no measure of quality: there is no ranking between them.")
    return parts
