"""Finished runs of several strategies with the same seeds: means, deviations, paired differences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from umbel.conf.load import load
from umbel.conf.schema import Experiment
from umbel.core.files import read_json
from umbel.core.metrics import mean_and_deviation
from umbel.server.main import summary
from umbel.simulations.report.measures import COLUMNS, MAIN, NOT_OF_TASKS


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
        return dict(summary(self.path))

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """The run's metrics, long and tidy."""
        return pd.read_parquet(self.path / "metrics.parquet")

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
    """

    path: Path
    items: tuple[Item, ...]
    seeds: tuple[int, ...]
    members: tuple[Member, ...]
    source: str
    overrides: tuple[str, ...] = ()

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

    def of(self, label: str) -> list[Member]:
        """Return the runs of a strategy in the order of the seeds."""
        return [member for member in self.members if member.item.label == label]

    def values(self, label: str, measure: str) -> list[float]:
        """Return a measure of a strategy, one value a seed."""
        return [member.measures[measure] for member in self.of(label)]

    def mean_and_deviation(self, label: str, measure: str) -> tuple[float, float]:
        """Return mean and sample standard deviation over seeds."""
        return mean_and_deviation(self.values(label, measure))

    def difference(self, label: str, other: str, measure: str) -> tuple[float, float]:
        """Return the mean of `label` minus `other` over seeds and its standard error (NaN for one seed)."""
        pairs = zip(self.values(label, measure), self.values(other, measure), strict=True)
        mean, deviation = mean_and_deviation([a - b for a, b in pairs])
        return mean, deviation / math.sqrt(len(self.seeds)) if len(self.seeds) > 1 else math.nan

    def best(self, measure: str) -> str | None:
        """Return the label of the best strategy, or None where it cannot be told.

        It cannot with a single seed or strategy, when the paired difference to any other strategy is within
        one standard error, or for what is a cost (bytes, seconds) and not an aim.
        """
        aim = COLUMNS[measure].aim
        means = {item.label: aim * self.mean_and_deviation(item.label, measure)[0] for item in self.items}
        if not aim or len(self.seeds) < 2 or len(means) < 2 or any(math.isnan(mean) for mean in means.values()):
            return None
        best = max(means, key=means.__getitem__)
        for other in means.keys() - {best}:
            difference, error = self.difference(best, other, measure)
            if aim * difference <= error:
                return None
        return best


def measures(content: dict[str, Any]) -> dict[str, float]:
    """Return what a comparison measures of a run's summary, by the keys of `COLUMNS`."""
    metrics, rounds = content["metrics"], max(int(content["rounds"]), 1)
    moved = sum(content["bytes_up"].values()) + sum(content["bytes_down"].values())
    costs = {"mb_per_round": moved / rounds / 1e6, "seconds": content["seconds"]["total"]}
    measured = {key: metrics.get(measure.metric) for key, measure in COLUMNS.items()}
    return {key: math.nan if value is None else value for key, value in (measured | costs).items()}


def read_comparison(folder: Path) -> Comparison:
    """Read a comparison's folder.

    Raises:
        FileNotFoundError: It is none.
    """
    content = read_json(folder / "comparison.json")
    items = tuple(Item(item["label"], item["name"], tuple(item["options"])) for item in content["strategies"])
    by_label = {item.label: item for item in items}
    members = []
    for run in content["runs"]:
        path = folder / run["folder"]
        text = (path / "config.yaml").read_text(encoding="utf-8")
        members.append(Member(by_label[run["strategy"]], run["seed"], load("config", (), text), path))
    source, overrides = content["source"], tuple(content["overrides"])
    return Comparison(folder, items, tuple(content["seeds"]), tuple(members), source, overrides)
