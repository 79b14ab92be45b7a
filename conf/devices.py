"""Devices of an experiment in virtual time: what may be asked of them, and the traces that they are taken from.

Only the server reads a trace: who takes part is its business.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from umbel.conf.errors import ExperimentError
from umbel.conf.paths import absolute
from umbel.conf.schema import Experiment
from umbel.conf.written import check_text
from umbel.core.ranges import check_ranges
from umbel.core.virtual import config, traces
from umbel.core.virtual.config import KEY, DevicesConfig
from umbel.core.virtual.devices import make

_TRACES = ("capacity", "availability")


def check(experiment: Experiment) -> None:
    """Refuse devices that cannot be, and what needs devices without any; traces are not opened."""
    run, devices = experiment.run, experiment.simulation.devices
    check_ranges(devices, KEY)
    config.check(devices)
    for key, value in (("over_sample", run.over_sample), ("deadline", run.deadline)):
        if value and not devices.is_set:
            raise ExperimentError(
                f"run.{key}={value} goes by the times that clients take, and {KEY} says none.",
                key=f"run.{key}",
                remedy=f"Set {KEY}.speed, say, or run.{key}=0.",
            )
    if (asked := experiment.num_sampled + run.over_sample) > experiment.data.num_clients:
        raise ExperimentError(
            f"run.over_sample={run.over_sample} can never be met: a round takes {experiment.num_sampled} clients, and "
            f"of data.num_clients={experiment.data.num_clients} it cannot ask {asked}.",
            key="run.over_sample",
            remedy="Lower it, or take fewer clients (run.clients_per_round, run.participation).",
        )


def located(experiment: Experiment) -> Experiment:
    """Return the experiment with absolute paths of traces, as every other process and a resume find them."""
    devices = experiment.simulation.devices
    paths: dict[str, Any] = {name: getattr(devices, name) for name in _TRACES}
    for name, path in paths.items():
        paths[name] = path and check_text(str(absolute(path, f"{KEY}.{name}")), f"{KEY}.{name}")
    return _with(experiment, replace(devices, **paths))


def resolved(experiment: Experiment) -> Experiment:
    """Return the experiment with the hash of the traces that its devices are taken from.

    Raises:
        Refusal: A trace cannot be read, or has another content than the experiment says.
    """
    devices = experiment.simulation.devices
    if not any(getattr(devices, name) for name in _TRACES):
        return experiment
    make(devices, experiment.data.num_clients, experiment.run.seed)  # refuses what it cannot read
    return _with(experiment, replace(devices, sha256=traces.content_hash(devices)))


def _with(experiment: Experiment, devices: DevicesConfig) -> Experiment:
    return replace(experiment, simulation=replace(experiment.simulation, devices=devices))
