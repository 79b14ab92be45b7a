"""Where a run's model starts: fresh weights, or those of a trained one (`model.init`).

Only the server reads the file; clients get the weights as they get all others, so that no node needs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from umbel.conf.errors import ExperimentError
from umbel.conf.schema import Experiment
from umbel.core.files import read_tensors
from umbel.core.refusal import Refusal
from umbel.core.tree import Tree, sha256
from umbel.data.federation import Federation
from umbel.models.base import Model
from umbel.models.card import KEY, Card, file_of
from umbel.models.weights import shared_state
from umbel.strategies.base import Strategy

_SHOWN = 3


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        tensors: The weights that are not fresh.
        notice: What is kept of the file and what is new, in a sentence.
    """

    tensors: dict[str, Tensor]
    notice: str


def check(experiment: Experiment, strategy: Strategy[Any]) -> None:
    """Refuse `model.init` where it cannot be; the file is not looked for.

    Args:
        experiment: The experiment.
        strategy: Its strategy.
    """
    model = experiment.model
    if not model.init:
        if model.init_sha256:
            raise ExperimentError(
                "model.init_sha256 is a hash of nothing without model.init.",
                key="model.init_sha256",
                remedy="Set model.init, or leave both out.",
            )
        return
    if strategy.own_model:
        raise ExperimentError(
            f"model.init: under strategy.name={experiment.strategy.name} server and clients have models of their own.",
            key="model.init",
            remedy="Leave it out, or choose another strategy.",
        )
    if model.norm == "local":
        raise ExperimentError(
            "model.init with model.norm=local: each client's batch norm stays where it is, and no client has the file.",
            key="model.norm",
            remedy="Set model.norm=average.",
        )
    if strategy.local_parts:
        raise ExperimentError(
            f"model.init: under strategy.name={experiment.strategy.name} the {', '.join(strategy.local_parts)} of each "
            "client stays where it is, and no client has the file.",
            key="model.init",
            remedy="Leave it out, or choose another strategy.",
        )


def resolved(experiment: Experiment) -> Experiment:
    """Return the experiment with the absolute path of the weights that it starts from, and their hash.

    Raises:
        Refusal: There is no such file, or it has other weights than the experiment says.
    """
    if not experiment.model.init:
        return experiment
    file = file_of(experiment.model.init, "model.init")
    model = dataclasses.replace(experiment.model, init=str(file), init_sha256=sha256(_read(experiment, file)[0]))
    return dataclasses.replace(experiment, model=model)


def start(experiment: Experiment, model: Model, data: Federation) -> Start:
    """Return what an experiment's model starts from.

    A classifier of another number of classes, or of classes of other names, is left as it is in `model`.

    Args:
        experiment: The experiment, with `model.init`.
        model: Its model, with fresh weights.
        data: Its data.

    Raises:
        Refusal: The file cannot be read, has other weights than the experiment says, or does not fit the model.
    """
    file = file_of(experiment.model.init, "model.init")
    tensors, card = _read(experiment, file)
    if card is not None and card.encoder != experiment.data.encoder:
        raise _misfit(
            file,
            f"its model reads {card.encoder or 'images'}, this one {experiment.data.encoder or 'images'}",
            f"Set data.encoder={card.encoder}.",
        )
    fresh = shared_state(model)
    head = _head_names(model)
    classes = next((tensors[name].shape[0] for name in head if name in tensors and tensors[name].dim()), 0)
    is_other = card is not None and card.classes != data.class_names
    new = {name for name in fresh if name in tensors and _is_classifier(tensors[name], fresh[name], classes, data)}
    new |= {name for name in head if is_other}
    _check_fits({name: tensor for name, tensor in tensors.items() if name not in new}, fresh, new, file, card)
    kept = {name: tensors[name] for name in fresh if name not in new}
    notice = _notice(file, kept, sorted(new), classes, data)
    return Start(kept, f"{notice} {card.unusable}" if card and card.unusable else notice)


def _read(experiment: Experiment, file: Path) -> tuple[dict[str, Tensor], Card | None]:
    """Return the weights of a file, and its card if it has one."""
    try:
        tensors, metadata = read_tensors(file)
        card = Card.of(metadata) if KEY in metadata else None
    except (ValueError, TypeError) as error:
        raise _misfit(file, f"it cannot be read: {error}", "Give a safetensors file.") from error
    expected = experiment.model.init_sha256 or (card.weights_sha256 if card else "")
    if expected and sha256(tensors) != expected:
        raise _misfit(
            file,
            f"its weights have the hash {sha256(tensors)[:12]}, expected {expected[:12]}",
            "Bring it back from a copy, or start from what it has now: set model.init_sha256= (nothing).",
        )
    return tensors, card


def _head_names(model: Model) -> list[str]:
    """Return the names that weight and bias of the head have in the model's state."""
    own = {id(parameter) for parameter in model.head.parameters()}
    return [name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in own]


def _is_classifier(given: Tensor, fresh: Tensor, classes: int, data: Federation) -> bool:
    """Say whether a tensor is a classifier's, and differs in nothing but the number of classes."""
    if not given.dim() or not fresh.dim() or classes == data.num_classes:
        return False
    expected = ((classes, *given.shape[1:]), (data.num_classes, *given.shape[1:]))
    return (tuple(given.shape), tuple(fresh.shape)) == expected


def _check_fits(tensors: Tree, fresh: Tree, new: set[str], file: Path, card: Card | None) -> None:
    """Refuse weights that the model does not have, or not in this shape; index tables and counters do not count."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() or name in fresh}
    wrong = [f"{name} is missing" for name in fresh.keys() - floating.keys() - new]
    wrong += [f"{name} is not in this model" for name in floating.keys() - fresh.keys()]
    wrong += [
        f"{name} is {list(tensor.shape)} of {tensor.dtype}, here {list(fresh[name].shape)}"
        for name, tensor in floating.items()
        if name in fresh and (tensor.shape != fresh[name].shape or not tensor.is_floating_point())
    ]
    if not wrong:
        return
    more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    made = f"It holds {_words(card)}; set model and data to match" if card else "Set model and data to match"
    raise _misfit(file, f"its weights do not fit: {'; '.join(sorted(wrong)[:_SHOWN])}{more}", f"{made}.")


def _words(card: Card) -> str:
    extras = {"sizes": card.sizes, "operators": card.operators}
    said = "".join(f" with {name} {value}" for name, value in extras.items() if value)
    norm = f" and norm={card.norm}" if card.norm != "average" else ""
    return f"{card.model}{said}{norm} for {card.in_channels} x {card.image_size} x {card.image_size}"


def _notice(file: Path, kept: Mapping[str, Tensor], new: list[str], classes: int, data: Federation) -> str:
    if not new:
        return f"model.init: all {len(kept)} tensors are those of {file}."
    why = f"has {classes} classes there and {data.num_classes} here"
    if classes == data.num_classes:
        why = "has classes of other names there"
    return f"model.init: {len(kept)} tensors are those of {file}. The classifier {why}: {', '.join(new)} start anew."


def _misfit(file: Path, what: str, remedy: str) -> Refusal:
    return Refusal(f"model.init={file}: {what}.", key="model.init", remedy=remedy)
