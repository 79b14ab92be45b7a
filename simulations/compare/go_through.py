"""Carry out a comparison in several settings: each is an ordinary one, and above them is a table of all.

First the first rounds of a run in each setting tell how long all of it may take (`first_rounds.py`), then all runs take
their course (`matrix_course.py`), and what came of them is written (`write_matrix.py`).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from umbel.core.refusal import Refusal
from umbel.server.errors import StopRequested
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare.at_once import carrying_out, how_many
from umbel.simulations.compare.first_rounds import measure_first_rounds
from umbel.simulations.compare.matrix import Matrix
from umbel.simulations.compare.matrix_course import MatrixCourse
from umbel.simulations.compare.plan import Estimate, states, unsettled
from umbel.simulations.compare.settings import prepare_matrix, wanted
from umbel.simulations.compare.write_matrix import write_matrix, write_so_far


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
    at_once: int | str | None = None,
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
        at_once: How many runs go on at once, each in a process of its own, or `auto`; None is what the file says, else
            one.

    Returns:
        The comparison of all settings; its `failures` are the runs that failed.

    Raises:
        ExperimentError: Something is refused, or there is one setting only; nothing has started.
    """
    names = strategies if isinstance(strategies, str) else ",".join(strategies)
    numbers = str(seeds) if isinstance(seeds, int) else "".join(f"{seed}," for seed in seeds or ())
    options = [f"{key}={','.join(map(_value, values))}" for key, values in (sweep or {}).items()]
    told = listener or Watcher()
    asked_for = wanted(experiment, overrides, names, numbers, budget, options, at_once)
    if not asked_for.settings:
        raise Refusal(f"{experiment} has one setting.", key="sweep", remedy="Use umbel.compare, or say what to vary.")
    for notice in asked_for.notices:
        told.notice(notice)
    others = untuned if isinstance(untuned, str) else ",".join(untuned)
    prepared = prepare_matrix(experiment, asked_for, overrides, output, tuned, others).aiming(target)
    members = [member for cell in prepared.cells for member in cell.comparison.members]
    number, said = how_many(asked_for.at_once, members, asked_for.budget, asked_for.at_once_key)
    if said:
        told.notice(said)
    return go_through(prepared, told, fresh, keep, number)


def go_through(matrix: Matrix, listener: Watcher, fresh: bool = False, keep: bool = False, at_once: int = 1) -> Matrix:
    """Run all runs of all settings, and write each setting's tables and those of all.

    Args:
        matrix: From `prepare_matrix`.
        listener: Told of everything that happens.
        fresh: Run everything anew.
        keep: Use runs again that other code has made.
        at_once: How many go on at once.

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
    course = MatrixCourse(matrix, plans, estimate, listener, at_once, fresh)
    try:
        with carrying_out(at_once, listener, keep) as runs:
            measure_first_rounds(matrix, plans, estimate, listener, runs, at_once)
            runs.go(course.jobs(), course)
    except (KeyboardInterrupt, StopRequested):
        with contextlib.suppress(Refusal, OSError):  # a damaged run, a full disk: all stops in any case
            there = write_so_far(course.matrix(), keep, course.before)
            if there.num_missing < there.num_runs:
                listener.page = matrix.path / "report.html"
        raise
    unwritten = course.write_rest()
    done = course.matrix()
    write_matrix(done)
    if unwritten is not None:
        raise unwritten
    return done


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
