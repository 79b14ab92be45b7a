"""Find a strategy by name: an explicit table, loaded lazily."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import Any

from umbel.core.names import unknown
from umbel.core.refusal import Refusal
from umbel.strategies.base import Strategy

FLOWER_PREFIX = "flwr:"
DEFAULT = "fedavg"

# name -> (import path, one line)
_TABLE: dict[str, tuple[str, str]] = {
    "fedavg": ("umbel.strategies.fedavg:FedAvg", "Federated averaging (McMahan et al. 2017)"),
    "fedprox": ("umbel.strategies.fedprox:FedProx", "FedAvg with a proximal term (Li et al. 2020)"),
    "scaffold": (
        "umbel.strategies.scaffold:Scaffold",
        "Control variates against client drift (Karimireddy et al. 2020)",
    ),
    "creamfl": ("umbel.strategies.creamfl:CreamFL", "Ensembles of representations across modalities (Yu et al. 2023)"),
    "ggeur": ("umbel.strategies.ggeur:GGEUR", "Completion in the geometry of all clients' classes (Ma et al. 2025)"),
    "fot": ("umbel.strategies.fot:FOT", "Federated orthogonal training over a sequence of tasks (Bakman et al. 2024)"),
    "fedloge": ("umbel.strategies.fedloge:FedLoGe", "Sparse-ETF trunk, global and personal heads (Xiao et al. 2024)"),
    "fedopt": ("umbel.strategies.fedopt:FedOpt", "Server optimisers: momentum, Adam, Yogi (Reddi et al. 2021)"),
}


def names() -> tuple[str, ...]:
    """Return the names of all strategies of this project."""
    return tuple(_TABLE)


def describe(name: str) -> str:
    """Return one line about a strategy."""
    return _TABLE[name][1]


def find(name: str, key: str = "strategy.name") -> type[Strategy[Any]]:
    """Return the class of a strategy.

    Args:
        name: A name of the table, or `package.module:Class` as it stands. Over gRPC such a package must be
            installed on the server and on every node: only this project's own code travels in the bundle.
        key: The configuration key that says it.

    Raises:
        UnknownNameError: No such name; the message says the nearest.
        Refusal: The module or class is not there, or is no strategy.
    """
    if name not in _TABLE and ":" not in name:
        raise unknown("strategy", name, [*_TABLE, "flwr:<Flower strategy>"], key=key, own="module:Class")
    path = _TABLE[name][0] if name in _TABLE else name
    module_name, _, class_name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise Refusal(
            f"{key}={name}: {error}.",
            key=key,
            remedy="The package must be installed here, or be in a folder that PYTHONPATH names, and for a real "
            "federation on every node.",
        ) from error
    if not (inspect.isclass(found) and issubclass(found, Strategy)):
        raise Refusal(
            f"{key}={name}: {class_name} is no subclass of umbel.strategies.base.Strategy.",
            key=key,
            remedy="Name a class that is.",
        )
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise Refusal(
            f"{key}={name}: {class_name} does not say {', '.join(missing)}.",
            key=key,
            remedy="Write these methods; umbel.strategies.base.Strategy says what each returns.",
        )
    if not dataclasses.is_dataclass(getattr(found, "config_class", None)):
        raise Refusal(
            f"{key}={name}: {class_name} has no config_class, the frozen dataclass of its hyper-parameters.",
            key=key,
            remedy="Set it; without hyper-parameters it is an empty dataclass.",
        )
    return found


def options(name: str) -> dict[str, Any]:
    """Return the hyper-parameters of a strategy with their defaults."""
    config = find(name).config_class()
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
