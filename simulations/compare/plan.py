"""What a comparison still has to run, and how long that may take by what was measured so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from umbel.core.refusal import Refusal
from umbel.server import reading
from umbel.server.listener import events
from umbel.simulations.compare.comparison import Comparison, Member
from umbel.simulations.compare.matrix import Matrix
from umbel.simulations.compare.run_member import look

STATES = ("reused", "resumed", "changed", "new")


def states(comparison: Comparison, fresh: bool = False, keep: bool = False) -> list[str]:
    """Return what becomes of each run of a comparison, of `STATES`; nothing is changed.

    Args:
        comparison: Its runs.
        fresh: Everything is run anew.
        keep: What other code has made is used again.
    """
    if fresh:
        return ["new"] * len(comparison.members)
    found = []
    for member in comparison.members:
        reference = next(each for each in comparison.members if each.seed == member.seed)
        known = comparison.budget == "rounds" or (reference.path / reading.SUMMARY).is_file()
        try:
            found.append(look(comparison.budgeted(member) if known else member, keep, known)[0])
        except Refusal:  # what it would go by cannot be read: said in its turn, and the others go on
            found.append("new")
    return found


def unsettled(matrix: Matrix, plans: Sequence[Sequence[str]]) -> frozenset[Path]:
    """Return the folders of runs that are run anew, whose times tell nothing.

    Args:
        matrix: All runs.
        plans: What becomes of each, by setting, from `states`.
    """
    return frozenset(
        member.path
        for cell, plan in zip(matrix.cells, plans, strict=True)
        for member, how in zip(cell.comparison.members, plan, strict=True)
        if how in ("changed", "new")
    )


class Estimate:
    """How long runs take: measured where one of that setting and strategy is there, else what the others suggest.

    A strategy is taken to be as many times slower than another in one setting as in the others. What is measured is the
    whole seconds of runs that have ended, and of others the time of their rounds, times how many they are to have.

    Args:
        matrix: All runs.
        unsettled: Runs whose times are not those of the code that is there, by folder: not counted.
    """

    def __init__(self, matrix: Matrix, unsettled: frozenset[Path] = frozenset()) -> None:
        self._matrix = matrix
        self._ended: dict[tuple[int, str], list[float]] = {}
        self._begun: dict[tuple[int, str], list[float]] = {}
        self._spent: dict[Path, float] = {}
        for number, cell in enumerate(matrix.cells):
            for member in cell.comparison.members:
                if member.path not in unsettled:
                    self.learn(number, member)

    def learn(self, number: int, member: Member) -> None:
        """Look at a run's folder, of the setting with this number; one that cannot be read says nothing."""
        key = (number, member.item.label)
        try:
            if (member.path / reading.SUMMARY).is_file():
                whole = float(reading.summary(member.path)["seconds"]["total"])
                self._ended.setdefault(key, []).append(whole)
            elif times := measured(member.path, member.experiment.run.rounds):
                self._spent[member.path], whole = times
                budgeted = member.item != self._matrix.items[0] and self._matrix.budget != "rounds"
                if not budgeted:  # else nobody knows how many rounds it will have
                    self._begun.setdefault(key, []).append(whole)
        except (Refusal, OSError, KeyError, TypeError, ValueError):
            return

    def spend(self, member: Member, seconds: float) -> None:
        """Count what a run that goes on has taken so far."""
        self._spent[member.path] = seconds

    def is_known(self, number: int) -> bool:
        """Say whether anything was measured in a setting."""
        return any(cell == number for cell, _ in self._known)

    def whole(self, number: int, label: str) -> float | None:
        """Return the seconds of a whole run of a setting and strategy; None where nothing was measured at all."""
        known = self._known
        if (number, label) in known:
            return known[number, label]
        ratios = self._ratios(known)
        bases: dict[int, list[float]] = {}
        for (cell, each), seconds in known.items():
            bases.setdefault(cell, []).append(seconds / ratios[each])
        if not bases:
            return None
        base = fmean(bases[number]) if number in bases else fmean(map(fmean, bases.values()))
        return base * ratios[label]

    def left(self, number: int, member: Member) -> float | None:
        """Return the seconds that a run which has not ended still takes; None where nothing was measured at all."""
        whole = self.whole(number, member.item.label)
        return None if whole is None else max(whole - self._spent.get(member.path, 0.0), 0.0)

    @property
    def _known(self) -> dict[tuple[int, str], float]:
        return {key: fmean(each) for key, each in {**self._begun, **self._ended}.items()}

    def _ratios(self, known: Mapping[tuple[int, str], float]) -> dict[str, float]:
        """Return how many times as long each strategy takes as the first, over the settings that know of both."""
        first, ratios = self._matrix.labels[0], {}
        for label in self._matrix.labels:
            both = [
                known[number, label] / known[number, first]
                for number in range(len(self._matrix.cells))
                if (number, label) in known and known.get((number, first), 0.0) > 0
            ]
            ratios[label] = max(fmean(both), 1e-6) if both else 1.0
        return ratios


def measured(folder: Path, rounds: int) -> tuple[float, float] | None:
    """Return the seconds that an unfinished run took so far, and those that the whole of it would take.

    Args:
        folder: The run's.
        rounds: How many it is to have.

    Returns:
        None where no round is done. The first round, in which everything is new, counts only where it is the only one.
    """
    lengths: list[float] = []
    began, first, last = math.nan, 0.0, 0.0
    for event in events(folder):
        if event["event"] == "phase":
            began = event["time"] if math.isnan(began) else began
        elif event["event"] == "round":
            last = float(event["seconds"])
            first = last if not lengths else first
            lengths.append(event["time"] - began)
            began = math.nan
        elif event["event"] in ("begin", "resumed"):
            began = math.nan
    if not (known := [each for each in lengths if math.isfinite(each)]):
        return None
    a_round = fmean(known[1:] or known)
    return last, max(first - known[0], 0.0) + known[0] + a_round * (rounds - 1)
