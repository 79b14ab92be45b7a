"""Write the files of a comparison in several settings: when all its runs have ended, or of what there is so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from umbel.core.files import plain, write_sealed, write_text
from umbel.simulations.compare.carry_out import write
from umbel.simulations.compare.comparison import is_written
from umbel.simulations.compare.matrix import Cell, Failure, Matrix, in_order, so_far
from umbel.simulations.compare.matrix_tables import frame, latex, markdown
from umbel.simulations.compare.plan import states
from umbel.simulations.compare.read_matrix import FILE, failed_before


def write_so_far(matrix: Matrix, keep: bool = False, before: Mapping[Path, Failure] | None = None) -> Matrix:
    """Write what there is to tell before all runs have ended: of each setting, and of all of them.

    Args:
        matrix: All runs, with those that failed; of others the folders are asked.
        keep: What other code has made counts.
        before: Runs that failed earlier and are to be gone on with, by folder; None is what the last tables say.

    Returns:
        The same with the runs that are still to come. Nothing is written where none has ended or failed.
    """
    plans, cells = [states(cell.comparison, keep=keep) for cell in matrix.cells], []
    before = failed_before(matrix, plans) if before is None else before
    for cell, plan in zip(matrix.cells, plans, strict=True):
        missing = so_far(cell.comparison, plan) - cell.failed
        failures = list(cell.failures)
        for member in cell.comparison.members:
            pair = (member.item.label, member.seed)
            if pair in missing and (failure := before.get(member.path)):
                failures.append(failure)
                missing -= {pair}
        cells.append(Cell(cell.setting, cell.comparison, in_order(cell.comparison, failures), missing))
    done = dataclasses.replace(matrix, cells=tuple(cells))
    if done.num_missing < done.num_runs:
        for cell in cells:
            if (whole := cell.whole) is not None and not is_written(whole):
                write(whole)
        write_matrix(done)
    return done


def write_matrix(matrix: Matrix) -> None:
    """Write comparison.json, the table as Markdown, LaTeX and CSV, pictures and report.html of all settings."""
    from umbel.simulations.report.matrix import write_pictures
    from umbel.simulations.report.page import report

    settings = []
    for cell in matrix.cells:
        reasons = {(each.label, each.seed): each for each in cell.failures}
        table = {}
        for label in matrix.labels:
            mean, deviation = matrix.mean_and_deviation(cell, label)
            spread = {"deviation": deviation, "interval": list(matrix.interval(cell, label))}
            table[label] = {"mean": mean, **spread, "num_failed": cell.num_failed(label)}
            table[label]["num_missing"] = cell.num_missing(label)
        runs = []
        for member in cell.comparison.members:
            failure = reasons.get((member.item.label, member.seed))
            said = {
                "failed": failure.reason if failure else "",
                "is_saved": failure.is_saved if failure else False,
                "missing": (member.item.label, member.seed) in cell.missing,
            }
            runs.append({"strategy": member.item.label, "seed": member.seed, "folder": member.path.name, **said})
        about = {"label": cell.setting.label, "folder": cell.comparison.path.name}
        settings.append({**about, "overrides": list(cell.setting.overrides), "table": table, "runs": runs})
    ranking = matrix.ranking
    content = {
        "source": matrix.source,
        "overrides": list(matrix.overrides),
        "budget": matrix.budget,
        "strategies": [dataclasses.asdict(item) for item in matrix.items],
        "seeds": list(matrix.seeds),
        "main": matrix.main,
        "tuned": matrix.tuned and matrix.tuned.said(matrix.untuned),
        "target": matrix.target,
        "settings": settings,
        "ranking": None
        if ranking is None
        else {
            "mean_ranks": ranking.mean_ranks,
            "statistic": ranking.statistic,
            "p": ranking.p,
            "critical_difference": ranking.critical_difference,
            "pairs": [{"strategies": list(pair), "p": p} for pair, p in ranking.pairs.items()],
            "best": ranking.best,
        },
    }
    write_sealed(matrix.path / FILE, plain(content))
    write_text(matrix.path / "table.md", markdown(matrix))
    write_text(matrix.path / "table.tex", latex(matrix))
    write_text(matrix.path / "table.csv", frame(matrix).to_csv(index=False))
    write_pictures(matrix)
    report([matrix.path])
