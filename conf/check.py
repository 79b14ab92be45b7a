"""Values and combinations that an experiment may have; each error names the key to change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from umbel.conf.errors import ExperimentError
from umbel.conf.schema import SEQUENCES, Experiment
from umbel.core.device import DEVICES, PRECISIONS
from umbel.core.names import unknown
from umbel.core.training import OPTIMIZERS
from umbel.data import partition, transforms
from umbel.data.federation import Federation
from umbel.data.sets import registry as data_sets
from umbel.models import operators
from umbel.models import registry as models
from umbel.models.norm import GROUPS
from umbel.strategies import registry as strategies

ENGINES = ("inline", "ray", "grpc")
HEADS = ("shared", "per_task")
NORMS = ("average", "local", *GROUPS)
_RUN_NAME = re.compile(r"\w[\w.-]*")


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
    _at_least(experiment, 0, "data.rounds_per_task", "data.num_shuffled")
    _one_of("data.heads", experiment.data.heads, HEADS)
    _at_least(experiment, 0, "run.clients_per_round", "client.epochs", "client.max_steps", "client.batch_size")
    _at_least(experiment, 0, "client.lr", "client.momentum", "client.weight_decay", "client.clip_norm")
    _at_least(experiment, 0, "evaluate.every", "checkpoint.every", "engine.workers", "engine.gpus_per_worker")
    _at_least(experiment, -1, "evaluate.clients")
    _fraction(experiment, "data.server_validation", "data.client_validation", "data.client_test")
    _combinations(experiment)
    _sizes(experiment)
    _operators(experiment)
    _strategy(experiment)


def check_data(experiment: Experiment, data: Federation) -> None:
    """Raise `ExperimentError` unless the data have what the strategy needs; asked before the first round."""
    options = experiment.strategy.options
    asked = experiment.strategy.name == "ggeur" and options.get("augment", True) and options.get("domains", False)
    if asked and data.pool.domains is None:
        raise ExperimentError(
            f"strategy.domains=true draws around prototypes of other domains, and data.name={experiment.data.name} has "
            "none. Set strategy.domains=false, or choose a data set with domains."
        )


def _sizes(experiment: Experiment) -> None:
    """Refuse size keywords that the model does not have; their values are checked when it is built."""
    if ":" in experiment.model.name:
        return  # a factory of somebody else's is asked when it is called
    known = [size for size in models.options(experiment.model.name) if size != "image_size"]
    for size in experiment.model.sizes:
        if size not in known:
            raise ExperimentError(str(unknown("size", size, known, key=f"model.sizes.{size}")))


def _operators(experiment: Experiment) -> None:
    """Refuse operators and options that there are not; values are checked where the model is built."""
    chosen, strategy = experiment.model.operators, experiment.strategy.name
    for name, options in chosen.items():
        key = f"model.operators.{name}"
        if options is not None and not isinstance(options, Mapping):
            raise ExperimentError(f"{key} is a mapping of options, such as {{}}; found {options!r}.")
        try:
            operators.check(name, options or {})
        except ValueError as error:
            raise ExperimentError(str(error)) from error
    if chosen and strategy == "creamfl":
        raise ExperimentError(
            "model.operators go into the experiment's model, and under strategy.name=creamfl each client has one of "
            "strategy.image_models. Leave model.operators out."
        )
    computed = [name for name in chosen if not operators.is_watched(name)]
    if computed and strategy == "fot":
        raise ExperimentError(
            f"strategy.name=fot projects changes of the weights that it sees convolve, and model.operators."
            f"{computed[0]} convolves with kernels that are computed from its weights: after the first task "
            "these would stand still, or forget (strategy.rest). Leave it out, or choose another strategy."
        )


def _combinations(experiment: Experiment) -> None:
    run, data, client = experiment.run, experiment.data, experiment.client
    if run.name and not _RUN_NAME.fullmatch(run.name):
        raise ExperimentError(
            f"run.name={run.name} should be the name of a folder: letters, digits, underscores, dots and hyphens, no "
            "dot or hyphen first."
        )
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
    if data.num_shuffled > data.num_clients:
        raise ExperimentError(
            f"data.num_shuffled={data.num_shuffled} is more than data.num_clients={data.num_clients}."
        )
    if data.num_shuffled and data.partition in SEQUENCES:
        raise ExperimentError(
            f"data.num_shuffled={data.num_shuffled} mixes the labels of tasks: choose a data.partition without tasks."
        )
    _sequence(experiment)
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
    if client.compile and experiment.model.checkpoint:
        raise ExperimentError(
            "client.compile=true and model.checkpoint=true do not go together: a compiler decides itself what to keep. "
            "Set one of them to false."
        )
    if client.nesterov and not client.momentum:
        raise ExperimentError("client.nesterov=true needs client.momentum above 0.")
    if client.optimizer != "sgd" and client.momentum:
        raise ExperimentError(f"client.momentum goes with client.optimizer=sgd, not {client.optimizer}.")


def _sequence(experiment: Experiment) -> None:
    data = experiment.data
    if data.rounds_per_task and data.partition not in SEQUENCES:
        raise ExperimentError(
            f"data.rounds_per_task={data.rounds_per_task} needs data.partition={' or '.join(SEQUENCES)}, found "
            f"{data.partition}."
        )
    if data.heads == "per_task" and data.partition != "split_tasks":
        raise ExperimentError(f"data.heads=per_task needs data.partition=split_tasks, found {data.partition}.")
    planned = data.rounds_per_task * data.num_tasks
    if experiment.run.rounds < planned:
        raise ExperimentError(
            f"run.rounds={experiment.run.rounds} ends before the last task: data.num_tasks={data.num_tasks} of "
            f"data.rounds_per_task={data.rounds_per_task} need {planned}."
        )


def _strategy(experiment: Experiment) -> None:
    name, options = experiment.strategy.name, experiment.strategy.options
    frozen = options.get("augment", True) and not options.get("refresh", 0)
    if name == "ggeur" and frozen and not experiment.data.encoder:
        raise ExperimentError(
            "strategy.name=ggeur completes embeddings of a frozen encoder: set data.encoder, or strategy.refresh to "
            "take features of the global model every so many rounds."
        )
    if name in ("ggeur", "fedloge") and experiment.schedule.is_sequence:
        raise ExperimentError(
            f"strategy.name={name} takes what it knows of the classes once, in the first round, and does not go with a "
            "sequence of tasks. Set data.rounds_per_task=0."
        )
    if name == "creamfl":
        _creamfl(experiment)
    if name.startswith(strategies.FLOWER_PREFIX):
        return  # Flower's own are checked by the server package, which knows Flower
    try:
        kind = strategies.find(name)
        kind(kind.config_class(**experiment.strategy.options)).check(experiment.client)
    except ValueError as error:
        raise ExperimentError(str(error)) from error


def _creamfl(experiment: Experiment) -> None:
    data, options = experiment.data, experiment.strategy.options
    for key, needed in (("public", data.public > 0), ("text_encoder", bool(data.text_encoder))):
        if not needed:
            raise ExperimentError(
                f"strategy.name=creamfl teaches by public pairs of image and text: set data.{key} (and a data set "
                "with both, such as emoji_pairs)."
            )
    kinds = {key: int(options.get(key, 0)) for key in ("num_image", "num_text", "num_both")}
    if sum(kinds.values()) != data.num_clients:
        found = " + ".join(f"strategy.{key}={number}" for key, number in kinds.items())
        raise ExperimentError(f"{found} should make data.num_clients={data.num_clients}.")
    if data.augment != "none" or data.partition in SEQUENCES:
        raise ExperimentError(
            "strategy.name=creamfl reads images and texts as they are: set data.augment=none and no sequence of tasks."
        )
    if experiment.evaluate.collapse:
        raise ExperimentError(
            "evaluate.collapse=true measures features and a head of classes, and strategy.name=creamfl has none. "
            "Set it to false."
        )
    if experiment.model.norm != "average":
        raise ExperimentError(
            f"model.norm={experiment.model.norm} is a rule for models that are averaged; creamfl averages none, and "
            "each client keeps its own. Set model.norm=average, and choose models without batch norm."
        )
