"""Finished runs of several strategies with the same seeds: means, deviations, paired differences."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from umbel.conf.errors import ExperimentError
from umbel.conf.schema import Experiment
from umbel.core.files import DamagedError, read_sealed
from umbel.core.metrics import mean_and_deviation
from umbel.core.refusal import Refusal
from umbel.models.facts import flops
from umbel.server import coverage, reading
from umbel.simulations.compare.statistics import Difference, between_all, compared, interquartile_mean, interval
from umbel.simulations.report import cost_series
from umbel.simulations.report.measures import COLUMNS, MAIN, NOT_OF_TASKS
from umbel.simulations.tune.tuned import Tuned

_WRITTEN = ("table.md", "table.tex", "table.csv", "curves.png", "partition.png", "report.html")


@dataclass(frozen=True)
class Item:
    """A strategy to compare.

    Attributes:
        label: As it was written, without blanks.
        name: The strategy's name.
        options: `key=value` each.
    """

    label: str
    name: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Member:
    """A run of a comparison.

    Attributes:
        item: Which strategy.
        seed: Which seed.
        experiment: The composed experiment.
        path: The run's folder.
    """

    item: Item
    seed: int
    experiment: Experiment
    path: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Content of the run's summary.json."""
        return dict(reading.summary(self.path))

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """The run's metrics, long and tidy."""
        frame: pd.DataFrame = reading.metrics(self.path).to_pandas()
        return frame

    @cached_property
    def costs(self) -> dict[str, float]:
        """What the run cost, by `umbel.core.schedule.COSTS`; NaN where that is not known."""
        return costs(self.summary)

    @cached_property
    def costs_by_round(self) -> dict[str, cost_series.Series]:
        """What the run had cost after each round, by `charts.COST_AXES`."""
        return cost_series.costs_by_round(self.metrics)

    @cached_property
    def lost(self) -> str:
        """Which clients the run lost for good, in words; empty when it lost none."""
        return coverage.in_words(self.summary)

    @cached_property
    def measures(self) -> dict[str, float]:
        """What the table shows of this run, by the keys of `COLUMNS`; NaN where not measured."""
        return measures(self.summary)


@dataclass(frozen=True)
class Comparison:
    """Finished runs of several strategies with the same seeds.

    Attributes:
        path: The comparison's folder.
        items: The strategies, the first being the reference of differences.
        seeds: The seeds.
        members: One run for each seed and strategy.
        source: The experiment's name, or the path of its file.
        overrides: `key=value` each, of all runs.
        budget: What all runs of a seed have equally much of: rounds, or one of `umbel.core.schedule.COSTS`.
        failed: Runs that failed, a sentence each; their strategies are not among the items.
        tuned: What tuning chose for them; None where all have the experiment's own values.
        target: A value of what they are judged by, of which the tables say what it took to come there; None of none.
        open_seeds: Seeds that were asked for and are left out, since not all their runs have ended.
    """

    path: Path
    items: tuple[Item, ...]
    seeds: tuple[int, ...]
    members: tuple[Member, ...]
    source: str
    overrides: tuple[str, ...] = ()
    budget: str = "rounds"
    failed: tuple[str, ...] = ()
    tuned: Tuned | None = None
    target: float | None = None
    open_seeds: tuple[int, ...] = ()

    @cached_property
    def shown(self) -> tuple[str, ...]:
        """The measures that all runs of any strategy have; those of a sequence of tasks in place of plain accuracy."""
        measured = [key for key in COLUMNS if len(self.lacking(key)) < len(self.items)]
        return tuple(key for key in measured if "acc" not in measured or key not in NOT_OF_TASKS)

    @cached_property
    def main(self) -> str | None:
        """What the strategies are judged by: the first of `MAIN` that all runs have, else the reference's; or None."""
        whole = [key for key in MAIN if key in self.shown and not self.lacking(key)]
        own = [key for key in MAIN if key in self.shown and self.items[0].label not in self.lacking(key)]
        return next(iter(whole + own), None)

    def lacking(self, measure: str) -> list[str]:
        """Return the strategies some of whose runs do not have a measure."""
        return [item.label for item in self.items if any(map(math.isnan, self.values(item.label, measure)))]

    @property
    def untuned(self) -> list[str]:
        """The strategies that have the experiment's own values where others have tuned ones."""
        return [item.label for item in self.items if self.tuned and not self.tuned.of(item.label)]

    @property
    def to_come(self) -> list[str]:
        """What is left out since it has not ended, a sentence or none."""
        if not self.open_seeds:
            return []
        numbers = ", ".join(map(str, self.open_seeds))
        more = "s" * (len(self.open_seeds) > 1)
        return [f"Not in the table yet: seed{more} {numbers}, whose runs have not all ended."]

    @property
    def incomplete(self) -> list[str]:
        """The runs that lost clients for good, a sentence each."""
        return [f"{each.item.label}, seed {each.seed}: {each.lost}" for each in self.members if each.lost]

    def budgeted(self, member: Member) -> Member:
        """Return a run with what it may cost, which is known when the first strategy's run of its seed has ended."""
        reference = next(each for each in self.members if each.seed == member.seed)
        if self.budget == "rounds" or member.item == reference.item:
            return member
        cost = reference.costs[self.budget]
        if not 0 < cost < math.inf:
            raise ExperimentError(
                f"--budget {self.budget}: {reference.path.name}, by which the others would go, has none that is known."
            )
        budget = f"{self.budget}={cost}"
        run = dataclasses.replace(member.experiment.run, budget=budget)
        return dataclasses.replace(member, experiment=dataclasses.replace(member.experiment, run=run))

    def of(self, label: str) -> list[Member]:
        """Return the runs of a strategy in the order of the seeds."""
        return [member for member in self.members if member.item.label == label]

    def values(self, label: str, measure: str) -> list[float]:
        """Return a measure of a strategy, one value a seed."""
        return [member.measures[measure] for member in self.of(label)]

    def mean_and_deviation(self, label: str, measure: str) -> tuple[float, float]:
        """Return mean and sample standard deviation over seeds."""
        return mean_and_deviation(self.values(label, measure))

    def numbers(self, label: str, measure: str, difference: Difference | None) -> dict[str, Any]:
        """Return what is known of a strategy's measure over seeds, and of its difference to the first strategy."""
        values = self.values(label, measure)
        mean, deviation = self.mean_and_deviation(label, measure)
        numbers: dict[str, Any] = {"mean": mean, "deviation": deviation}
        if all(map(math.isfinite, values)):
            numbers |= {"interval": list(interval(values)), "interquartile_mean": interquartile_mean(values)}
        return numbers if difference is None else numbers | {"difference": dataclasses.asdict(difference)}

    def differences(self, measure: str) -> dict[str, Difference]:
        """Return how each strategy differs from the first, paired by seed, as one family of tests.

        Those that lack the measure in a run are left out; without the first there are none.
        """
        reference = self._values(measure).get(self.items[0].label)
        if reference is None:
            return {}
        others = {label: values for label, values in self._values(measure).items() if label != self.items[0].label}
        pairs = {(label, self.items[0].label): (values, reference) for label, values in others.items()}
        return {label: each for (label, _), each in compared(pairs).items()}

    def best(self, measure: str) -> str | None:
        """Return the label of the strategy that is told to be better than every other, or None.

        That is where the paired permutation tests against all others have p below .05 after Holm's correction over
        all pairs of strategies; never for a cost (bytes, seconds), nor where a run lacks the measure.
        """
        aim, values = COLUMNS[measure].aim, self._values(measure)
        if not aim or len(values) < max(len(self.items), 2):
            return None
        tests = between_all(values)
        for label in values:
            if all(each.is_told and aim * each.mean > 0 for (first, _), each in tests.items() if first == label):
                return label
        return None

    def _values(self, measure: str) -> dict[str, list[float]]:
        """Return a measure of the strategies that have it in all runs."""
        lacking = self.lacking(measure)
        return {item.label: self.values(item.label, measure) for item in self.items if item.label not in lacking}


def measures(content: dict[str, Any]) -> dict[str, float]:
    """Return what a comparison measures of a run's summary, by the keys of `COLUMNS`."""
    metrics, rounds = content["metrics"], max(int(content["rounds"]), 1)
    found = costs(content)
    found["mb_per_round"] = found.pop("bytes") / rounds / 1e6
    found["gflop"] = found.pop("flops") / 1e9
    if "virtual_seconds" in content:
        found["virtual_seconds"] = content["virtual_seconds"]
    measured = {key: metrics.get(measure.metric) for key, measure in COLUMNS.items()}
    return {key: math.nan if value is None else value for key, value in (measured | found).items()}


def costs(content: dict[str, Any]) -> dict[str, float]:
    """Return what a run cost by its summary, by `umbel.core.schedule.COSTS`; NaN where it does not say it."""
    moved = sum(content["bytes_up"].values()) + sum(content["bytes_down"].values())
    spent = content.get("spent", {}).values()
    trained = {what: sum(side[what] for side in spent) if spent else math.nan for what in ("steps", "examples")}
    passes = content.get("passes", {}).values()
    # A run that trained models of its own, of which nothing was counted, has not done it for nothing.
    known = any(passes) or not trained["steps"]
    computed = sum(map(flops, passes)) if known else math.nan
    return {**trained, "flops": computed, "bytes": moved, "seconds": content["seconds"]["total"]}


def read_comparison(folder: Path) -> Comparison:
    """Read a comparison's folder.

    Raises:
        DamagedError: comparison.json is not what was written, or a run of it.
    """
    file = folder / "comparison.json"
    try:
        content = read_sealed(file)
        items = tuple(Item(item["label"], item["name"], tuple(item["options"])) for item in content["strategies"])
        by_label = {item.label: item for item in items}
        runs = [(by_label[run["strategy"]], run["seed"], folder / run["folder"]) for run in content["runs"]]
        budget = content.get("budget", "rounds")
        found = Tuned.from_said(content.get("tuned"))
        source, overrides, seeds = content["source"], tuple(content["overrides"]), tuple(content["seeds"])
        failed, target = tuple(content.get("failed", ())), content.get("target")
        open_seeds = tuple(content.get("open_seeds", ()))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError.of(file, str(error), "Make it again by the command that made it.") from error
    members = tuple(Member(item, seed, reading.experiment(path), path) for item, seed, path in runs)
    return Comparison(folder, items, seeds, members, source, overrides, budget, failed, found, target, open_seeds)


def is_written(comparison: Comparison) -> bool:
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
            each.open_seeds,
        )
        for each in (comparison, there)
    )
    return mine == theirs and all((comparison.path / name).is_file() for name in _WRITTEN)
