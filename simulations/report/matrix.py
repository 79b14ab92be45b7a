"""What a report shows of a comparison in several settings: its pictures with what they say, and its rows."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from umbel.simulations.compare.across import profiles
from umbel.simulations.compare.comparison import is_written
from umbel.simulations.compare.matrix import Cell, Matrix
from umbel.simulations.compare.matrix_tables import in_order, ranks_told
from umbel.simulations.compare.tables import p_value
from umbel.simulations.plots import across as plots
from umbel.simulations.plots.runs import save
from umbel.simulations.report.measures import COLUMNS
from umbel.simulations.report.pictures import Picture
from umbel.simulations.tune.tuned import Tuned


def of_matrix(matrix: Matrix) -> Iterator[tuple[str, Picture]]:
    """Draw means by setting, mean ranks, and profiles, each with the name of its file; of what has no measure nothing.

    The words for those who cannot see a picture say what it shows, not what it is.
    """
    if matrix.main is None:
        return
    measure, digits = COLUMNS[matrix.main], COLUMNS[matrix.main].unit.digits
    values = {
        label: [(matrix.mean_and_deviation(cell, label)[0], *matrix.interval(cell, label)) for cell in matrix.cells]
        for label in matrix.labels
    }
    spread = ", 95 % bootstrap intervals" if len(matrix.seeds) >= 4 else ""
    title = f"{measure.title.capitalize()}: means over {len(matrix.seeds)} seeds{spread}"
    labels = [cell.setting.label for cell in matrix.cells]
    leaders = "; ".join(filter(None, (_leader(matrix, cell, digits) for cell in matrix.cells)))
    figure = plots.means(values, labels, title, measure.title, measure.unit.whole == 1)
    yield "settings.png", (figure, f"{measure.title.capitalize()} by setting. Highest mean: {leaders}.")
    if (ranking := matrix.ranking) is None or len(matrix.distinct) < 2:
        return
    said = ", ".join(f"{label} {ranking.mean_ranks[label]:.2f}" for label in ranking.ordered)
    groups = ranking.groups if ranking.is_told else [ranking.ordered]
    title = f"Mean ranks over {len(matrix.distinct)} settings; a bar joins those that are not told apart"
    figure = plots.critical_difference(ranking.mean_ranks, groups, ranking.critical_difference, title)
    yield "ranks.png", (figure, f"Mean ranks, 1 is best: {said}. {ranks_told(matrix)}")
    curves = profiles(matrix.regrets)
    title = "How often each comes within so much of the best run of its setting and seed"
    figure = plots.profiles(curves, title, f"behind the best by at most: {measure.title}, absolute")
    firsts = ", ".join(f"{label} in {100 * shares[0]:.0f} %" for label, (_, shares) in curves.items())
    yield "profiles.png", (figure, f"The best of its setting and seed is {firsts}; {_furthest(matrix, digits)}.")


def write_pictures(matrix: Matrix) -> None:
    """Write settings.png, ranks.png and profiles.png."""
    for name, (figure, _) in of_matrix(matrix):
        save(figure, matrix.path / name)


def pairs(matrix: Matrix) -> list[tuple[str, str, str, str]]:
    """Return each two strategies, the better rank first: how far mean ranks are apart, p, and whether it tells."""
    if (ranking := matrix.ranking) is None or len(matrix.distinct) < 2:
        return []
    rows = []
    for first, second in in_order(matrix):
        p = ranking.pairs[first, second] if (first, second) in ranking.pairs else ranking.pairs[second, first]
        gap = ranking.mean_ranks[second] - ranking.mean_ranks[first]
        told = "told apart" if ranking.is_apart(first, second) else ""
        rows.append((f"{first} before {second}", f"{gap:.2f}", p_value(p), told))
    return rows


def settings(matrix: Matrix) -> list[tuple[str, str, str, str]]:
    """Return each setting's label, its overrides, what became of its runs, and where its own report is.

    There is no place where that is not written yet, or is of other runs.
    """
    rows = []
    for cell in matrix.cells:
        total, failed = len(cell.comparison.members), len(cell.failures)
        runs = f"{total} runs" if not failed else f"{total} runs, {failed} failed"
        runs += f", {len(cell.missing)} still to come" if cell.missing else ""
        is_there = (whole := cell.whole) is not None and is_written(whole)
        link = f"{quote(cell.comparison.path.name)}/report.html" if is_there else ""
        rows.append((cell.setting.label, shlex.join(cell.setting.overrides), runs, link))
    return rows


def command(matrix: Matrix) -> str:
    """Return the command that makes the same again, or what is missing of it, from the settings as they were.

    A product is written as such; settings with names are in the file.
    """
    labels = ",".join(item.label.replace(", ", ",") for item in matrix.items)
    seeds = ",".join(map(str, matrix.seeds)) + ("," if len(matrix.seeds) == 1 else "")
    words = ["umbel", "compare", matrix.source, *matrix.overrides, "--strategies", labels, "--seeds", seeds]
    values_by_key: dict[str, dict[str, None]] = {}
    for cell in matrix.cells:
        if cell.setting.label == ",".join(cell.setting.overrides):
            for override in cell.setting.overrides:
                key, _, value = override.partition("=")
                values_by_key.setdefault(key, {})[value] = None
    for key, values in values_by_key.items():
        words += ["--sweep", f"{key}={','.join(values)}"]
    words += ["--budget", matrix.budget]  # the experiment may say another one
    words += ["--target", f"{matrix.target:g}"] if matrix.target is not None else []
    words += tuned_words(matrix.tuned, matrix.untuned)
    words += [] if matrix.failures or matrix.num_missing else ["--fresh"]  # else it goes on
    return shlex.join([*words, "--output", str(matrix.path)])


def tuned_words(tuned: Tuned | None, untuned: Sequence[str]) -> list[str]:
    """Return what a command says of tuned values."""
    words = ["--tuned", str(tuned.path)] if tuned else []
    return [*words, "--untuned", ",".join(label.replace(", ", ",") for label in untuned)] if untuned else words


def _leader(matrix: Matrix, cell: Cell, digits: int) -> str:
    """Return who has the best mean in a setting, and whether that is told."""
    means = {label: matrix.mean_and_deviation(cell, label)[0] for label in matrix.labels}
    known = {label: value for label, value in means.items() if not math.isnan(value)}
    if not known or matrix.main is None:
        return ""
    first = max(known, key=lambda label: COLUMNS[matrix.main or ""].aim * known[label])
    told = ", told from every other" if matrix.is_best(cell, first) else ""
    return f"{cell.setting.label}, {first} with {known[first]:.{digits}f}{told}"


def _furthest(matrix: Matrix, digits: int) -> str:
    """Say how far each is behind the best at most."""
    said = []
    for label, values in matrix.regrets.items():
        failed = sum(map(math.isinf, values))
        most = f"{max(filter(math.isfinite, values), default=0.0):.{digits}f}"
        said.append(f"{label} {most}" + (f" and {failed} failed" if failed else ""))
    return f"furthest behind: {', '.join(said)}"


def title(matrix: Matrix) -> str:
    """Return what stands above the report."""
    name = Path(matrix.source).stem if os.sep in matrix.source else matrix.source
    return f"{name}: {', '.join(matrix.labels)} in {len(matrix.cells)} settings"
