"""Carry out a comparison in several settings: each is an ordinary one, and a table of all of them comes at the end.

First the first rounds of a run in each setting tell how long all of it may take; nothing of them is lost, the run goes
on from there. A run that fails is written down and the others go on.
"""

from __future__ import annotations

import dataclasses
import errno
import shutil
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from umbel.conf.schema import Experiment
from umbel.core.files import plain, write_sealed, write_text
from umbel.core.refusal import Refusal
from umbel.server import reading
from umbel.server.errors import RunFailedError, RunStoppedError, StopRequested
from umbel.server.listener import Listener
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare.carry_out import run_member, write
from umbel.simulations.compare.comparison import Comparison, Member, read_comparison
from umbel.simulations.compare.matrix import FILE, Cell, Failure, Matrix
from umbel.simulations.compare.matrix_tables import frame, latex, markdown
from umbel.simulations.compare.plan import Estimate, states
from umbel.simulations.compare.settings import prepare_matrix, wanted

_WRITTEN = ("table.md", "table.tex", "table.csv", "curves.png", "partition.png", "report.html")
_PROBED_ROUNDS = 2  # in the first everything is new
_LEAST_ROUNDS = 2 * _PROBED_ROUNDS  # of a run that is worth it


def compare_settings(
    experiment: str,
    *overrides: str,
    sweep: Mapping[str, Sequence[object]] | None = None,
    strategies: str | Sequence[str] = "",
    seeds: int | Sequence[int] | None = None,
    output: str | Path | None = None,
    listener: Watcher | None = None,
    fresh: bool = False,
    budget: str | None = None,
    keep: bool = False,
    tuned: str | Path | None = None,
    untuned: str | Sequence[str] = "",
    target: float | None = None,
) -> Matrix:
    """Run an experiment in several settings, in each with several strategies and seeds; `umbel compare` does the same.

    Args:
        experiment: Name of a shipped experiment, or path of a YAML file.
        overrides: `key=value` each, for all runs.
        sweep: Values by key, of which every choice is a setting; None is the file's block `sweep`.
        strategies: As `umbel.compare`; empty is what the file's block `compare` says.
        seeds: How many, counted from `run.seed`, or the seeds themselves; None is what the file says, else 3.
        output: The folder; None is `matrix-<experiment>` in `run.results`.
        listener: Told of everything that happens.
        fresh: Run everything anew.
        budget: What all strategies have equally much of; None is what the file says, else `rounds`.
        keep: Use runs again that other code has made.
        tuned: Folder of `umbel.tune`, whose values each strategy has in all settings.
        untuned: Strategies that were not tuned and have the experiment's own values; the tables say so.
        target: A value of what they are judged by; each setting's table says what it took to come to it.

    Returns:
        The comparison of all settings; its `failures` are the runs that failed.

    Raises:
        ExperimentError: Something is refused, or there is one setting only; nothing has started.
    """
    names = strategies if isinstance(strategies, str) else ",".join(strategies)
    numbers = str(seeds) if isinstance(seeds, int) else "".join(f"{seed}," for seed in seeds or ())
    options = [f"{key}={','.join(map(_value, values))}" for key, values in (sweep or {}).items()]
    told = listener or Watcher()
    asked_for = wanted(experiment, overrides, names, numbers, budget, options)
    if not asked_for.settings:
        raise Refusal(f"{experiment} has one setting.", key="sweep", remedy="Use umbel.compare, or say what to vary.")
    for notice in asked_for.notices:
        told.notice(notice)
    others = untuned if isinstance(untuned, str) else ",".join(untuned)
    prepared = prepare_matrix(experiment, asked_for, overrides, output, tuned, others).aiming(target)
    return go_through(prepared, told, fresh, keep)


def go_through(matrix: Matrix, listener: Watcher, fresh: bool = False, keep: bool = False) -> Matrix:
    """Run all runs of all settings, one after the other, and write each setting's tables and those of all.

    Args:
        matrix: From `prepare_matrix`.
        listener: Told of everything that happens.
        fresh: Run everything anew.
        keep: Use runs again that other code has made.

    Returns:
        The same with the runs that failed.
    """
    if fresh:
        for cell in matrix.cells:
            for member in cell.comparison.members:
                shutil.rmtree(member.path, ignore_errors=True)
    plans = [states(cell.comparison, keep=keep) for cell in matrix.cells]
    matrix.path.mkdir(parents=True, exist_ok=True)
    estimate = Estimate(matrix, unsettled(matrix, plans))
    _probe(matrix, plans, estimate, listener, keep)
    ahead = {
        member.path: (number, member)
        for number, cell in enumerate(matrix.cells)
        for member, how in zip(cell.comparison.members, plans[number], strict=True)
        if how != "reused"
    }
    _tell(estimate, ahead.values(), listener)
    cells, index = [], 0
    for number, cell in enumerate(matrix.cells):
        listener.setting(number + 1, len(matrix.cells), cell.setting.label)
        cell.comparison.path.mkdir(parents=True, exist_ok=True)
        failures, is_new = list[Failure](), False
        for member in cell.comparison.members:
            index += 1
            if failure := _run(cell, member, index, matrix.num_runs, listener, keep):
                failures.append(failure)
                listener.run_failed(failure.label, failure.seed, failure.reason)
            if ahead.pop(member.path, None):
                is_new = True
                estimate.learn(number, member)
                _tell(estimate, ahead.values(), listener)
        cells.append(Cell(cell.setting, cell.comparison, tuple(failures)))
        if (whole := cells[-1].whole) is not None and (is_new or not _is_written(whole)):
            write(whole)
    done = dataclasses.replace(matrix, cells=tuple(cells))
    write_matrix(done)
    return done


def unsettled(matrix: Matrix, plans: Sequence[Sequence[str]]) -> frozenset[Path]:
    """Return the folders of runs that are run anew, whose times tell nothing."""
    return frozenset(
        member.path
        for cell, plan in zip(matrix.cells, plans, strict=True)
        for member, how in zip(cell.comparison.members, plan, strict=True)
        if how in ("changed", "new")
    )


def _tell(estimate: Estimate, ahead: Collection[tuple[int, Member]], listener: Watcher) -> None:
    """Say how many runs are still to come, and how long they may take."""
    times = [estimate.left(number, member) for number, member in ahead]
    known = [each for each in times if each is not None]
    listener.left(len(ahead), sum(known) if len(known) == len(times) else None)


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
        runs = []
        for member in cell.comparison.members:
            failure = reasons.get((member.item.label, member.seed))
            said = {"failed": failure.reason if failure else "", "is_saved": failure.is_saved if failure else False}
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


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _is_written(comparison: Comparison) -> bool:
    """Say whether a comparison's folder has the tables and the report of just these runs."""
    try:
        there = read_comparison(comparison.path)
    except Refusal:
        return False
    mine, theirs = (
        (
            each.items,
            each.seeds,
            [m.path for m in each.members],
            each.source,
            each.overrides,
            each.budget,
            each.failed,
            each.target,
            each.tuned,
        )
        for each in (comparison, there)
    )
    return mine == theirs and all((comparison.path / name).is_file() for name in _WRITTEN)


# ---- one run -------------------------------------------------------------------------------------------------


def _run(cell: Cell, member: Member, index: int, total: int, listener: Watcher, keep: bool) -> Failure | None:
    """Carry a run out; return why it failed, if it did.

    Raises:
        KeyboardInterrupt, StopRequested: All is to stop.
        OSError: The disk is full, and the next run would fare no better.
    """
    label, seed = member.item.label, member.seed
    try:
        reference = next(each for each in cell.comparison.members if each.seed == seed)
        waits = cell.comparison.budget != "rounds" and reference is not member
        if waits and not (reference.path / reading.SUMMARY).is_file():
            reason = f"its {cell.comparison.budget} are to be those of {reference.path.name}, which has not ended."
            return Failure(label, seed, reason, is_saved=True)
        run_member(cell.comparison.budgeted(member), index, total, listener, keep)
        member.measures  # noqa: B018 - a summary that is damaged is this run's failure, and not that of the table
    except StopRequested:
        raise
    except RunStoppedError as error:
        return Failure(label, seed, _line(error), is_saved=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        return Failure(label, seed, _line(error))
    except (Refusal, RunFailedError) as error:
        return Failure(label, seed, _line(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other runs go on
        return Failure(label, seed, f"{type(error).__name__}: {_line(error)}", trace=traceback.format_exc())
    return None


def _line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


# ---- how long a run takes ------------------------------------------------------------------------------------


class _FirstRounds(Listener):
    """Asks a run to stop after its first rounds."""

    def __init__(self) -> None:
        self.asked = False
        self._folder = Path()
        self._num_rounds = 0

    def begin(self, experiment: Experiment, folder: str) -> None:
        """Remember the folder."""
        self._folder = Path(folder)

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Count the round, and ask."""
        self._num_rounds += 1
        if self._num_rounds >= _PROBED_ROUNDS and round_ < num_rounds:
            self.asked = True
            (self._folder / "stop").touch()


def _probe(matrix: Matrix, plans: list[list[str]], estimate: Estimate, listener: Watcher, keep: bool) -> None:
    """Begin a run in each setting in which nothing was measured, and stop it after its first rounds.

    Of a budget of seconds nothing may be begun and stopped: what the run spends is what the others get.
    """
    for number, cell in enumerate(matrix.cells):
        member, how = cell.comparison.members[0], plans[number][0]
        is_short = member.experiment.run.rounds < _LEAST_ROUNDS
        if estimate.is_known(number) or how == "reused" or is_short or matrix.budget == "seconds":
            continue
        listener.setting(number + 1, len(matrix.cells), cell.setting.label, probed=True)
        cell.comparison.path.mkdir(parents=True, exist_ok=True)
        first = _FirstRounds()
        try:
            run_member(member, 1, 1, listener, keep, first)
        except StopRequested:
            if not first.asked:
                raise
        except (RunStoppedError, RunFailedError, Refusal, OSError):
            continue  # it is tried again in its turn, and written down then
        estimate.learn(number, member)
