"""An experiment, a time, or a course of values, in a few words or signs of a line."""

from __future__ import annotations

import math

from umbel.conf.schema import Experiment
from umbel.data import partition
from umbel.strategies import registry

_SHOWN_OPTIONS = 5
_BARS = "▁▂▃▄▅▆▇█"


def describe(experiment: Experiment, with_strategy: bool = True) -> str:
    """Return one line: strategy with a few options that are not its defaults, model, data, clients, engine."""
    data = experiment.data
    cut = f"{data.partition}({data.alpha:g})" if "alpha" in partition.keys(data.partition) else data.partition
    sampled = experiment.num_sampled < data.num_clients
    parts = [
        experiment.model.name,
        f"{data.name}, {cut}",
        f"{experiment.num_sampled} of {data.num_clients:,} clients" if sampled else f"{data.num_clients:,} clients",
    ]
    if with_strategy:
        parts = [strategy_label(experiment), *parts, f"seed {experiment.run.seed}"]
    return " · ".join([*parts, experiment.engine.name])


def strategy_label(experiment: Experiment) -> str:
    """Return a strategy's name with a few options that are not its defaults."""
    name, options = experiment.strategy.name, experiment.strategy.options
    defaults = {} if name.startswith(registry.FLOWER_PREFIX) else registry.options(name)
    given = {key: value for key, value in options.items() if key not in defaults or defaults[key] != value}
    # One line: tables and lists of sizes are in the run's config.yaml.
    short = [f"{key}={value}" for key, value in given.items() if not isinstance(value, (dict, list, tuple))]
    shown = short[:_SHOWN_OPTIONS] + (["…"] if len(given) > min(len(short), _SHOWN_OPTIONS) else [])
    return f"{name}({', '.join(shown)})" if shown else name


def sparkline(values: list[float]) -> str:
    """Draw values as block characters, the smallest to the largest."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    return "".join(_BARS[int((v - low) / span * 7)] if math.isfinite(v) else " " for v in values)


def clock(seconds: float) -> str:
    """Return seconds as minutes and seconds, or with hours."""
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
