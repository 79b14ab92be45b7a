"""The course of a comparison in several settings: what is done about each run as it begins, goes on and ends.

A run that fails is written down and the others go on. The tables of all come with each setting that is complete; they
say what is still to come.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from umbel.core.refusal import Refusal
from umbel.server.listener import Listener
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare.at_once import Course, Job, makespan
from umbel.simulations.compare.carry_out import write
from umbel.simulations.compare.comparison import Member, is_written
from umbel.simulations.compare.failures import failure_of
from umbel.simulations.compare.matrix import Cell, Failure, Matrix, in_order
from umbel.simulations.compare.plan import Estimate
from umbel.simulations.compare.read_matrix import failed_before
from umbel.simulations.compare.write_matrix import write_matrix

_PAGES_AFTER_SECONDS = 30.0  # sooner nobody looks for pages that are about to change
_SHARE = 20.0  # times what they take, for which the pages of all settings are left as they are


class MatrixCourse(Course):
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
        self.before = {} if fresh else failed_before(matrix, plans)
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
            Cell(cell.setting, cell.comparison, in_order(cell.comparison, failures))
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
        if failure := failure_of(job.member, error):
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
            failures = in_order(cell.comparison, [*cell.failures, *before])
            found.append(Cell(cell.setting, cell.comparison, failures, frozenset(missing)))
        return dataclasses.replace(self._matrix, cells=tuple(found))

    def _tell(self) -> None:
        """Say how many runs are still to come, and how long they may take."""
        times = [self._estimate.left(number, member) for number, member in self._ahead.values()]
        known = [each for each in times if each is not None]
        self._listener.left(len(times), makespan(known, self._at_once) if len(known) == len(times) else None)


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
