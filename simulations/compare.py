"""Compare strategies so that the comparison can be believed: several seeds, deviations, paired differences.

Every strategy runs with the same seeds; a seed fixes the partition, the initial weights and the cohorts, so that
differences between strategies are paired by seed. Finished runs of the same configuration are used again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

import data
from conf.errors import ExperimentError
from conf.load import as_dict, load, read
from conf.schema import Experiment
from core.files import read_json, write_json, write_text
from core.metrics import mean_and_deviation
from server import flower
from server.main import summary
from simulations import api
from simulations.display import Watcher

# key -> (title, unit, more is better)
MEASURES: dict[str, tuple[str, str, bool]] = {
    "test_last": ("test, last round", "accuracy", True),
    "test_best": ("test, best round", "accuracy", True),
    "clients_mean": ("clients' mean", "accuracy", True),
    "clients_worst10": ("worst 10 %", "accuracy", True),
    "bytes_per_round": ("MB a round", "MB", False),
    "seconds": ("seconds", "s", False),
}
_EXPECTED = "--strategies takes names, each with options in brackets: 'fedavg,fedprox(mu=0.1),scaffold'"


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
        """What the comparison's table shows of this run, by the keys of `MEASURES`; NaN where not measured."""
        return measures(self.summary)


@dataclass(frozen=True)
class Comparison:
    """Finished runs of several strategies with the same seeds.

    Attributes:
        path: The comparison's folder.
        items: The strategies, the first being the reference of differences.
        seeds: The seeds.
        members: One run for each seed and strategy.
    """

    path: Path
    items: tuple[Item, ...]
    seeds: tuple[int, ...]
    members: tuple[Member, ...]

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

        It cannot with a single seed or strategy, or when the paired difference to any other strategy is within
        one standard error.
        """
        means = {item.label: self.mean_and_deviation(item.label, measure)[0] for item in self.items}
        if len(self.seeds) < 2 or len(means) < 2 or any(math.isnan(mean) for mean in means.values()):
            return None
        sign = 1 if MEASURES[measure][2] else -1
        best = max(means, key=lambda label: sign * means[label])
        for other in means.keys() - {best}:
            difference, error = self.difference(best, other, measure)
            if sign * difference <= error:
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
        "bytes_per_round": moved / rounds / 1e6,
        "seconds": content["seconds"]["total"],
    }


def parse_strategies(text: str) -> tuple[Item, ...]:
    """Read `fedavg,fedprox(mu=0.1),scaffold`; commas inside brackets separate a strategy's options.

    Raises:
        ExperimentError: This is not of that form, or names the same thing twice.
    """
    items = []
    for part in _split(text):
        match = re.fullmatch(r"([^()=\s]+?)\s*(?:\((.*)\))?", part, re.DOTALL)
        if match is None:
            raise ExperimentError(f"{_EXPECTED}; found {part!r}.")
        options = tuple(re.sub(r"\s*=\s*", "=", option, count=1) for option in _split(match.group(2) or ""))
        for option in options:
            if not re.match(r"\w+=.", option):
                raise ExperimentError(f"{_EXPECTED}; found {option!r} in {part!r}.")
        label = match.group(1) + (f"({', '.join(options)})" if options else "")
        items.append(Item(label, match.group(1), options))
    if not items:
        raise ExperimentError(f"{_EXPECTED}; found none.")
    labels = [item.label for item in items]
    for label in labels:
        if labels.count(label) > 1:
            raise ExperimentError(f"--strategies names {label} twice.")
    return tuple(items)


def _split(text: str) -> list[str]:
    """Split at commas that stand outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
        if depth < 0:
            break
    if depth:
        raise ExperimentError(f"{_EXPECTED}; the brackets in {text!r} do not match.")
    return [part.strip() for part in parts if part.strip()]


def parse_seeds(text: str, first: int) -> tuple[int, ...]:
    """Read a number of seeds, counted from `first`, or a list of them with a comma: `3`, `1,5,7`, `4,`.

    Raises:
        ExperimentError: This is neither, or no seed, or one twice.
    """
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ExperimentError(f"--seeds is a number such as 3, or a list such as 1,5,7; found {text!r}.") from error
    seeds = tuple(found) if "," in text else tuple(range(first, first + found[0] if found else first))
    if not seeds or len(set(seeds)) < len(seeds):
        raise ExperimentError(f"--seeds needs at least one seed and none twice; found {text!r}.")
    return seeds


def compose(experiment: str, item: Item, seed: int | None, overrides: Sequence[str]) -> Experiment:
    """Compose and check the run of a strategy and a seed; None leaves the experiment's own seed.

    The strategy options of the experiment's file hold for the strategy that it names, and for no other.
    """
    name, text = read(experiment)
    content = yaml.safe_load(text)
    if isinstance(content, dict):
        given = content.get("strategy") or {}
        same = given.get("name", "fedavg") == item.name
        content["strategy"] = {**given, "name": item.name} if same else {"name": item.name}
        text = yaml.safe_dump(content, sort_keys=False)
    own = [f"strategy.{option}" for option in item.options]
    seeds = [] if seed is None else [f"run.seed={seed}"]
    composed = load(name, [*overrides, *own, *seeds], text)
    flower.check(composed)
    data.check(composed.data)
    return composed


def folder_name(item: Item, experiment: Experiment) -> str:
    """Return the name of a run's folder: equal for runs that give equal results, different for all others."""
    plain = as_dict(experiment)
    for key in ("name", "description", "engine", "checkpoint"):  # change where and how, not what
        plain.pop(key)
    plain["run"] = {key: value for key, value in plain["run"].items() if key not in ("results", "name")}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]
    stem = re.sub(r"[^\w.-]+", "-", item.label.replace("=", "")).strip("-")
    return f"{stem}-s{experiment.run.seed}-{digest}"


def prepare(
    experiment: str, strategies: str, seeds: str, overrides: Sequence[str], output: str | Path | None = None
) -> Comparison:
    """Compose and check every run of a comparison; nothing is started or written.

    Args:
        experiment: Name of a shipped experiment, or path of a YAML file.
        strategies: Such as `fedavg,fedprox(mu=0.1),scaffold`.
        seeds: Such as `3` or `1,5,7`.
        overrides: `key=value` each, for all runs.
        output: The comparison's folder; None is `compare-<experiment>` in `run.results`.

    Raises:
        ExperimentError: Something is refused.
    """
    for key in ("strategy.name", "run.seed", "run.name"):
        if any(override.startswith(f"{key}=") for override in overrides):
            raise ExperimentError(f"{key} is no key of a comparison; use --strategies, --seeds or --output.")
    items = parse_strategies(strategies)
    base = compose(experiment, items[0], None, overrides)
    chosen = parse_seeds(seeds, base.run.seed)
    folder = Path(output or Path(base.run.results) / f"compare-{base.name}").expanduser().resolve()
    members = []
    for seed in chosen:
        for item in items:
            composed = compose(experiment, item, seed, overrides)
            run = dataclasses.replace(
                composed.run, results=str(folder), name=folder_name(item, composed)
            )
            composed = dataclasses.replace(composed, run=run)
            members.append(Member(item, seed, composed, folder / run.name))
    return Comparison(folder, items, chosen, tuple(members))


def compare(comparison: Comparison, listener: Watcher | None = None, fresh: bool = False) -> Comparison:
    """Run a comparison's runs, one after the other, and write its table, pictures and report.

    A run that is there with the same configuration is used again, or gone on with.

    Args:
        comparison: From `prepare`.
        listener: Told of everything that happens.
        fresh: Run everything anew, as after a change of code.

    Raises:
        RunStoppedError: A run could not go on; the same call goes on with it.
    """
    comparison.path.mkdir(parents=True, exist_ok=True)
    for index, member in enumerate(comparison.members, start=1):
        if fresh:
            shutil.rmtree(member.path, ignore_errors=True)
        _run(member, index, len(comparison.members), listener or Watcher())
    write(comparison)
    return comparison


def _run(member: Member, index: int, total: int, listener: Watcher) -> None:
    """Use the run that is there, go on with it, or start it."""
    there = (member.path / "config.yaml").is_file()
    finished = (member.path / "summary.json").is_file()
    how = "reused" if finished else "resumed" if there else "new"
    listener.member(index, total, member.item.label, member.seed, how)
    if how == "new":
        shutil.rmtree(member.path, ignore_errors=True)  # it was stopped before it wrote anything
        api.run(member.experiment, listener=listener)
    elif how == "resumed":
        api.resume(member.path, listener=listener)


def write(comparison: Comparison) -> None:
    """Write comparison.json, table.md, curves.png, partition.png and report.html."""
    from simulations.report import report, write_pictures

    runs = [
        {
            "strategy": member.item.label,
            "seed": member.seed,
            "folder": member.path.name,
            "weights_sha256": member.summary["weights_sha256"],
            **_finite(member.measures),
        }
        for member in comparison.members
    ]
    reference = comparison.items[0].label
    table = {}
    for item in comparison.items:
        row: dict[str, Any] = {}
        for measure in MEASURES:
            mean, deviation = comparison.mean_and_deviation(item.label, measure)
            difference, error = comparison.difference(item.label, reference, measure)
            found = {"mean": mean, "deviation": deviation, "difference": difference, "standard_error": error}
            row[measure] = _finite(found)
        table[item.label] = row
    content = {
        "experiment": comparison.members[0].experiment.name,
        "strategies": [dataclasses.asdict(item) for item in comparison.items],
        "seeds": list(comparison.seeds),
        "reference": reference,
        "best": {measure: comparison.best(measure) for measure in MEASURES},
        "table": table,
        "runs": runs,
    }
    write_json(comparison.path / "comparison.json", content)
    write_text(comparison.path / "table.md", markdown(comparison))
    write_pictures(comparison)
    report([comparison.path])


def read_comparison(folder: Path) -> Comparison:
    """Read a comparison's folder.

    Raises:
        FileNotFoundError: It is none.
    """
    content = read_json(folder / "comparison.json")
    items = tuple(
        Item(item["label"], item["name"], tuple(item["options"])) for item in content["strategies"]
    )
    by_label = {item.label: item for item in items}
    members = []
    for run in content["runs"]:
        path = folder / run["folder"]
        text = (path / "config.yaml").read_text(encoding="utf-8")
        members.append(Member(by_label[run["strategy"]], run["seed"], load("config", (), text), path))
    return Comparison(folder, items, tuple(content["seeds"]), tuple(members))


def markdown(comparison: Comparison) -> str:
    """Return the comparison's table in Markdown."""
    heads = ["strategy", *(title for title, _, _ in MEASURES.values()), "difference (test, last)"]
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
        f"Mean ± sample standard deviation over {len(seeds)} seeds ({', '.join(map(str, seeds))}; {partition}). "
        f"Difference: to {comparison.items[0].label}, paired by seed, ± its standard error. The best round is "
        "chosen on validation data. * best, by more than one standard error of the paired difference to every "
        "other."
    )


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in values.items()}
