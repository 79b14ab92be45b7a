"""What is to be compared: strategies and seeds are read, and every run is composed and checked before any starts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from umbel import data
from umbel.conf import devices, initial
from umbel.conf.errors import ExperimentError
from umbel.conf.load import as_dict, build_strategy, experiment_names, load
from umbel.conf.schema import Experiment
from umbel.core.names import file_stem
from umbel.core.schedule import COSTS
from umbel.server.flower import strategies as flower
from umbel.simulations.compare.comparison import Comparison, Item, Member
from umbel.simulations.tune.tuned import Tuned, read

_EXPECTED = "--strategies takes names, each with options in brackets: 'fedavg,fedprox(mu=0.1),scaffold'"

BUDGETS = ("rounds", *COSTS)
_MOST_ROUNDS = 10  # times those of the first strategy
_LONGEST_STEM = 80  # file systems take 255 bytes; the digest tells folders apart


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
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ExperimentError(f"--seeds is a number such as 3, or a list such as 1,5,7; found {text!r}.") from error
    seeds = tuple(numbers) if "," in text else tuple(range(first, first + numbers[0] if numbers else first))
    if not seeds or len(set(seeds)) < len(seeds):
        raise ExperimentError(f"--seeds needs at least one seed and none twice; found {text!r}.")
    return seeds


def compose(experiment: str, item: Item, seed: int | None, overrides: Sequence[str]) -> Experiment:
    """Compose and check the run of a strategy and a seed; None leaves the experiment's own seed.

    The strategy options of the experiment's file hold for the strategy that it names, and for no other.
    """
    own = [f"strategy.{option}" for option in item.options]
    seeds = [] if seed is None else [f"run.seed={seed}"]
    composed = load(experiment, [*overrides, *own, *seeds], strategy=item.name)
    flower.check(composed)
    data.check(composed.data)
    return devices.resolved(initial.resolved(composed))  # with the hashes of what it reads


def folder_name(item: Item, experiment: Experiment, budget: str = "") -> str:
    """Return the name of a run's folder: equal for runs that give equal results, different for all others.

    Args:
        item: The strategy.
        experiment: The run's.
        budget: In words, what the run may cost, where that is known only when another run has ended.
    """
    plain = as_dict(experiment) | ({"budget": budget} if budget else {})
    for key in ("name", "description", "engine", "checkpoint", "tune"):  # change where and how, not what
        plain.pop(key)
    plain["run"] = {key: value for key, value in plain["run"].items() if key not in ("results", "name", "trackers")}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]
    stem = re.sub(r"[^\w.-]+", "-", item.label.replace("=", "")).strip("-")[:_LONGEST_STEM].rstrip("-")
    return f"{stem}-s{experiment.run.seed}-{digest}"


def prepare(
    experiment: str,
    strategies: str,
    seeds: str,
    overrides: Sequence[str],
    output: str | Path | None = None,
    budget: str = "rounds",
    tuned: str | Path | None = None,
    untuned: str = "",
) -> Comparison:
    """Compose and check every run of a comparison; nothing is started or written.

    Args:
        experiment: Name of a shipped experiment, or path of a YAML file.
        strategies: Such as `fedavg,fedprox(mu=0.1),scaffold`.
        seeds: Such as `3` or `1,5,7`.
        overrides: `key=value` each, for all runs.
        output: The comparison's folder; None is `compare-<experiment>` in `run.results`.
        budget: What all runs of a seed have equally much of, one of `BUDGETS`: the first strategy's has the rounds of
            the experiment, the others go on until they have come to what it cost, in at most ten times as many rounds.
        tuned: Folder of `umbel tune`, whose values each strategy has; None is the experiment's own.
        untuned: Strategies that have the experiment's own all the same.

    Raises:
        ExperimentError: Something is refused.
    """
    for key in ("strategy.name", "run.seed", "run.name"):
        if any(override.startswith(f"{key}=") for override in overrides):
            raise ExperimentError(f"{key} is no key of a comparison; use --strategies, --seeds or --output.")
    items = parse_strategies(strategies)
    base = compose(experiment, items[0], None, overrides)
    _check_budget(budget, base)
    chosen = parse_seeds(seeds, base.run.seed)
    found = _tuned(tuned, untuned, items, chosen, overrides)
    folder = Path(output or Path(base.run.results) / f"compare-{file_stem(base.name)}").expanduser().resolve()
    members = []
    for seed in chosen:
        reference = ""
        for item in items:
            given, words = list(overrides), ""
            if reference and budget != "rounds":
                given += [f"run.rounds={_MOST_ROUNDS * base.run.rounds}", f"run.budget={budget}=1"]
                words = f"the {budget} of {reference}"
            if found and (values := found.of(item.label)):
                given += values.overrides
            composed = compose(experiment, item, seed, given)
            _check_plan(budget, item, composed)
            name = folder_name(item, composed, words)
            run = dataclasses.replace(composed.run, results=str(folder), name=name)
            composed = dataclasses.replace(composed, run=run)
            members.append(Member(item, seed, composed, folder / name))
            reference = reference or name
    source = experiment if experiment in experiment_names() else str(Path(experiment).expanduser().resolve())
    return Comparison(folder, items, chosen, tuple(members), source, tuple(overrides), budget, tuned=found)


def _tuned(
    folder: str | Path | None, untuned: str, items: Sequence[Item], seeds: Sequence[int], overrides: Sequence[str]
) -> Tuned | None:
    """Read what tuning chose, and refuse what does not belong to the comparison."""
    labels = [item.label for item in parse_strategies(untuned)] if untuned else []
    if folder is None:
        if labels:
            raise ExperimentError("--untuned says nothing without --tuned.", key="--untuned", remedy="Leave it out.")
        return None
    found = read(folder)
    found.check(items, labels, seeds, overrides)
    return found


def _check_budget(budget: str, base: Experiment) -> None:
    """Refuse a budget that there is not, or that another end of a run would come before."""
    if budget not in BUDGETS:
        raise ExperimentError(f"--budget is one of {', '.join(BUDGETS)}; found {budget!r}.")
    ends = {"run.budget": base.run.budget, "run.until": base.run.until, "run.patience": base.run.patience}
    if budget != "rounds" and (also := [key for key, value in ends.items() if value]):
        raise ExperimentError(f"--budget {budget} and {', '.join(also)} would both end a run; leave one of them out.")


def _check_plan(budget: str, item: Item, composed: Experiment) -> None:
    """Refuse a budget for a strategy whose rounds depend on how many there are."""
    if budget != "rounds" and composed.client.lr_schedule == "cosine":
        raise ExperimentError(
            f"--budget {budget}: client.lr_schedule=cosine plans the learning rate by rounds, whose number a budget "
            "leaves open. Choose another schedule, or --budget rounds."
        )
    if budget != "rounds" and build_strategy(composed).plans_rounds:
        raise ExperimentError(
            f"--budget {budget}: what a round of {item.label} does depends on how many rounds there are in all, which "
            "a budget leaves open. Choose --budget rounds, or an option of it that plans nothing."
        )
