"""What is to be tuned: it is read, and every end of every range is checked, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from umbel.conf import load as files
from umbel.conf.check import validated
from umbel.conf.errors import ExperimentError
from umbel.conf.load import as_dict, experiment_names, load
from umbel.conf.schema import Experiment, TuneConfig
from umbel.core.names import file_stem
from umbel.server.evaluation import SELECTION
from umbel.simulations.compare.prepare import compose, parse_seeds, parse_strategies
from umbel.simulations.report.measures import MEASURES
from umbel.simulations.tune.search import check_installed
from umbel.simulations.tune.space import Contender, contenders, own_values, split

SEEDS_FROM = 1_000_000  # on top of run.seed: far from what a comparison counts
_SIDES = ("validation/", "clients/validation/")
_LESS = ("loss", "error", "rank")  # what the names of metrics have of which less is better


@dataclass(frozen=True)
class Plan:
    """What is to be tuned.

    Attributes:
        path: The folder.
        source: The experiment's name, or the path of its file.
        overrides: `key=value` each, of all trials.
        contenders: The strategies, and what is searched for each.
        firsts: For each of them the first trial, the experiment's own values; None where they are not searched.
        experiments: For each of them the experiment before anything is chosen.
        trials: Trials of each contender.
        seeds: Seeds of each trial.
        metric: What the choice goes by; empty for the first of `umbel.server.evaluation.SELECTION` that all have.
        is_more: Whether more of it is better.
        seed: Seed of what proposes the trials.
    """

    path: Path
    source: str
    overrides: tuple[str, ...]
    contenders: tuple[Contender, ...]
    firsts: tuple[dict[str, str] | None, ...]
    experiments: tuple[Experiment, ...]
    trials: int
    seeds: tuple[int, ...]
    metric: str
    is_more: bool
    seed: int

    @property
    def num_runs(self) -> int:
        """How many runs there are to be, where no two trials are alike."""
        return self.trials * len(self.contenders) * len(self.seeds)


def prepare(
    experiment: str,
    arguments: Sequence[str],
    strategies: str = "",
    trials: int = 0,
    seeds: str = "",
    metric: str = "",
    output: str | Path | None = None,
) -> Plan:
    """Read and check what is to be tuned; nothing is started or written.

    What is not given stands in the experiment's section `tune`; contenders, if not there, in its block `compare`.

    Args:
        experiment: Name of a shipped experiment, or path of a YAML file.
        arguments: `key=value` each, for all trials, and `key=range` or `key=choice:...`, which are searched.
        strategies: Such as `fedavg,fedprox,scaffold`.
        trials: Trials of each contender.
        seeds: Such as `2` or `1000001,1000002`.
        metric: What the choice goes by.
        output: The folder; None is `tune-<experiment>` in `run.results`.

    Raises:
        Refusal: Something is refused, or Optuna is not installed.
    """
    check_installed()
    overrides, space = split(arguments)
    for key in ("strategy.name", "run.seed", "run.name"):
        if any(override.startswith(f"{key}=") for override in overrides):
            raise ExperimentError(f"{key} is no key of tuning; use --strategies, --seeds or --output.", key=key)
    asked = load(experiment, [each for each in overrides if not each.startswith("strategy.")]).tune
    tune = TuneConfig(
        strategies or asked.strategies or files.asked(experiment).strategies,
        {**asked.space, **space},
        trials or asked.trials,
        seeds or asked.seeds,
        metric or asked.metric,
    )
    if not tune.strategies:
        raise ExperimentError(
            "Nothing says which strategies are to be tuned.",
            key="tune.strategies",
            remedy="Name them: --strategies fedavg,fedprox, or in the file's block `tune` or `compare`.",
        )
    if tune.trials < 1:
        raise ExperimentError(f"--trials is at least 1, found {tune.trials}.", key="--trials")
    if twice := [each for each in overrides if each.partition("=")[0] in tune.space]:
        raise ExperimentError(
            f"{twice[0]} sets what is searched.", key=twice[0].partition("=")[0], remedy="Leave one of them out."
        )
    found = contenders(parse_strategies(tune.strategies), tune.space)
    bases = tuple(_without_tune(compose(experiment, each.item, None, overrides)) for each in found)
    _check_metric(tune.metric, bases[0])
    chosen = parse_seeds(tune.seeds, SEEDS_FROM + bases[0].run.seed)
    for each in found:  # every end by itself: what a range cannot have is refused before anything starts
        for dimension in each.dimensions:
            for end in dimension.ends:
                compose(experiment, each.item, chosen[0], [*overrides, f"{dimension.key}={end}"])
    folder = Path(output or Path(bases[0].run.results) / f"tune-{file_stem(bases[0].name)}").expanduser().resolve()
    return Plan(
        path=folder,
        source=experiment if experiment in experiment_names() else str(Path(experiment).expanduser().resolve()),
        overrides=overrides,
        contenders=found,
        firsts=tuple(own_values(c.dimensions, as_dict(base)) for c, base in zip(found, bases, strict=True)),
        experiments=bases,
        trials=tune.trials,
        seeds=chosen,
        metric=tune.metric,
        is_more=_is_more(tune.metric),
        seed=bases[0].run.seed,
    )


def trial_experiment(plan: Plan, index: int, seed: int, values: dict[str, str]) -> Experiment:
    """Compose a run of a trial.

    Args:
        plan: What is tuned.
        index: Which contender.
        seed: Which seed.
        values: What is tried, by key.
    """
    chosen = [f"{key}={value}" for key, value in values.items()]
    item = plan.contenders[index].item
    return _without_tune(compose(plan.source, item, seed, [*plan.overrides, *chosen]))


def _without_tune(experiment: Experiment) -> Experiment:
    """Return the experiment of a run, which is the same whatever else is searched."""
    return replace(experiment, tune=TuneConfig())


def _check_metric(metric: str, base: Experiment) -> None:
    """Refuse what is no metric of validation data, and an experiment in which nothing is measured on such."""
    if metric and not metric.startswith(_SIDES):
        raise ExperimentError(
            f"--metric {metric}: values are chosen by validation data only; what test data choose they flatter.",
            key="tune.metric",
            remedy=f"Name a metric that begins with {' or '.join(_SIDES)}.",
        )
    on_server, on_clients = validated(base)
    is_there = {"": on_server or on_clients, _SIDES[0]: on_server, _SIDES[1]: on_clients}
    if not is_there[next((side for side in _SIDES if metric.startswith(side)), "")]:
        share = {"": "data.server_validation or data.client_validation", _SIDES[0]: "data.server_validation"}
        key = share.get(next((side for side in _SIDES if metric.startswith(side)), ""), "data.client_validation")
        raise ExperimentError(
            f"Values are chosen by validation data{f' ({metric})' if metric else ''}, of which none are evaluated.",
            key="tune",
            remedy=f"Set {key} to 0.1, and evaluate.every, evaluate.server and evaluate.clients so that they are.",
        )


def _is_more(metric: str) -> bool:
    """Say whether more of a metric is better: as the table of measures has it, else by its name."""
    last = (metric or SELECTION[0]).rpartition("/")[2]
    aims = {measure.metric.rpartition("/")[2]: measure.aim for measure in MEASURES.values() if measure.metric}
    return aims[last] > 0 if aims.get(last) else not any(word in last for word in _LESS)
