"""Carry out a comparison in several settings: each is an ordinary one, and above them is a table of all.

First the first rounds of a run in each setting tell how long all of it may take; nothing of them is lost, the run goes
on from there. A run that fails is written down and the others go on. The table of all comes with each setting that is
complete, and when all is stopped; it says what is still to come.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from umbel.conf.schema import Experiment
from umbel.core.files import plain, read_sealed, write_sealed, write_text
from umbel.core.refusal import Refusal
from umbel.server.errors import RunFailedError, RunStoppedError, StopRequested, is_unforeseen, reason
from umbel.server.listener import Listener
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare.at_once import Course, Job, Runs, carrying_out, how_many, makespan
from umbel.simulations.compare.carry_out import write
from umbel.simulations.compare.comparison import Comparison, Member, is_written
from umbel.simulations.compare.matrix import FILE, Cell, Failure, Matrix, so_far
from umbel.simulations.compare.matrix_tables import frame, latex, markdown
from umbel.simulations.compare.plan import Estimate, states
from umbel.simulations.compare.settings import prepare_matrix, wanted

_PROBED_ROUNDS = 2  # in the first everything is new
_LEAST_ROUNDS = 2 * _PROBED_ROUNDS  # of a run that is worth it
_PAGES_AFTER_SECONDS = 30.0  # sooner nobody looks for pages that are about to change
_SHARE = 20.0  # times what they take, for which the pages of all settings are left as they are


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
    course = _Course(matrix, plans, estimate, listener, at_once, fresh)
    try:
        with carrying_out(at_once, listener, keep) as runs:
            _probe(matrix, plans, estimate, listener, runs, at_once)
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
    before = _failed_before(matrix, plans) if before is None else before
    for cell, plan in zip(matrix.cells, plans, strict=True):
        missing = so_far(cell.comparison, plan) - cell.failed
        failures = list(cell.failures)
        for member in cell.comparison.members:
            pair = (member.item.label, member.seed)
            if pair in missing and (failure := before.get(member.path)):
                failures.append(failure)
                missing -= {pair}
        cells.append(Cell(cell.setting, cell.comparison, _in_order(cell.comparison, failures), missing))
    done = dataclasses.replace(matrix, cells=tuple(cells))
    if done.num_missing < done.num_runs:
        for cell in cells:
            if (whole := cell.whole) is not None and not is_written(whole):
                write(whole)
        write_matrix(done)
    return done


class _Course(Course):
    """All runs of all settings: what becomes of each is written down.

    Args:
        matrix: All runs.
        plans: What becomes of each, by setting.
        estimate: Learns from each how long the others may take.
        listener: Told of everything that happens.
        at_once: How many go on at once.
        fresh: Everything is run anew: what failed earlier is of no account.

    Attributes:
        before: Runs that failed earlier and are gone on with, by folder.
    """

    def __init__(
        self,
        matrix: Matrix,
        plans: Sequence[Sequence[str]],
        estimate: Estimate,
        listener: Watcher,
        at_once: int,
        fresh: bool = False,
    ) -> None:
        self._matrix, self._estimate, self._listener, self._at_once = matrix, estimate, listener, at_once
        self._ahead = {
            member.path: (number, member)
            for number, cell in enumerate(matrix.cells)
            for member, how in zip(cell.comparison.members, plans[number], strict=True)
            if how != "reused"
        }
        self._told = -1  # the last setting that was told of
        self._has_new = [False] * len(matrix.cells)
        self._open = [len(cell.comparison.members) for cell in matrix.cells]
        self._complete: list[int] = []  # settings whose tables are to be written
        self._settled: set[Path] = set()
        self._failures: list[list[Failure]] = [[] for _ in matrix.cells]
        self.before = {} if fresh else _failed_before(matrix, plans)
        self._later: list[int] = []  # settings whose tables could not be written
        self._next_pages = time.monotonic() + _PAGES_AFTER_SECONDS

    def jobs(self) -> list[Job]:
        """Return all runs, and say how many are to come."""
        self._tell()
        index, jobs, total = 0, list[Job](), self._matrix.num_runs
        for number, cell in enumerate(self._matrix.cells):
            for member in cell.comparison.members:
                index += 1
                spent = _Spent(self._estimate, member)
                jobs.append(Job(member, index, total, cell.comparison, number, cell.setting.label, spent))
        return jobs

    def matrix(self) -> Matrix:
        """Return all runs with those that failed so far."""
        cells = [
            Cell(cell.setting, cell.comparison, _in_order(cell.comparison, failures))
            for cell, failures in zip(self._matrix.cells, self._failures, strict=True)
        ]
        return dataclasses.replace(self._matrix, cells=tuple(cells))

    def is_ready(self, job: Job) -> bool:
        return job.reference is None or job.reference.path in self._settled

    def begins(self, job: Job) -> None:
        if job.number != self._told and (self._at_once == 1 or job.number > self._told):
            self._told = job.number
            self._listener.setting(job.number + 1, len(self._matrix.cells), job.setting)
        self._matrix.cells[job.number].comparison.path.mkdir(parents=True, exist_ok=True)

    def ended(self, job: Job, error: Exception | None) -> None:
        if failure := _failure(job.member, error):
            self._failures[job.number].append(failure)
            self._listener.run_failed(failure.label, failure.seed, failure.reason)
        self._settled.add(job.member.path)
        if self._ahead.pop(job.member.path, None):
            self._has_new[job.number] = True
            self._estimate.learn(job.number, job.member)
            self._tell()
        self._open[job.number] -= 1
        if not self._open[job.number]:
            self._complete.append(job.number)

    def meanwhile(self) -> None:
        """Write the tables of settings that are complete, and, not too often, those of all so far."""
        complete, self._complete = self._complete, []
        is_new, cells = False, self.matrix().cells
        for number in complete:
            try:
                is_new |= self._write(number, cells[number])
            except (Refusal, OSError):  # it is said when the runs have ended, which it does not concern
                self._later.append(number)
        if is_new and any(self._open) and time.monotonic() >= self._next_pages:
            began = time.monotonic()
            with contextlib.suppress(Refusal, OSError):  # likewise
                write_matrix(self._so_far(cells))
            self._next_pages = time.monotonic() + _SHARE * (time.monotonic() - began)

    def write_rest(self) -> Exception | None:
        """Write the tables that could not be written when their setting was complete; return why some still cannot."""
        found: Exception | None = None
        for number in self._later:
            try:
                self._write(number, self.matrix().cells[number])
            except (Refusal, OSError) as error:
                found = found or error
        return found

    def _write(self, number: int, cell: Cell) -> bool:
        """Write the tables of a setting that is complete; return whether they were not there."""
        if (whole := cell.whole) is None or not (self._has_new[number] or not is_written(whole)):
            return False
        write(whole)
        return True

    def _so_far(self, cells: Sequence[Cell]) -> Matrix:
        found = []
        for cell in cells:  # what is there from before is looked at in its turn, and counts from then on
            members = [each for each in cell.comparison.members if each.path not in self._settled]
            before = [self.before[each.path] for each in members if each.path in self.before]
            missing = {(each.item.label, each.seed) for each in members if each.path not in self.before}
            failures = _in_order(cell.comparison, [*cell.failures, *before])
            found.append(Cell(cell.setting, cell.comparison, failures, frozenset(missing)))
        return dataclasses.replace(self._matrix, cells=tuple(found))

    def _tell(self) -> None:
        """Say how many runs are still to come, and how long they may take."""
        times = [self._estimate.left(number, member) for number, member in self._ahead.values()]
        known = [each for each in times if each is not None]
        self._listener.left(len(times), makespan(known, self._at_once) if len(known) == len(times) else None)


def unsettled(matrix: Matrix, plans: Sequence[Sequence[str]]) -> frozenset[Path]:
    """Return the folders of runs that are run anew, whose times tell nothing."""
    return frozenset(
        member.path
        for cell, plan in zip(matrix.cells, plans, strict=True)
        for member, how in zip(cell.comparison.members, plan, strict=True)
        if how in ("changed", "new")
    )


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


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _in_order(comparison: Comparison, failures: Sequence[Failure]) -> tuple[Failure, ...]:
    """Return failures in the order of the runs, whichever came first."""
    by_run = {(each.label, each.seed): each for each in failures}
    pairs = ((member.item.label, member.seed) for member in comparison.members)
    return tuple(by_run[pair] for pair in pairs if pair in by_run)


def _failed_before(matrix: Matrix, plans: Sequence[Sequence[str]]) -> dict[Path, Failure]:
    """Return the runs that had failed when the tables of all settings were last written, by folder.

    Those that are run anew, as their code is another now, are not among them.
    """
    found, folder = {}, matrix.path
    still = {
        member.path
        for cell, plan in zip(matrix.cells, plans, strict=True)
        for member, how in zip(cell.comparison.members, plan, strict=True)
        if how in ("resumed", "new")
    }
    try:
        for setting in read_sealed(folder / FILE).get("settings", ()):
            for run in setting["runs"]:
                if run["failed"] and (path := folder / setting["folder"] / run["folder"]) in still:
                    found[path] = Failure(run["strategy"], run["seed"], run["failed"], run["is_saved"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # there is none, or it is written anew
        return {}
    return found


# ---- one run -------------------------------------------------------------------------------------------------


def _failure(member: Member, error: Exception | None) -> Failure | None:
    """Return how a run failed, by what it ended with.

    Raises:
        StopRequested: All is to stop.
        OSError: The disk is full, and the next run would fare no better.
    """
    label, seed = member.item.label, member.seed
    if error is None:
        try:
            member.measures  # noqa: B018 - a summary that is damaged is this run's failure, and not that of the table
        except Exception as damage:  # noqa: BLE001 - as of the run itself
            error = damage
    if error is None:
        return None
    if isinstance(error, StopRequested) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        raise error
    trace = error.trace if isinstance(error, RunFailedError) else ""
    if is_unforeseen(error):
        trace = "".join(traceback.format_exception(error))
    return Failure(label, seed, reason(error), isinstance(error, RunStoppedError), trace)


# ---- how long a run takes ------------------------------------------------------------------------------------


class _Spent(Listener):
    """Tells the estimate what a run that goes on has taken so far.

    Args:
        estimate: Of all runs.
        member: The run.
    """

    def __init__(self, estimate: Estimate, member: Member) -> None:
        self._estimate, self._member = estimate, member

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        self._estimate.spend(self._member, seconds)


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
        if self._num_rounds == _PROBED_ROUNDS and round_ < num_rounds:
            self.asked = True
            (self._folder / "stop").touch()


class _Probes(Course):
    """First rounds of a run in some settings.

    Args:
        matrix: All runs.
        estimate: Learns from them.
        listener: Told of everything that happens.
    """

    def __init__(self, matrix: Matrix, estimate: Estimate, listener: Watcher) -> None:
        self._matrix, self._estimate, self._listener = matrix, estimate, listener

    def begins(self, job: Job) -> None:
        self._listener.setting(job.number + 1, len(self._matrix.cells), job.setting, probed=True)
        self._matrix.cells[job.number].comparison.path.mkdir(parents=True, exist_ok=True)

    def ended(self, job: Job, error: Exception | None) -> None:
        if isinstance(error, StopRequested) and not (isinstance(job.beside, _FirstRounds) and job.beside.asked):
            raise error
        (job.member.path / "stop").unlink(missing_ok=True)  # it may have ended before it saw that
        if error is None or isinstance(error, StopRequested):
            self._estimate.learn(job.number, job.member)
        # What failed is tried again in its turn, and written down then.


def _probe(
    matrix: Matrix,
    plans: Sequence[Sequence[str]],
    estimate: Estimate,
    listener: Watcher,
    runs: Runs,
    at_once: int,
) -> None:
    """Begin a run in each setting in which nothing was measured, and stop it after its first rounds.

    Of a budget of seconds nothing may be begun and stopped: what the run spends is what the others get.
    """
    asked, index = [], 1
    for number, cell in enumerate(matrix.cells):
        member, how, own, index = cell.comparison.members[0], plans[number][0], index, index + len(plans[number])
        is_short = member.experiment.run.rounds < _LEAST_ROUNDS
        if estimate.is_known(number) or how == "reused" or is_short or matrix.budget == "seconds":
            continue
        # Its number is that of the run it is the beginning of; one after the other each is announced by its setting.
        place = (own, matrix.num_runs) if at_once > 1 else (1, 1)
        asked.append(Job(member, *place, cell.comparison, number, cell.setting.label, _FirstRounds()))
    runs.go(asked, _Probes(matrix, estimate, listener))
