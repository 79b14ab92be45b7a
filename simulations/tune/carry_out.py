"""Tune strategies so that they can be compared: equally many trials for each, chosen by validation data.

Trials go round: each contender has its first, then each its second; those of a round may go on at once. A trial is a
run for every seed; runs that are there are used again, and since proposals are a function of what was told before, the
same call after a kill -9 comes to the same trials in the same order.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from umbel.core.schedule import COSTS
from umbel.server import checkpoint
from umbel.server.errors import DivergedError, RunStoppedError
from umbel.server.evaluation import SELECTION
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare.at_once import Course, Job, Runs, carrying_out, how_many
from umbel.simulations.compare.comparison import Item, Member
from umbel.simulations.compare.prepare import folder_name
from umbel.simulations.tune.prepare import Plan, prepare, trial_experiment
from umbel.simulations.tune.search import Search, version
from umbel.simulations.tune.tuned import Chosen, Tuned, fixed, setting

_VALIDATION = ("validation/", "clients/validation/")


@dataclass(frozen=True)
class Run:
    """A run of a trial.

    Attributes:
        path: Its folder.
        metrics: What was measured of it on validation data, in the last evaluation; empty where it diverged.
        costs: What it took, by `umbel.core.schedule.COSTS`; of one that diverged up to the last round that is kept.
        lost: Which clients it lost for good, in words.
    """

    path: Path
    metrics: Mapping[str, float]
    costs: Mapping[str, float]
    lost: str = ""


@dataclass(frozen=True)
class Trial:
    """A trial of a contender.

    Attributes:
        number: From 0.
        values: What was tried, by key.
        runs: One for each seed.
    """

    number: int
    values: Mapping[str, str]
    runs: tuple[Run, ...]

    def value(self, metric: str) -> float | None:
        """Return the mean of a metric over seeds; None where a run has no such number."""
        values = [run.metrics.get(metric, math.nan) for run in self.runs]
        return sum(values) / len(values) if all(map(math.isfinite, values)) else None


@dataclass(frozen=True)
class Tuning:
    """What was tried, and what was chosen.

    Attributes:
        plan: What was asked for.
        trials: Of each contender the trials, in their order.
        tuned: What was chosen.
    """

    plan: Plan
    trials: Mapping[str, Sequence[Trial]]
    tuned: Tuned

    @property
    def path(self) -> Path:
        """The folder."""
        return self.plan.path

    @property
    def incomplete(self) -> list[str]:
        """The runs that lost clients for good, a sentence each."""
        runs = {run.path.name: run.lost for trials in self.trials.values() for each in trials for run in each.runs}
        return [f"{name}: {lost}" for name, lost in runs.items() if lost]


def tune(
    experiment: str,
    *arguments: str,
    strategies: str | Sequence[str] = "",
    trials: int = 0,
    seeds: int | Sequence[int] = (),
    metric: str = "",
    output: str | Path | None = None,
    listener: Watcher | None = None,
    fresh: bool = False,
    keep: bool = False,
    at_once: int | str | None = None,
) -> Tuning:
    """Find values for each of several strategies by equally many trials; the command line does the same.

    What is not given stands in the experiment's section `tune`.

    Args:
        experiment: Name of a shipped experiment, or path of a YAML file.
        arguments: `key=value` each, for all trials, and what is searched: `client.lr=log:0.001..0.3`,
            `client.epochs=1..5`, `client.optimizer=choice:sgd,adam`, `fedprox.mu=log:1e-4..1`.
        strategies: Such as `fedavg,fedprox,scaffold`, or a sequence of such names.
        trials: Trials of each strategy; 0 takes `tune.trials`.
        seeds: How many each trial is run with, counted from `run.seed + 1000000`, or the seeds themselves.
        metric: What the choice goes by, a metric of validation data; empty takes the one that chooses the best round.
        output: The folder; None is `tune-<experiment>` in `run.results`.
        listener: Told of everything that happens.
        fresh: Run everything anew.
        keep: Use runs again that other code has made.
        at_once: How many runs go on at once, each in a process of its own, or `auto`; one where nobody says.

    Raises:
        Refusal: Something is refused, or Optuna is not installed; nothing has started.
        RunStoppedError: A run could not go on; the same call goes on with it.
    """
    names = strategies if isinstance(strategies, str) else ",".join(strategies)
    numbers = str(seeds) if isinstance(seeds, int) else "".join(f"{seed}," for seed in seeds)
    plan = prepare(experiment, arguments, names, trials, numbers, metric, output)
    number, said = places(plan, at_once)
    if said and listener is not None:
        listener.notice(said)
    return carry_out(plan, listener, fresh, keep, number)


def places(plan: Plan, at_once: int | str | None) -> tuple[int, str]:
    """Return how many runs go on at once, as `at_once.how_many`: at most those of a trial of each contender."""
    members = [
        Member(contender.item, seed, trial_experiment(plan, index, seed, {}), plan.path)
        for index, contender in enumerate(plan.contenders)
        for seed in plan.seeds
    ]
    return how_many(at_once, members)


def carry_out(
    plan: Plan, listener: Watcher | None = None, fresh: bool = False, keep: bool = False, at_once: int = 1
) -> Tuning:
    """Run the trials, choose, and write what was chosen, the table of trials and the picture.

    Args:
        plan: From `prepare`.
        listener: Told of everything that happens.
        fresh: Run everything anew.
        keep: Use runs again that other code has made.
        at_once: How many runs go on at once, of the trials that are proposed together.

    Raises:
        RunStoppedError: A run could not go on, or no trial of a contender came to a number; the same call goes on.
    """
    from umbel.simulations.tune.results import write

    plan.path.mkdir(parents=True, exist_ok=True)
    told = listener or Watcher()
    searches = [
        Search(each.dimensions, plan.seed, plan.is_more, first)
        for each, first in zip(plan.contenders, plan.firsts, strict=True)
    ]
    trials: dict[str, list[Trial]] = {each.item.label: [] for each in plan.contenders}
    metric = ""
    with carrying_out(at_once, told, keep) as runs:
        runner = _Runner(plan, told, fresh, runs)
        for number in range(plan.trials):
            done = runner.trials(number, [search.ask() for search in searches])
            for contender, trial in zip(plan.contenders, done, strict=True):
                trials[contender.item.label].append(trial)
            metric = metric or common_metric(plan.metric, [each for own in trials.values() for each in own])
            for contender, search in zip(plan.contenders, searches, strict=True):
                search.tell(_value(trials[contender.item.label][-1], metric))
    tuning = Tuning(plan, trials, _chosen(plan, trials, metric))
    write(tuning)
    return tuning


class _Runner(Course):
    """Runs trials; a run that two trials share is run once."""

    def __init__(self, plan: Plan, listener: Watcher, fresh: bool, runs: Runs) -> None:
        self._plan, self._listener, self._fresh, self._runs = plan, listener, fresh, runs
        self._done: dict[Path, Run] = {}
        self._index = 0

    def trials(self, number: int, values: Sequence[dict[str, str]]) -> list[Trial]:
        """Run a trial of each contender."""
        own = [
            [self._job(index, number, seed, tried) for seed in self._plan.seeds] for index, tried in enumerate(values)
        ]
        jobs: dict[Path, Job] = {}
        for job in (each for trial in own for each in trial):
            if job.member.path not in self._done:
                jobs.setdefault(job.member.path, job)
        if self._fresh:
            for path in jobs:
                shutil.rmtree(path, ignore_errors=True)
        self._runs.go(list(jobs.values()), self)
        return [
            Trial(number, tried, tuple(self._done[job.member.path] for job in trial))
            for tried, trial in zip(values, own, strict=True)
        ]

    def _job(self, index: int, number: int, seed: int, values: dict[str, str]) -> Job:
        item, folder = self._plan.contenders[index].item, self._plan.path
        composed = trial_experiment(self._plan, index, seed, values)
        name = folder_name(item, composed)
        composed = dataclasses.replace(composed, run=dataclasses.replace(composed.run, results=str(folder), name=name))
        shown = ", ".join(f"{key}={value}" for key, value in values.items())
        member = Member(Item(f"{item.label}, trial {number} ({shown})", item.name), seed, composed, folder / name)
        self._index += 1
        return Job(member, self._index, self._plan.num_runs)

    def ended(self, job: Job, error: Exception | None) -> None:
        member = job.member
        if isinstance(error, DivergedError):
            self._listener.notice(f"{member.item.label}: {error} The trial counts, and is worse than all others.")
            kept = checkpoint.latest(member.path / "checkpoints")
            costs = {cost: kept.progress.cost(cost) if kept else 0.0 for cost in COSTS}
            self._done[member.path] = Run(member.path, {}, costs)
            return
        if error is not None:
            raise error
        # Nothing of a test set goes further than this line.
        metrics = {key: each for key, each in member.summary["metrics"].items() if key.startswith(_VALIDATION)}
        self._done[member.path] = Run(member.path, plain_numbers(metrics), member.costs, member.lost)


def plain_numbers(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Return metrics whose missing values are NaN."""
    return {key: math.nan if value is None else value for key, value in metrics.items()}


def common_metric(asked: str, trials: Sequence[Trial]) -> str:
    """Return what the choice goes by; "" while no trial has ended with a number.

    Args:
        asked: What was asked for; empty for the first of `umbel.server.evaluation.SELECTION` that all have.
        trials: Of all contenders, so far.

    Raises:
        RunStoppedError: The contenders' runs have no such metric, or none in common.
    """
    measured = [set(run.metrics) for trial in trials for run in trial.runs if run.metrics]
    common = set.intersection(*measured) if measured else set()
    found = next((key for key in ([asked] if asked else SELECTION) if key in common), "")
    if measured and not found:
        wanted = asked or "one that chooses a run's best round"
        raise RunStoppedError(
            f"Not all contenders' runs have the metric to choose by ({wanted}). On validation data all have "
            f"{', '.join(sorted(common)) or 'nothing'}: name one of these by --metric, or tune strategies of one kind."
        )
    return found


def _value(trial: Trial, metric: str) -> float | None:
    """Return what a trial came to.

    Raises:
        RunStoppedError: It has ended, and its runs have no such metric at all.
    """
    for run in trial.runs:
        if run.metrics and metric not in run.metrics:
            raise RunStoppedError(
                f"{run.path.name} has no {metric}, which the choice goes by; on validation data it has "
                f"{', '.join(sorted(run.metrics))}: name one of these by --metric."
            )
    return trial.value(metric)


def _chosen(plan: Plan, trials: Mapping[str, Sequence[Trial]], metric: str) -> Tuned:
    """Choose the best trial of each contender, of equal ones the first."""
    chosen = []
    for contender, base in zip(plan.contenders, plan.experiments, strict=True):
        label, own = contender.item.label, trials[contender.item.label]
        values = {each.number: value for each in own if (value := each.value(metric)) is not None}
        if not values:
            raise RunStoppedError(
                f"No trial of {label} came to a number: all diverged, or nothing was measured. Search lower learning "
                "rates, or look at one of its runs."
            )
        best = max(
            values, key=lambda number: values[number] if plan.is_more else -values[number]
        )  # the first of equals
        tried = own[best].values
        edges = {
            each.key: f"{tried[each.key]} lies at the {edge} end of {each.text}"
            for each in contender.dimensions
            if (edge := each.edge(tried[each.key]))
        }
        runs = {run.path: run for trial in own for run in trial.runs}.values()
        costs = {cost: sum(run.costs[cost] for run in runs) for cost in COSTS}
        still = fixed(base, [each.key for each in contender.dimensions])
        chosen.append(Chosen(label, dict(tried), values[best], best, len(own) - len(values), still, edges, costs))
    return Tuned(
        path=plan.path,
        source=plan.source,
        overrides=plan.overrides,
        metric=metric,
        is_more=plan.is_more,
        trials=plan.trials,
        seeds=plan.seeds,
        sampler=f"Optuna {version()}, TPE, seed {plan.seed}",
        space={each.item.label: {one.key: one.text for one in each.dimensions} for each in plan.contenders},
        setting=setting(plan.experiments[0]),
        chosen=tuple(chosen),
    )
