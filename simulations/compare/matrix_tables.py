"""The table of a comparison in several settings, as it is printed and written, and how to read it."""

from __future__ import annotations

import math

import pandas as pd

from umbel.simulations.compare.across import settings_needed
from umbel.simulations.compare.matrix import Cell, Matrix
from umbel.simulations.compare.statistics import LEVEL
from umbel.simulations.compare.tables import in_latex, p_value, tuning
from umbel.simulations.report.measures import COLUMNS

MEAN_RANK = "mean rank"


def table(matrix: Matrix) -> tuple[list[str], list[list[str]]]:
    """Return the heads of the columns and a row for each setting, the last with mean ranks where there are some."""
    rows = [[cell.setting.label, *(text(matrix, cell, label) for label in matrix.labels)] for cell in matrix.cells]
    if (ranking := matrix.ranking) is not None and len(matrix.distinct) > 1:
        stars = {label: " *" if ranking.best == label else "" for label in matrix.labels}
        rows.append([MEAN_RANK, *(f"{ranking.mean_ranks[label]:.2f}{stars[label]}" for label in matrix.labels)])
    return ["setting", *matrix.labels], rows


def text(matrix: Matrix, cell: Cell, label: str) -> str:
    """Return `mean [interval]` of a strategy in a setting, `mean ± deviation` of few seeds; a star for a told best."""
    if failed := cell.num_failed(label):
        return f"failed {failed} of {len(matrix.seeds)}"
    if missing := cell.num_missing(label):
        return f"{len(matrix.seeds) - missing} of {len(matrix.seeds)} so far"
    mean, deviation = matrix.mean_and_deviation(cell, label)
    if matrix.main is None or math.isnan(mean):
        return "–"
    digits, (low, high) = COLUMNS[matrix.main].unit.digits, matrix.interval(cell, label)
    spread = f" ± {deviation:.{digits}f}" if len(matrix.seeds) > 1 else ""
    if not math.isnan(low):
        spread = f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean:.{digits}f}{spread}{' *' if matrix.is_best(cell, label) else ''}"


def markdown(matrix: Matrix) -> str:
    """Return the table in Markdown, with what it tells and the runs that failed."""
    heads, rows = table(matrix)
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    failed = [f"* {line}" for line in [*failures(matrix), *missing(matrix)]]
    return "\n".join([*lines, "", footnote(matrix), *([""] if failed else []), *failed]) + "\n"


def latex(matrix: Matrix) -> str:
    """Return the table in LaTeX, for the package booktabs, with its footnote as the caption."""
    heads, rows = table(matrix)
    texts = pd.DataFrame([[in_latex(cell) for cell in row] for row in rows], columns=[in_latex(head) for head in heads])
    caption = in_latex(" ".join([footnote(matrix), *failures(matrix), *(f"{line}." for line in missing(matrix))]))
    form = "l" + "r" * (len(heads) - 1)
    return str(texts.style.hide(axis="index").to_latex(hrules=True, column_format=form, caption=caption))


def frame(matrix: Matrix) -> pd.DataFrame:
    """Return a row for each setting, strategy and measure: what is known over seeds, and how many runs lack."""
    measures = [key for key in COLUMNS if any(key in whole.shown for cell in matrix.cells if (whole := cell.whole))]
    rows = []
    for cell in matrix.cells:
        for label in matrix.labels:
            failed, missing = cell.num_failed(label), cell.num_missing(label)
            for measure in measures:
                own: dict[str, float] = {"mean": math.nan, "deviation": math.nan, "interquartile_mean": math.nan}
                low = high = math.nan
                if not failed and not missing:
                    numbers = cell.comparison.numbers(label, measure, None)
                    low, high = numbers.pop("interval", (low, high))
                    own |= numbers
                about: dict[str, str] = {"setting": cell.setting.label, "strategy": label, "measure": measure}
                spread = {**own, "low": low, "high": high, "num_failed": failed, "num_missing": missing}
                rows.append(about | spread)
    return pd.DataFrame(rows)


def failures(matrix: Matrix) -> list[str]:
    """Return a sentence for each run that failed."""
    return [f"{cell.setting.label}: {each.sentence}" for cell, each in matrix.failures]


def missing(matrix: Matrix) -> list[str]:
    """Return a line for each setting some of whose runs are still to come: which."""
    lines = []
    for cell in matrix.cells:
        if len(cell.missing) == len(cell.comparison.members):
            lines.append(f"{cell.setting.label}: all {len(cell.missing)} runs are still to come")
        elif cell.missing:
            by_label = {
                label: [str(seed) for seed in matrix.seeds if (label, seed) in cell.missing] for label in matrix.labels
            }
            each = [
                f"{label}, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"
                for label, seeds in by_label.items()
                if seeds
            ]
            lines.append(f"{cell.setting.label}: still to come: {'; '.join(each)}")
    return lines


def footnote(matrix: Matrix) -> str:
    """Say how to read the table."""
    seeds, parts = matrix.seeds, list[str]()
    if to_come := matrix.num_missing:
        there = f"So far, with {matrix.num_runs - to_come} of {matrix.num_runs} runs there"
        parts.append(f"{there}; only settings without a missing run have ranks.")
    if matrix.main is None:
        parts.append("The runs share no measure that they are judged by: nothing is ranked.")
    else:
        spread = "no deviation"
        if len(seeds) > 1:
            spread = "± sample standard deviation (an interval takes 4 seeds)"
        if len(seeds) >= 4:
            spread = "[its 95 % bootstrap interval]"
        numbers = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))})"
        parts.append(f"{COLUMNS[matrix.main].title.capitalize()}: mean over {numbers}, {spread}.")
    if any(matrix.is_best(cell, label) for cell in matrix.cells for label in matrix.labels):
        parts.append("* in a setting: p below .05 against every other there, as its own table has it.")
    if same := [cell.setting.label for cell in matrix.cells if not cell.missing and cell not in matrix.distinct]:
        parts.append(f"All runs of {'; '.join(same)} came to what those of a setting above came to: not counted below.")
    parts.append(ranks_told(matrix))
    whole = {cell.setting.label: cell.whole for cell in matrix.cells if cell.whole}
    if matrix.tuned and whole:
        parts += [*tuning(next(iter(whole.values())), whole), "In all settings they have the same values."]
    if matrix.failures:
        parts.append("A strategy with a run that failed has no mean in that setting, and its last rank.")
    return " ".join([part for part in [*parts, *matrix.incomplete] if part])


def ranks_told(matrix: Matrix) -> str:
    """Say what the ranks over settings tell, or that so few settings can tell nothing."""
    ranking, num = matrix.ranking, len(matrix.distinct)
    if ranking is None or num < 2:
        return ""
    labels = matrix.labels
    needed = settings_needed(len(labels))
    if num < needed:
        return (
            f"Of {num} settings ranks can tell nothing from chance, and nothing is marked: {len(labels)} strategies "
            f"take {needed} settings, if their order is the same in all."
        )
    if len(labels) == 2:
        ahead = int(ranking.statistic)
        said = f"Over {num} settings {labels[0]} is ahead in {ahead} ({p_value(ranking.p)}, exact sign test)"
        return f"{said}: {'the better mean rank is told (*).' if ranking.best else 'that may be chance.'}"
    test = f"Friedman's test over {num} settings: χ² = {ranking.statistic:.2f}, {p_value(ranking.p)}"
    if not ranking.is_told:
        return f"{test}: the ranks may be chance, and nothing is marked."
    apart = [f"{a} from {b}" for a, b in in_order(matrix) if ranking.is_apart(a, b)]
    nemenyi = f"Nemenyi's critical difference of mean ranks at {LEVEL:g} is {ranking.critical_difference:.2f}"
    if not apart:
        return f"{test}; {nemenyi}, which tells no two apart."
    star = " * mean rank: told from every other." if ranking.best else ""
    return f"{test}; {nemenyi}, which tells {', '.join(apart)}.{star}"


def in_order(matrix: Matrix) -> list[tuple[str, str]]:
    """Return every two strategies, the one of the better mean rank first."""
    ordered = matrix.ranking.ordered if matrix.ranking else []
    return [(first, second) for number, first in enumerate(ordered) for second in ordered[number + 1 :]]
