"""Comparisons of the same strategies, with the same seeds, in several settings, and what they tell together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from umbel.conf.errors import ExperimentError
from umbel.conf.sweep import Setting
from umbel.core.metrics import mean_and_deviation
from umbel.simulations.compare.across import Ranking, ranking
from umbel.simulations.compare.comparison import Comparison, Item, Member
from umbel.simulations.compare.statistics import interval
from umbel.simulations.report.measures import COLUMNS, MAIN
from umbel.simulations.tune.tuned import Tuned


@dataclass(frozen=True)
class Failure:
    """A run that failed.

    Attributes:
        label: Its strategy.
        seed: Its seed.
        reason: Why, in a line.
        is_saved: It could not go on, and what there was of it is saved.
        trace: Where it happened, of what nobody foresaw.
    """

    label: str
    seed: int
    reason: str
    is_saved: bool = False
    trace: str = ""

    @property
    def sentence(self) -> str:
        """Which run it was, and why."""
        return f"{self.label}, seed {self.seed}, failed: {self.reason}"


@dataclass(frozen=True)
class Cell:
    """A setting and its comparison.

    Attributes:
        setting: Of all its runs.
        comparison: All runs that were asked for.
        failures: Those that failed.
        missing: Strategy and seed of those that have not been carried out yet, or not to their end.
    """

    setting: Setting
    comparison: Comparison
    failures: tuple[Failure, ...] = ()
    missing: frozenset[tuple[str, int]] = frozenset()

    @cached_property
    def failed(self) -> frozenset[tuple[str, int]]:
        """Strategy and seed of the runs that failed."""
        return frozenset((each.label, each.seed) for each in self.failures)

    @cached_property
    def absent(self) -> frozenset[tuple[str, int]]:
        """Strategy and seed of the runs of which there is nothing to tell."""
        return self.failed | self.missing

    @property
    def ended(self) -> list[Member]:
        """The runs that have ended and did not fail."""
        return [each for each in self.comparison.members if (each.item.label, each.seed) not in self.absent]

    @cached_property
    def whole(self) -> Comparison | None:
        """The comparison of the strategies that have all their runs, which says who has not; None where nobody has.

        Seeds are left out, and named, of which such a strategy's run is missing.
        """
        if not self.absent:
            return self.comparison
        lacking = {label for label, _ in self.failed}
        items = tuple(item for item in self.comparison.items if item.label not in lacking)
        labels = {item.label for item in items}
        lacking_seeds = {seed for label, seed in self.missing if label in labels}
        seeds = tuple(seed for seed in self.comparison.seeds if seed not in lacking_seeds)
        open_seeds = tuple(seed for seed in self.comparison.seeds if seed in lacking_seeds)
        members = tuple(each for each in self.comparison.members if each.item in items and each.seed in seeds)
        said = tuple(f"Not in the table: {each.sentence}" for each in self.failures)
        found = replace(self.comparison, items=items, seeds=seeds, members=members, failed=said, open_seeds=open_seeds)
        return found if items and seeds else None

    def values(self, label: str, measure: str) -> list[float]:
        """Return a measure of a strategy, one value a seed; NaN of a run that is not there or did not measure it."""
        return [
            math.nan if (label, each.seed) in self.absent else each.measures[measure]
            for each in self.comparison.of(label)
        ]

    def num_failed(self, label: str) -> int:
        """Return how many runs of a strategy failed."""
        return sum(each.label == label for each in self.failures)

    def num_missing(self, label: str) -> int:
        """Return how many runs of a strategy are still to come."""
        return sum(each == label for each, _ in self.missing)


@dataclass(frozen=True)
class Matrix:
    """Comparisons of the same strategies, with the same seeds, in several settings.

    Attributes:
        path: The folder, which has a folder for each setting.
        cells: One for each setting, in their order.
        source: The experiment's name, or the path of its file.
        overrides: `key=value` each, of all settings.
    """

    path: Path
    cells: tuple[Cell, ...]
    source: str
    overrides: tuple[str, ...] = ()

    @property
    def target(self) -> float | None:
        """A value of what the strategies are judged by, of which the settings' tables say what it took to reach it."""
        return self.cells[0].comparison.target

    def aiming(self, target: float | None) -> Matrix:
        """Return the same, whose settings' tables say what it took to come to a target.

        Raises:
            ExperimentError: It is no number.
        """
        if target is not None and not math.isfinite(target):
            raise ExperimentError(f"--target {target} is no number.", key="--target", remedy="Such as 0.8.")
        cells = (replace(cell, comparison=replace(cell.comparison, target=target)) for cell in self.cells)
        return replace(self, cells=tuple(cells))

    @property
    def items(self) -> tuple[Item, ...]:
        """The strategies."""
        return self.cells[0].comparison.items

    @property
    def labels(self) -> list[str]:
        """The strategies' labels."""
        return [item.label for item in self.items]

    @property
    def tuned(self) -> Tuned | None:
        """What tuning chose for the strategies, in all settings."""
        return self.cells[0].comparison.tuned

    @property
    def untuned(self) -> list[str]:
        """The strategies that have the experiment's own values where others have tuned ones."""
        return self.cells[0].comparison.untuned

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return self.cells[0].comparison.seeds

    @property
    def budget(self) -> str:
        """What all runs of a setting and seed have equally much of."""
        return self.cells[0].comparison.budget

    @property
    def num_runs(self) -> int:
        """How many runs there are in all settings."""
        return sum(len(cell.comparison.members) for cell in self.cells)

    @property
    def failures(self) -> list[tuple[Cell, Failure]]:
        """All runs that failed."""
        return [(cell, each) for cell in self.cells for each in cell.failures]

    @property
    def num_missing(self) -> int:
        """How many runs are still to come."""
        return sum(len(cell.missing) for cell in self.cells)

    @property
    def incomplete(self) -> list[str]:
        """The runs that lost clients for good, a sentence each."""
        return [
            f"{cell.setting.label}: {each.item.label}, seed {each.seed}: {each.lost}"
            for cell in self.cells
            for each in cell.ended
            if each.lost
        ]

    @cached_property
    def main(self) -> str | None:
        """What all are judged by: the first of `MAIN` that every run has that did not fail; None without one."""
        runs = [each for cell in self.cells for each in cell.ended]
        return next((key for key in MAIN if runs and not any(math.isnan(each.measures[key]) for each in runs)), None)

    @cached_property
    def distinct(self) -> tuple[Cell, ...]:
        """The settings that count in ranks and profiles: those without a missing run, and only one of equal ones.

        One whose runs all came to what another's came to varies what has no effect, and is no further evidence.
        """
        found: dict[object, Cell] = {}
        for cell in self.cells:
            if cell.missing:
                continue
            came_to = (
                (each.item.label, each.seed, each.summary["weights_sha256"], each.measures[self.main or MAIN[0]])
                for each in cell.comparison.members
            )
            found.setdefault(cell.setting.label if cell.failures else repr(list(came_to)), cell)
        return tuple(found.values())

    def mean_and_deviation(self, cell: Cell, label: str) -> tuple[float, float]:
        """Return mean and sample standard deviation of the main measure; NaN where a run failed, or there is none."""
        values = cell.values(label, self.main) if self.main else [math.nan]
        return (math.nan, math.nan) if any(map(math.isnan, values)) else mean_and_deviation(values)

    def interval(self, cell: Cell, label: str) -> tuple[float, float]:
        """Return the bootstrap interval of that mean, as `statistics.interval`."""
        values = cell.values(label, self.main) if self.main else [math.nan]
        return (math.nan, math.nan) if any(map(math.isnan, values)) else interval(values)

    def is_best(self, cell: Cell, label: str) -> bool:
        """Say whether a strategy is told to be better than every other in a setting, none of whose runs failed."""
        return self.main is not None and not cell.absent and cell.comparison.best(self.main) == label

    @property
    def scores(self) -> dict[str, list[float]]:
        """By strategy its mean in each setting that counts, NaN where a run of it failed."""
        return {label: [self.mean_and_deviation(cell, label)[0] for cell in self.distinct] for label in self.labels}

    @cached_property
    def ranking(self) -> Ranking | None:
        """The strategies' ranks over settings; None of one strategy, or where they share no measure."""
        if self.main is None or len(self.items) < 2 or not self.distinct:
            return None
        return ranking(self.scores, COLUMNS[self.main].aim)

    @property
    def regrets(self) -> dict[str, list[float]]:
        """By strategy how far it is behind the best run of each setting and seed; infinity for one that failed."""
        found: dict[str, list[float]] = {label: [] for label in self.labels}
        for values in self._runs():
            best = max(values.values(), default=math.nan)
            for label in self.labels:
                found[label].append(best - values[label] if label in values else math.inf)
        return found

    def _runs(self) -> Iterator[dict[str, float]]:
        """Give for each setting and seed the strategies' main measure, more being better, without runs that failed."""
        for cell in self.distinct if self.main else ():
            aim = COLUMNS[self.main or ""].aim
            columns = {label: cell.values(label, self.main or "") for label in self.labels}
            for number in range(len(self.seeds)):
                row = {label: aim * values[number] for label, values in columns.items()}
                yield {label: value for label, value in row.items() if not math.isnan(value)}


def so_far(comparison: Comparison, plan: Sequence[str]) -> frozenset[tuple[str, int]]:
    """Return strategy and seed of the runs that are still to come.

    Args:
        comparison: All runs.
        plan: What becomes of each, from `plan.states`.
    """
    pairs = zip(comparison.members, plan, strict=True)
    return frozenset((member.item.label, member.seed) for member, how in pairs if how != "reused")


def in_order(comparison: Comparison, failures: Sequence[Failure]) -> tuple[Failure, ...]:
    """Return failures in the order of the runs, whichever came first.

    Args:
        comparison: All runs.
        failures: Of some of them.
    """
    by_run = {(each.label, each.seed): each for each in failures}
    pairs = ((member.item.label, member.seed) for member in comparison.members)
    return tuple(by_run[pair] for pair in pairs if pair in by_run)
