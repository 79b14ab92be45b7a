"""Flower's own strategies by name: only their `aggregate_train` is used."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from umbel.conf.errors import ExperimentError
from umbel.conf.schema import Experiment
from umbel.core.names import nearest, unknown
from umbel.core.wire.flower_versions import fleet
from umbel.server.errors import RunStoppedError
from umbel.strategies.registry import FLOWER_PREFIX
from umbel.strategies.whole_models import State, WholeModels

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp.strategy import Strategy as FlowerStrategy

# Ours select the cohort, so what these say about sampling is set to something that never refuses.
_SAMPLING = (
    "fraction_train",
    "fraction_evaluate",
    "min_train_nodes",
    "min_evaluate_nodes",
    "min_available_nodes",
)
# Need something of the client that this project's client half does not do; ours by the same name does.
_EXCLUDED = {"FedProx", "QFedAvg", "FedXgbBagging", "FedXgbCyclic"}
_MODEL = "current_arrays"  # where Flower's adaptive strategies keep the model they start the round from


_LIST = "#"  # a tree whose names start so was a list of arrays


def _flower() -> ModuleType:
    """Return Flower's strategies; here, for a run of any other strategy does without Flower's servers."""
    from flwr.serverapp import strategy

    return strategy


def _records() -> ModuleType:
    """Return Flower's records and messages, likewise."""
    import flwr.app

    return flwr.app


def flower_names() -> list[str]:
    """Return the names of Flower's strategies that can be made from plain options."""
    names = []
    for name, kind in vars(_flower()).items():
        if inspect.isclass(kind) and issubclass(kind, _flower().Strategy) and not inspect.isabstract(kind):
            required = [p for p in inspect.signature(kind).parameters.values() if p.default is inspect.Parameter.empty]
            if not required and name not in _EXCLUDED:
                names.append(FLOWER_PREFIX + name)
    return sorted(names)


def flower_options(name: str) -> dict[str, Any]:
    """Return the options of a Flower strategy with their defaults, without those of its sampling."""
    kind = _find(name)
    return {
        p.name: p.default
        for p in inspect.signature(kind).parameters.values()
        if p.name not in _SAMPLING and not p.name.endswith(("_key", "_fn")) and p.default is not p.empty
    }


def _find(name: str) -> type[FlowerStrategy]:
    if name not in flower_names():
        raise ExperimentError(str(unknown("Flower strategy", name, flower_names(), key="strategy.name")))
    kind: type[FlowerStrategy] = getattr(_flower(), name.removeprefix(FLOWER_PREFIX))
    return kind


def check(experiment: Experiment) -> None:
    """Raise `ExperimentError` when the experiment names a Flower strategy that cannot be made as it says."""
    name, options = experiment.strategy.name, experiment.strategy.options
    if name.startswith(FLOWER_PREFIX):
        fleet()  # refuses a Flower that nobody has tried
        _check(name, json.dumps(options, sort_keys=True))


@lru_cache(maxsize=64)
def _check(name: str, options_json: str) -> None:
    """Check options; the same ones once in a process."""
    options = json.loads(options_json)
    known = flower_options(name)
    for option, value in options.items():
        if option not in known:
            guesses = nearest(option, known)
            hint = f"Did you mean {guesses[0]}?" if guesses else f"Known: {', '.join(known)}."
            raise ExperimentError(f"strategy.{option}: {name} has no such option. {hint}")
        default = known[option]
        right = isinstance(value, int | float) if isinstance(default, float) else isinstance(value, type(default))
        if default is not None and (not right or isinstance(value, bool) != isinstance(default, bool)):
            raise ExperimentError(f"strategy.{option}: expected {type(default).__name__}, found {value!r}.")
    try:
        _make(name, options)
    except (TypeError, ValueError) as error:
        raise ExperimentError(f"strategy.name={name}: {error}") from error


def _make(name: str, options: Mapping[str, Any]) -> FlowerStrategy:
    logging.getLogger("flwr").setLevel(logging.WARNING)
    return _find(name)(**options)


def bind(strategy: WholeModels) -> None:
    """Give the strategy the Flower strategy's aggregation."""
    config = strategy.config

    def aggregate(round_: int, state: State, replies: Sequence[tuple[int, int, dict[str, Tensor]]]) -> State:
        # Made anew each round and given its own state back, so that a resumed run has the same one.
        flower = _make(config.name, config.options)
        _restore(flower, state)
        # Some of Flower's pair arrays by position, so all trees stand in the order of the model.
        messages = [
            _message(client, size, {name: tree[name] for name in state.model}) for client, size, tree in replies
        ]
        arrays, _ = flower.aggregate_train(round_, messages)
        if arrays is None:
            raise RunStoppedError(f"{config.name} returned no model in round {round_}.")
        model = {name: torch.from_numpy(np.array(array.numpy())) for name, array in arrays.items()}
        trees, numbers = _own_state(flower, before=_make(config.name, config.options))
        return State(model, trees, numbers)

    strategy.aggregate = aggregate


def _message(client: int, num_examples: int, tree: Mapping[str, Tensor]) -> Message:
    """Make the message that Flower's `aggregate_train` expects of one client."""
    from umbel.server.flower.internals import identify

    identify()
    app = _records()
    content = app.RecordDict(
        {"arrays": _arrays(tree), "metrics": app.MetricRecord({"num-examples": num_examples})},
    )
    # Node 0 means none to Flower.
    instruction = app.Message(app.RecordDict(), dst_node_id=client + 1, message_type="train")
    made: Message = app.Message(content, reply_to=instruction)
    return made


def _arrays(tree: Mapping[str, Tensor]) -> Any:
    app = _records()
    return app.ArrayRecord({name: app.Array(tensor.numpy()) for name, tensor in tree.items()})


def _as_flower(tree: Mapping[str, Tensor], like: object) -> Any:
    if all(name.startswith(_LIST) for name in tree):
        return [tensor.numpy().copy() for tensor in tree.values()]
    if isinstance(like, _records().ArrayRecord):
        return _arrays(tree)
    return {name: tensor.numpy().copy() for name, tensor in tree.items()}


def _restore(flower: FlowerStrategy, state: State) -> None:
    if hasattr(flower, _MODEL):
        # FedOpt's family keeps numpy arrays there, the others an ArrayRecord.
        is_adaptive = isinstance(flower, _flower().FedAdagrad | _flower().FedAdam)
        adaptive = is_adaptive or isinstance(flower, _flower().FedYogi)
        setattr(flower, _MODEL, _as_flower(state.model, {} if adaptive else _records().ArrayRecord()))
    for name, tree in state.arrays.items():
        setattr(flower, name, _as_flower(tree, getattr(flower, name)))
    for name, number in state.numbers.items():
        setattr(flower, name, number)


def _own_state(flower: FlowerStrategy, before: FlowerStrategy) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """Read what a Flower strategy carries from round to round: arrays by name, and numbers that changed."""
    trees: dict[str, dict[str, Tensor]] = {}
    numbers: dict[str, float] = {}
    for name, value in vars(flower).items():
        if name == _MODEL:
            continue
        if isinstance(value, _records().ArrayRecord):
            trees[name] = {key: torch.from_numpy(np.array(array.numpy())) for key, array in value.items()}
        elif isinstance(value, dict) and value and all(isinstance(item, np.ndarray) for item in value.values()):
            trees[name] = {key: torch.from_numpy(np.array(item)) for key, item in value.items()}
        elif isinstance(value, list) and value and all(isinstance(item, np.ndarray) for item in value):
            trees[name] = {f"{_LIST}{i:06d}": torch.from_numpy(np.array(item)) for i, item in enumerate(value)}
        elif isinstance(value, int | float) and value != getattr(before, name):
            numbers[name] = value
    return trees, numbers
