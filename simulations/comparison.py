"""Finished runs of several strategies with the same seeds: means, deviations, paired differences, tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from conf.load import load
from conf.schema import Experiment
from core.files import read_json
from core.metrics import mean_and_deviation
from server.main import summary

# key -> (title, unit)
MEASURES: dict[str, tuple[str, str]] = {
    "test_last": ("test, last", "accuracy"),
    "test_best": ("test, best", "accuracy"),
    "clients_mean": ("clients' mean", "accuracy"),
    "clients_worst10": ("worst 10 %", "accuracy"),
    "mb_per_round": ("MB a round", "MB"),
    "seconds": ("seconds", "s"),
}


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
        """What the table shows of this run, by the keys of `MEASURES`; NaN where not measured."""
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
        if MEASURES[measure][1] != "accuracy":
            return None
        means = {item.label: self.mean_and_deviation(item.label, measure)[0] for item in self.items}
        if len(self.seeds) < 2 or len(means) < 2 or any(math.isnan(mean) for mean in means.values()):
            return None
        best = max(means, key=means.__getitem__)
        for other in means.keys() - {best}:
            difference, error = self.difference(best, other, measure)
            if difference <= error:
                return None
        return best


def measures(content: dict[str, Any]) -> dict[str, float]:
    """Return what a comparison measures of a run's summary, by the keys of `MEASURES`."""
    found, rounds = content["metrics"], max(int(content["rounds"]), 1)
    moved = sum(content["bytes_up"].values()) + sum(content["bytes_down"].values())
    return {
        "test_last": found.get("test/accuracy", math.nan),
        "test_best": found.get("best/test/accuracy", math.nan),
        "clients_mean": found.get("clients/test/accuracy_mean", math.nan),
        "clients_worst10": found.get("clients/test/accuracy_worst10", math.nan),
        "mb_per_round": moved / rounds / 1e6,
        "seconds": content["seconds"]["total"],
    }


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


def markdown(comparison: Comparison) -> str:
    """Return the comparison's table in Markdown."""
    heads = ["strategy", *(title for title, _ in MEASURES.values()), "difference"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for item in comparison.items:
        cells = [cell(comparison, item.label, measure) for measure in MEASURES]
        lines.append("| " + " | ".join([item.label, *cells, difference_cell(comparison, item.label)]) + " |")
    return "\n".join(lines) + "\n\n" + footnote(comparison) + "\n"


def cell(comparison: Comparison, label: str, measure: str) -> str:
    """Return `mean ± deviation`, with a star for a best that can be told."""
    mean, deviation = comparison.mean_and_deviation(label, measure)
    if math.isnan(mean):
        return "–"
    digits = 4 if MEASURES[measure][1] == "accuracy" else 1 if measure == "seconds" else 2
    spread = f" ± {deviation:.{digits}f}" if len(comparison.seeds) > 1 else ""
    star = " *" if comparison.best(measure) == label else ""
    return f"{mean:.{digits}f}{spread}{star}"


def difference_cell(comparison: Comparison, label: str, measure: str = "test_last") -> str:
    """Return the paired difference to the first strategy with its standard error."""
    reference = comparison.items[0].label
    if label == reference:
        return "reference"
    mean, error = comparison.difference(label, reference, measure)
    if math.isnan(mean):
        return "–"
    return f"{mean:+.4f}" + ("" if math.isnan(error) else f" ± {error:.4f}")


def footnote(comparison: Comparison) -> str:
    """Say how to read the table."""
    seeds = comparison.seeds
    if len(seeds) < 2:
        return "One seed: no deviation and no ranking; add seeds, such as --seeds 3."
    shared = comparison.members[0].experiment.data.seed is not None
    partition = "all share one partition" if shared else "each draws its own partition"
    return (
        f"Mean ± sample standard deviation over {len(seeds)} seeds ({', '.join(map(str, seeds))}; "
        f"{partition}). Test: the server's, in the last round and in the best, which validation data choose. "
        "Clients: each on its own test, last round. Difference: of test, last, to "
        f"{comparison.items[0].label}, paired by seed, ± its standard error. * best, by more than one standard "
        "error of the paired difference to every other."
    )
