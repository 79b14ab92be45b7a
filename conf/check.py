"""Values and combinations that an experiment may have; each error names the key to change.

Ranges stand beside the fields (`umbel.core.ranges`), what a strategy needs in its class (`Strategy.check`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from umbel.conf import devices, initial, own_data
from umbel.conf.errors import ExperimentError
from umbel.conf.paths import absolute
from umbel.conf.schema import Experiment
from umbel.conf.written import check_text
from umbel.core.device import DEVICES
from umbel.core.metrics import scores
from umbel.core.names import check_own, unknown
from umbel.core.ranges import check_ranges
from umbel.core.refusal import Refusal
from umbel.core.schedule import parse_budget, parse_until
from umbel.data import partition, transforms
from umbel.data.sets import registry as data_sets
from umbel.models import operators
from umbel.models import registry as models
from umbel.strategies import registry as strategies
from umbel.strategies.base import Strategy
from umbel.strategies.whole_models import Config as WholeModelsConfig
from umbel.strategies.whole_models import WholeModels

SECTIONS = ("data", "model", "client", "run", "evaluate", "checkpoint", "engine", "tune")
_RUN_NAME = re.compile(r"\w[\w.-]*")
_LONGEST_NAME = 200  # bytes; a file system takes 255, and files are written beside under longer names
_KEPT = 64


@dataclasses.dataclass(frozen=True)
class _Canonical:
    """An experiment that equals another when all of it that can be refused does."""

    text: str
    experiment: Experiment = dataclasses.field(compare=False)


def check(experiment: Experiment) -> None:
    """Raise `ExperimentError` unless the experiment can start (data sets are looked for elsewhere).

    An experiment that was checked in this process is not checked again, in whatever folder it writes.
    """
    check_text(str(absolute(experiment.run.results, "run.results")), "run.results")
    plain = dataclasses.asdict(experiment)
    plain["run"].pop("results")
    _check(_Canonical(json.dumps(plain, sort_keys=True, default=repr), experiment))


def strategy_of(experiment: Experiment) -> Strategy[Any]:
    """Make the experiment's strategy; of Flower's own, the part that knows no Flower.

    Raises:
        ExperimentError: Its options cannot be. Whether it goes with the experiment, `check` asks.
    """
    name, options = experiment.strategy.name, experiment.strategy.options
    try:
        if name.startswith(strategies.FLOWER_PREFIX):
            return WholeModels(WholeModelsConfig(name, options))  # checked by the server package, which knows Flower
        return strategies.make(name, options)
    except Refusal as error:
        raise ExperimentError.of(error) from error


@lru_cache(maxsize=_KEPT)
def _check(canonical: _Canonical) -> None:
    experiment = canonical.experiment
    try:
        for section in SECTIONS:
            check_ranges(getattr(experiment, section), section)
        _names(experiment)
        _federation(experiment)
        own_data.check(experiment)
        _sequence(experiment)
        devices.check(experiment)
        _training(experiment)
        _workers(experiment)
        _evaluation(experiment)
        models.check(experiment.model.name, experiment.model.sizes)
        _operators(experiment)
        strategy = strategy_of(experiment)
        strategies.check(experiment.strategy.name, strategy, experiment)
        initial.check(experiment, strategy)
    except Refusal as error:
        raise ExperimentError.of(error) from error


def _known(key: str, kind: str, name: str, names: Iterable[str], *, paths: bool = False) -> None:
    """Refuse a name that is in no table; with `paths`, what has a colon is looked for elsewhere."""
    names = tuple(names)
    if name in names:
        return
    if paths and ":" in name:
        check_own(key, name)
    else:
        raise unknown(kind, name, names, key=key, own="module:name" if paths else "")


def _names(experiment: Experiment) -> None:
    data, model, client, run = experiment.data, experiment.model, experiment.client, experiment.run
    if run.name and (not _RUN_NAME.fullmatch(run.name) or len(run.name.encode()) > _LONGEST_NAME):
        raise ExperimentError(
            f"run.name={run.name} should be the name of a folder.",
            key="run.name",
            remedy="Use letters, digits, underscores, dots and hyphens, no dot or hyphen first, and not too many.",
        )
    if "/" in experiment.name or len(experiment.name.encode()) > _LONGEST_NAME:
        raise ExperimentError(
            f"name={experiment.name} should be a name, and no path.", key="name", remedy="Leave it out, or shorten it."
        )
    _known("client.device", "device", client.device.partition(":")[0], DEVICES)
    _known("data.partition", "partition", data.partition, partition.names())
    _known("data.augment", "augment", data.augment, transforms.augmentations())
    if not data.name.startswith("hub:"):
        _known("data.name", "data set", data.name, [*data_sets.names(), "hub:<name>"], paths=True)
    _known("model.name", "model", model.name, models.names(), paths=True)


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
    for key, number in (("run.clients_per_round", run.clients_per_round), ("data.num_shuffled", data.num_shuffled)):
        if number > data.num_clients:
            raise ExperimentError(
                f"{key}={number} is more than data.num_clients={data.num_clients}.",
                key=key,
                remedy=f"Set it to {data.num_clients} or less.",
            )
    if isinstance(run.min_replies, float) and run.min_replies > 1:
        raise ExperimentError(
            f"run.min_replies={run.min_replies} is written with a point, as a share of the clients, and above 1.",
            key="run.min_replies",
            remedy=f"For a number of replies write {max(round(run.min_replies), 1)}; for all replies write 1.0.",
        )
    if isinstance(run.min_replies, int) and run.min_replies > experiment.num_sampled:
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


def _workers(experiment: Experiment) -> None:
    engine = experiment.engine
    if engine.workers == "auto" and own_data.is_own(experiment):
        raise ExperimentError(
            "engine.workers=auto measures training, and data of sites' own are known when all sites have agreed.",
            key="engine.workers",
            remedy="Say how many workers there are.",
        )
    if engine.workers == "auto" and engine.gpus_per_worker:
        raise ExperimentError(
            f"engine.gpus_per_worker={engine.gpus_per_worker} with engine.workers=auto, which finds that out itself.",
            key="engine.gpus_per_worker",
            remedy="Leave engine.gpus_per_worker at 0, or say how many workers there are.",
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
    if client.compile != "none" and experiment.model.checkpoint:
        raise ExperimentError(
            f"client.compile={client.compile} and model.checkpoint=true do not go together: a compiler decides itself "
            "what to keep.",
            key="client.compile",
            remedy="Set client.compile=none, or model.checkpoint=false.",
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
    if client.label_smoothing and data.heads == "per_task":
        raise ExperimentError(
            f"client.label_smoothing={client.label_smoothing} spreads labels over all classes, and with "
            "data.heads=per_task an example sees those of its task alone.",
            key="client.label_smoothing",
            remedy="Set client.label_smoothing=0, or data.heads=shared.",
        )
    for name, number, off, schedule in (
        ("lr_step", client.lr_step, 1, "step"),
        ("lr_rounds", client.lr_rounds, 0, "cosine"),
    ):
        if number != off and client.lr_schedule != schedule:
            raise ExperimentError(
                f"client.{name}={number} has no part in client.lr_schedule={client.lr_schedule}.",
                key=f"client.{name}",
                remedy=f"Set client.lr_schedule={schedule}, or client.{name}={off}.",
            )
    if client.lr_schedule == "step" and client.lr_decay == 1:
        raise ExperimentError(
            "client.lr_schedule=step changes nothing with client.lr_decay=1.",
            key="client.lr_decay",
            remedy="Set it below 1.",
        )
    if client.lr_schedule == "cosine" and client.lr_decay != 1:
        raise ExperimentError(
            f"client.lr_decay={client.lr_decay} has no part in client.lr_schedule=cosine.",
            key="client.lr_decay",
            remedy="Set client.lr_decay=1.",
        )
    if client.lr_schedule == "cosine" and client.lr_warmup >= (client.lr_rounds or experiment.run.rounds):
        raise ExperimentError(
            f"client.lr_warmup={client.lr_warmup} leaves no round for the cosine.",
            key="client.lr_warmup",
            remedy="Set it below client.lr_rounds, or run.rounds where that is 0.",
        )


def validated(experiment: Experiment) -> tuple[bool, bool]:
    """Say whether validation data are evaluated on the server, and on clients."""
    evaluate, data = experiment.evaluate, experiment.data
    on_server = evaluate.server and data.server_validation > 0
    # Sites may have a split of their own for it, which is known when they have been asked.
    on_clients = bool(evaluate.clients) and (data.client_validation > 0 or own_data.is_own(experiment))
    return bool(evaluate.every and on_server), bool(evaluate.every and on_clients)


def _evaluation(experiment: Experiment) -> None:
    """Refuse metrics that there are not, and ends by what is never measured."""
    run = experiment.run
    scores.check(experiment.evaluate.metrics, "evaluate.metrics")
    on_server, on_clients = validated(experiment)
    if run.patience and not (on_server or on_clients):
        raise _never_measured("run.patience", run.patience, "data.server_validation or data.client_validation")
    if run.budget:
        parse_budget(run.budget)
    for key, value in (("run.until", run.until), ("run.patience", run.patience), ("run.budget", run.budget)):
        if value and experiment.schedule.is_sequence:
            raise ExperimentError(
                f"{key}={value} could end the run before the last of its tasks.",
                key=key,
                remedy="Leave it out, or set data.rounds_per_task=0.",
            )
    if run.until:
        side = parse_until(run.until).metric.partition("/")[0]
        if not (on_clients if side == "clients" else on_server):
            share = "data.client_validation" if side == "clients" else "data.server_validation"
            raise _never_measured("run.until", run.until, share)


def _never_measured(key: str, value: object, share: str) -> ExperimentError:
    return ExperimentError(
        f"{key}={value} ends a run by validation data, of which none are evaluated.",
        key=key,
        remedy=f"Set {share} above 0, and evaluate.every, evaluate.server and evaluate.clients so that they are.",
    )
