"""How many runs of a comparison go on at once, and in which order they begin and are told of.

One at a time is carried out in this process; several each have a process of their own (`side_by_side.py`). Which of the
two it is changes no result: a run's bits depend on its experiment alone.
"""

from __future__ import annotations

import heapq
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from umbel.core.device import num_cpus
from umbel.core.refusal import Refusal
from umbel.server import reading
from umbel.server.errors import RunStoppedError
from umbel.server.listener import Listener
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare.comparison import Comparison, Member
from umbel.simulations.compare.run_member import run_member

_KEY = "--at-once"


@dataclass(frozen=True, eq=False)
class Job:
    """A run to carry out.

    Attributes:
        member: The run.
        index: Which run it is, from 1.
        total: Of how many.
        comparison: Whose run it is, by whose budget it goes; None of none.
        number: Of its setting, from 0.
        setting: The setting's label; empty of one setting.
        beside: Told of the run as well.
    """

    member: Member
    index: int
    total: int
    comparison: Comparison | None = None
    number: int = 0
    setting: str = ""
    beside: Listener | None = None

    @property
    def reference(self) -> Member | None:
        """The run whose cost this one may have; None where it goes by rounds, or is that run."""
        if self.comparison is None or self.comparison.budget == "rounds":
            return None
        first = next(each for each in self.comparison.members if each.seed == self.member.seed)
        return None if first.path == self.member.path else first

    def budgeted(self) -> Member:
        """Return the run with what it may cost.

        Raises:
            RunStoppedError: That is not known, as the run that it goes by has not ended.
        """
        if self.comparison is None:
            return self.member
        reference, budget = self.reference, self.comparison.budget
        if reference is not None and not (reference.path / reading.SUMMARY).is_file():
            raise RunStoppedError(f"its {budget} are to be those of {reference.path.name}, which has not ended.")
        return self.comparison.budgeted(self.member)


class Course:
    """What is done about jobs as they come and go; by default nothing."""

    def is_ready(self, job: Job) -> bool:
        """Say whether a job can begin now, or has to wait for another."""
        return True

    def begins(self, job: Job) -> None:
        """A job is about to begin."""

    def ended(self, job: Job, error: Exception | None) -> None:
        """A job has ended, well or not; what this raises stops all others."""

    def meanwhile(self) -> None:
        """As many jobs go on as may, or are about to: now is the time for what takes a while."""


class Runs(ABC):
    """Carries out runs; those still under way are stopped, and saved, when the context ends.

    Args:
        listener: Told of everything that happens.
        keep: What other code has made is used again.
    """

    def __init__(self, listener: Watcher, keep: bool = False) -> None:
        self._listener, self._keep = listener, keep

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @abstractmethod
    def go(self, jobs: Sequence[Job], course: Course) -> None:
        """Carry jobs out, beginning in their order."""


class InTurn(Runs):
    """Carries out one run after the other, in this process."""

    def go(self, jobs: Sequence[Job], course: Course) -> None:
        for job in jobs:
            course.meanwhile()
            course.begins(job)
            error: Exception | None = None
            try:
                run_member(job.budgeted(), job.index, job.total, self._listener, self._keep, job.beside)
            except Exception as raised:  # noqa: BLE001 - the course knows what it means
                error = raised
            course.ended(job, error)
        course.meanwhile()


def carrying_out(at_once: int, listener: Watcher, keep: bool = False) -> Runs:
    """Return who carries out runs, so many at once."""
    if at_once == 1:
        return InTurn(listener, keep)
    from umbel.simulations.compare.side_by_side import SideBySide

    return SideBySide(at_once, listener, keep)


def how_many(
    asked: int | str | None, members: Sequence[Member], budget: str = "rounds", key: str = _KEY
) -> tuple[int, str]:
    """Return how many runs go on at once, and what should be known about it; nothing is "".

    Args:
        asked: A number, or `auto`: as many as cores hold, by `run.threads`; None or "" is one.
        members: All runs.
        budget: What they have equally much of.
        key: Where that was asked.

    Raises:
        Refusal: It is no such number, or runs would be in each other's way.
    """
    number = _number(asked, key)
    if number == 1:
        return 1, ""
    threads = max(each.experiment.run.threads for each in members)
    if reason := _alone(members, budget):
        if number is None:
            return 1, f"{key} auto: one run at a time, since {reason}."
        remedy = "Leave it out" if key == _KEY else "Take it out of the file"
        raise Refusal(f"{key} {number}: {reason}.", key=key, remedy=f"{remedy}, or say {_KEY} 1.")
    fit = max(num_cpus() // threads, 1)
    if number is None:
        number = fit if all(each.experiment.client.device == "cpu" or _on_cpu(each) for each in members) else 1
        return min(number, len(members)), "" if number == fit else (
            f"{key} auto: one run at a time on a GPU. With a number, such as 2, so many share it."
        )
    number = min(number, len(members))
    if number > fit:
        shared = f"{number} runs at once of run.threads={threads} share {num_cpus()} cores"
        return number, f"{shared}: {_KEY} {fit} is likely to be as fast, and takes less memory."
    return number, ""


def makespan(seconds: Iterable[float], at_once: int) -> float:
    """Return how long runs take, each beginning in its turn as soon as one of `at_once` places is free."""
    places = [0.0] * at_once
    for each in seconds:
        heapq.heapreplace(places, places[0] + each)
    return max(places)


def _number(asked: int | str | None, key: str) -> int | None:
    """Return what was asked for; None is `auto`."""
    if asked in (None, ""):
        return 1
    text = str(asked).strip()
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise Refusal(f"{key} takes a number from 1, or auto; found {text!r}.", key=key, remedy="Such as 2.")
    return int(text)


def _alone(members: Sequence[Member], budget: str) -> str:
    """Return why runs cannot go on beside each other; "" where they can."""
    if sys.platform == "win32":
        return "that takes processes as Linux and macOS have them"
    engines = sorted({each.experiment.engine.name for each in members} - {"inline"})
    if engines:
        return f"a run on engine.name={engines[0]} has processes for all cores by itself; engine.name=inline has one"
    if budget == "seconds":
        return "the budget is seconds, and those of runs that share a machine are not those of one that has it alone"
    return ""


def _on_cpu(member: Member) -> bool:
    from umbel.core.device import resolve

    return resolve(member.experiment.client.device).type == "cpu"
