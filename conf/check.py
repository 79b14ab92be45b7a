"""Values and combinations that an experiment may have; each error names the key to change.

Ranges stand beside the fields (`umbel.core.ranges`), what a strategy needs in its class (`Strategy.check`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from umbel.conf.errors import ExperimentError
from umbel.conf.schema import Experiment
from umbel.core.device import DEVICES
from umbel.core.names import unknown
from umbel.core.ranges import check_ranges
from umbel.data import partition, transforms
from umbel.data.sets import registry as data_sets
from umbel.models import operators
from umbel.models import registry as models
from umbel.strategies import registry as strategies
from umbel.strategies.base import Strategy
from umbel.strategies.whole_models import Config as WholeModelsConfig
from umbel.strategies.whole_models import WholeModels

SECTIONS = ("data", "model", "client", "run", "evaluate", "checkpoint", "engine")
_RUN_NAME = re.compile(r"\w[\w.-]*")


def check(experiment: Experiment) -> None:
    """Raise `ExperimentError` unless the experiment can start (data sets are looked for elsewhere)."""
    try:
        for section in SECTIONS:
            check_ranges(getattr(experiment, section), section)
        _names(experiment)
        _federation(experiment)
        _sequence(experiment)
        _training(experiment)
        _sizes(experiment)
        _operators(experiment)
        strategy_of(experiment)
    except ValueError as error:
        raise error if isinstance(error, ExperimentError) else ExperimentError.of(error) from error


def strategy_of(experiment: Experiment) -> Strategy[Any]:
    """Make the experiment's strategy; of Flower's own, the part that knows no Flower.

    Raises:
        ExperimentError: Its options cannot be, or it does not go with the experiment.
    """
    name, options = experiment.strategy.name, experiment.strategy.options
    if name.startswith(strategies.FLOWER_PREFIX):
        return WholeModels(WholeModelsConfig(name, options))  # checked by the server package, which knows Flower
    try:
        kind = strategies.find(name)
        strategy = kind(kind.config_class(**options))
        strategy.check(experiment)
    except ValueError as error:
        raise ExperimentError.of(error) from error
    return strategy


def _known(key: str, kind: str, name: str, names: Iterable[str], *, paths: bool = False) -> None:
    """Refuse a name that is in no table; with `paths`, what has a colon is looked for elsewhere."""
    names = tuple(names)
    if name not in names and not (paths and ":" in name):
        raise unknown(kind, name, names, key=key, own="module:name" if paths else "")


def _names(experiment: Experiment) -> None:
    data, model, client = experiment.data, experiment.model, experiment.client
    _known("client.device", "device", client.device.partition(":")[0], DEVICES)
    _known("data.partition", "partition", data.partition, partition.names())
    _known("data.augment", "augment", data.augment, transforms.augmentations())
    _known("data.name", "data set", data.name, [*data_sets.names(), "hub:<name>"], paths=True)
    _known("model.name", "model", model.name, models.names(), paths=True)


def _sizes(experiment: Experiment) -> None:
    """Refuse size keywords that the model does not have; their values are checked when it is built."""
    if ":" in experiment.model.name:
        return  # a factory of somebody else's is asked when it is called
    known = [size for size in models.options(experiment.model.name) if size != "image_size"]
    for size in experiment.model.sizes:
        _known(f"model.sizes.{size}", "size", size, known)


def _operators(experiment: Experiment) -> None:
    """Refuse operators and options that there are not; values are checked where the model is built."""
    for name, options in experiment.model.operators.items():
        key = f"model.operators.{name}"
        if options is not None and not isinstance(options, Mapping):
            raise ExperimentError(
                f"{key} is a mapping of options, such as {{}}; found {options!r}.", key=key, remedy=f"Set {key}={{}}."
            )
        operators.check(name, options or {})


def _federation(experiment: Experiment) -> None:
    """Refuse numbers of clients and shares of data that cannot be at once."""
    run, data = experiment.run, experiment.data
    if run.name and not _RUN_NAME.fullmatch(run.name):
        raise ExperimentError(
            f"run.name={run.name} should be the name of a folder.",
            key="run.name",
            remedy="Use letters, digits, underscores, dots and hyphens, no dot or hyphen first.",
        )
    for key, number in (("run.clients_per_round", run.clients_per_round), ("data.num_shuffled", data.num_shuffled)):
        if number > data.num_clients:
            raise ExperimentError(
                f"{key}={number} is more than data.num_clients={data.num_clients}.",
                key=key,
                remedy=f"Set it to {data.num_clients} or less.",
            )
    if run.min_replies > experiment.num_sampled:
        raise ExperimentError(
            f"run.min_replies={run.min_replies} can never be met: a round selects {experiment.num_sampled} clients "
            "(run.participation, run.clients_per_round).",
            key="run.min_replies",
            remedy=f"Set it to {experiment.num_sampled} or less, or select more clients.",
        )
    if data.client_validation + data.client_test >= 1:
        raise ExperimentError(
            "data.client_validation + data.client_test leave nothing to train on.",
            key="data.client_test",
            remedy="Lower them until they are below 1 together.",
        )


def _sequence(experiment: Experiment) -> None:
    """Refuse a sequence of tasks that cannot be, and what does not go with one."""
    data, rounds = experiment.data, experiment.run.rounds
    if data.num_shuffled and partition.tasks(data.partition) != "none":
        raise ExperimentError(
            f"data.num_shuffled={data.num_shuffled} mixes the labels of tasks.",
            key="data.num_shuffled",
            remedy="Choose a data.partition without tasks.",
        )
    if data.rounds_per_task and partition.tasks(data.partition) == "none":
        raise ExperimentError(
            f"data.rounds_per_task={data.rounds_per_task} needs "
            f"data.partition={' or '.join(partition.sequences())}, found {data.partition}.",
            key="data.rounds_per_task",
            remedy="Choose one of these, or set data.rounds_per_task=0.",
        )
    by_classes = " or ".join(each for each in partition.sequences() if partition.tasks(each) == "classes")
    if data.heads == "per_task" and partition.tasks(data.partition) != "classes":
        raise ExperimentError(
            f"data.heads=per_task needs data.partition={by_classes}, found {data.partition}.",
            key="data.heads",
            remedy="Choose it, or set data.heads=shared.",
        )
    if rounds < (planned := data.rounds_per_task * data.num_tasks):
        raise ExperimentError(
            f"run.rounds={rounds} ends before the last task: data.num_tasks={data.num_tasks} of "
            f"data.rounds_per_task={data.rounds_per_task} need {planned}.",
            key="run.rounds",
            remedy=f"Set run.rounds={planned} or more.",
        )


def _training(experiment: Experiment) -> None:
    """Refuse settings of data, model and local training that do not go together."""
    data, client = experiment.data, experiment.client
    if data.encoder and (data.augment != "none" or partition.tasks(data.partition) == "pixels"):
        key, value = ("augment", data.augment) if data.augment != "none" else ("partition", data.partition)
        raise ExperimentError(
            f"data.{key}={value} changes images, and with data.encoder={data.encoder} there are embeddings in their "
            "place.",
            key=f"data.{key}",
            remedy="Set data.augment=none and another data.partition, or no data.encoder.",
        )
    if not client.epochs and not client.max_steps:
        raise ExperimentError(
            "client.epochs=0 and client.max_steps=0: a client would do nothing.",
            key="client.epochs",
            remedy="Set one of them above 0.",
        )
    if client.compile and experiment.model.checkpoint:
        raise ExperimentError(
            "client.compile=true and model.checkpoint=true do not go together: a compiler decides itself what to keep.",
            key="client.compile",
            remedy="Set one of them to false.",
        )
    if client.nesterov and not client.momentum:
        raise ExperimentError(
            "client.nesterov=true needs client.momentum above 0.",
            key="client.nesterov",
            remedy="Set client.momentum, or client.nesterov=false.",
        )
    if client.optimizer != "sgd" and client.momentum:
        raise ExperimentError(
            f"client.momentum goes with client.optimizer=sgd, not {client.optimizer}.",
            key="client.momentum",
            remedy="Set client.momentum=0.",
        )
