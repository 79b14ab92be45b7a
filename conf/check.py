"""Values and combinations that an experiment may have; each error names the key to change."""

from __future__ import annotations

from collections.abc import Iterable

from conf.errors import ExperimentError
from conf.schema import Experiment
from core.device import DEVICES, PRECISIONS
from core.names import unknown
from core.training import OPTIMIZERS
from data import partition, transforms
from data import registry as data_sets
from models import registry as models
from strategies import registry as strategies

ENGINES = ("inline", "ray", "grpc")
NORMS = ("average", "local", "group")


def _one_of(key: str, value: str, allowed: Iterable[str]) -> None:
    allowed = tuple(allowed)
    if value not in allowed:
        raise ExperimentError(str(unknown(key.rpartition(".")[2], value, allowed, key=key)))


def _at_least(experiment: Experiment, low: float, *keys: str) -> None:
    for key in keys:
        section, name = key.split(".")
        value = getattr(getattr(experiment, section), name)
        if not value >= low:
            raise ExperimentError(f"{key} should be at least {low:g}, found {value!r}.")


def _fraction(experiment: Experiment, *keys: str) -> None:
    for key in keys:
        section, name = key.split(".")
        value = getattr(getattr(experiment, section), name)
        if not 0 <= value < 1:
            raise ExperimentError(f"{key} is a fraction in [0, 1), found {value!r}.")


def check(experiment: Experiment) -> None:
    """Raise `ExperimentError` unless the experiment can start (data sets are looked for elsewhere)."""
    _one_of("engine.name", experiment.engine.name, ENGINES)
    _one_of("model.norm", experiment.model.norm, NORMS)
    _one_of("client.optimizer", experiment.client.optimizer, OPTIMIZERS)
    _one_of("client.precision", experiment.client.precision, PRECISIONS)
    _one_of("client.device", experiment.client.device.partition(":")[0], DEVICES)
    _one_of("data.partition", experiment.data.partition, partition.names())
    _one_of("data.augment", experiment.data.augment, transforms.augmentations())
    if experiment.data.name not in data_sets.names() and ":" not in experiment.data.name:
        raise ExperimentError(
            str(unknown("data set", experiment.data.name, [*data_sets.names(), "hub:<name>"], key="data.name"))
        )
    if experiment.model.name not in models.names() and ":" not in experiment.model.name:
        raise ExperimentError(str(unknown("model", experiment.model.name, models.names(), key="model.name")))
    _at_least(experiment, 1, "run.rounds", "run.min_replies", "run.fold_block", "run.threads", "data.num_clients")
    _at_least(experiment, 1, "data.min_examples", "data.num_tasks", "data.imbalance", "engine.nodes")
    _at_least(experiment, 0, "run.clients_per_round", "client.epochs", "client.max_steps", "client.batch_size")
    _at_least(experiment, 0, "client.lr", "client.momentum", "client.weight_decay", "client.clip_norm")
    _at_least(experiment, 0, "evaluate.every", "checkpoint.every", "engine.workers", "engine.gpus_per_worker")
    _at_least(experiment, -1, "evaluate.clients")
    _fraction(experiment, "data.server_validation", "data.client_validation", "data.client_test")
    _combinations(experiment)
    _sizes(experiment)
    _strategy(experiment)


def _sizes(experiment: Experiment) -> None:
    """Refuse size keywords that the model does not have; their values are checked when it is built."""
    if ":" in experiment.model.name:
        return  # a factory of somebody else's is asked when it is called
    known = [size for size in models.options(experiment.model.name) if size != "image_size"]
    for size in experiment.model.sizes:
        if size not in known:
            raise ExperimentError(str(unknown("size", size, known, key=f"model.sizes.{size}")))


def _combinations(experiment: Experiment) -> None:
    run, data, client = experiment.run, experiment.data, experiment.client
    if not 0 < run.participation <= 1:
        raise ExperimentError(f"run.participation is a fraction in (0, 1], found {run.participation!r}.")
    if run.clients_per_round > data.num_clients:
        raise ExperimentError(
            f"run.clients_per_round={run.clients_per_round} is more than data.num_clients={data.num_clients}."
        )
    if run.min_replies > experiment.num_sampled:
        raise ExperimentError(
            f"run.min_replies={run.min_replies} can never be met: a round selects {experiment.num_sampled} clients "
            "(run.participation, run.clients_per_round)."
        )
    if data.client_validation + data.client_test >= 1:
        raise ExperimentError("data.client_validation + data.client_test leave nothing to train on.")
    if data.encoder and (data.augment != "none" or data.partition == "permuted_tasks"):
        wrong = f"augment={data.augment}" if data.augment != "none" else f"partition={data.partition}"
        raise ExperimentError(
            f"data.{wrong} changes images, and with data.encoder={data.encoder} there are embeddings in their place. "
            "Set data.augment=none and another data.partition, or no data.encoder."
        )
    if data.alpha <= 0:
        raise ExperimentError(f"data.alpha should be above 0, found {data.alpha!r}.")
    if not client.epochs and not client.max_steps:
        raise ExperimentError("client.epochs=0 and client.max_steps=0: a client would do nothing.")
    if client.nesterov and not client.momentum:
        raise ExperimentError("client.nesterov=true needs client.momentum above 0.")
    if client.optimizer != "sgd" and client.momentum:
        raise ExperimentError(f"client.momentum goes with client.optimizer=sgd, not {client.optimizer}.")


def _strategy(experiment: Experiment) -> None:
    name = experiment.strategy.name
    if name.startswith(strategies.FLOWER_PREFIX):
        return  # Flower's own are checked by the server package, which knows Flower
    try:
        kind = strategies.find(name)
        kind(kind.config_class(**experiment.strategy.options)).check(experiment.client)
    except ValueError as error:
        raise ExperimentError(str(error)) from error
