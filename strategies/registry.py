"""Find a strategy by name: an explicit table, loaded lazily."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from umbel.core import outside
from umbel.core.names import unknown
from umbel.core.refusal import Refusal
from umbel.strategies.base import Strategy
from umbel.strategies.phase import Phase, by_name
from umbel.strategies.setting import Setting

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
    "fedbuff": ("umbel.strategies.fedbuff:FedBuff", "Buffered asynchronous aggregation (Nguyen et al. 2022)"),
    "feddyn": ("umbel.strategies.feddyn:FedDyn", "Regularizers that change with each round (Acar et al. 2021)"),
    "fednova": ("umbel.strategies.fednova:FedNova", "Changes averaged by the local step (Wang et al. 2020)"),
    "ditto": ("umbel.strategies.ditto:Ditto", "Personal models drawn to the common one (Li et al. 2021)"),
    "pfedme": ("umbel.strategies.pfedme:PFedMe", "Personal models by Moreau envelopes (Dinh et al. 2020)"),
    "apfl": ("umbel.strategies.apfl:APFL", "Mixtures of a local and the global model (Deng et al. 2020)"),
    "fedrod": (
        "umbel.strategies.long_tail.fedrod:FedRoD",
        "A balanced common model, personal heads on top (Chen and Chao 2022)",
    ),
    "fedetf": (
        "umbel.strategies.long_tail.fedetf:FedETF",
        "A fixed simplex in place of a classifier (Li et al. 2023)",
    ),
    "creff": ("umbel.strategies.long_tail.creff:CReFF", "A classifier re-trained on made features (Shang et al. 2022)"),
    "moon": ("umbel.strategies.moon:MOON", "A contrast with the global and the previous model (Li et al. 2021)"),
    "fedntd": ("umbel.strategies.fedntd:FedNTD", "Distillation of the classes that are not true (Lee et al. 2022)"),
    "ccvr": (
        "umbel.strategies.ccvr:CCVR",
        "A classifier calibrated on draws from all clients' features (Luo et al. 2021)",
    ),
    "fedper": ("umbel.strategies.fedper:FedPer", "A head of each client's own (Arivazhagan et al. 2019)"),
    "fedrep": ("umbel.strategies.fedrep:FedRep", "Heads first, then the common body (Collins et al. 2021)"),
    "lgfedavg": ("umbel.strategies.lgfedavg:LGFedAvg", "A body of each client's own (Liang et al. 2020)"),
    "fedproto": (
        "umbel.strategies.fedproto:FedProto",
        "Models of one's own that agree on prototypes of classes (Tan et al. 2022)",
    ),
    "fedbabu": (
        "umbel.strategies.fedbabu:FedBABU",
        "A body under a fixed head, fine-tuned at the end (Oh et al. 2022)",
    ),
    "ewc": (
        "umbel.strategies.continual.ewc:EWC",
        "Parameters held by their Fisher information (Kirkpatrick et al. 2017)",
    ),
    "lwf": ("umbel.strategies.continual.lwf:LwF", "Distillation of what old heads said (Li and Hoiem 2016)"),
    "replay": ("umbel.strategies.continual.replay:Replay", "A small memory of old examples (Chaudhry et al. 2019)"),
    "fedmd": ("umbel.strategies.fedmd:FedMD", "Models of any kind, by a consensus on public data (Li and Wang 2019)"),
    "fedgems": (
        "umbel.strategies.fedgems:FedGEMS",
        "A larger server model that learns from itself and, where it is wrong, from clients (Cheng et al. 2021)",
    ),
    "fedet": (
        "umbel.strategies.fedet:FedET",
        "A larger server model, by a weighted consensus of clients' small ones (Cho et al. 2022)",
    ),
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
    if name in _TABLE:
        module_name, _, class_name = _TABLE[name][0].partition(":")
        ours: type[Strategy[Any]] = getattr(importlib.import_module(module_name), class_name)
        return ours
    return _checked(name, outside.find(name, "strategy", key), key)


def module_of(name: str) -> str | None:
    """Return the module that the table has for a strategy; None for a name that it does not have."""
    return _TABLE[name][0].partition(":")[0] if name in _TABLE else None


def make(name: str, options: Mapping[str, Any], key: str = "strategy.name") -> Strategy[Any]:
    """Make a strategy with these hyper-parameters.

    Args:
        name: As in `find`.
        options: Values of fields of its `config_class`; the others have their defaults.
        key: As in `find`.

    Raises:
        Refusal: A hyper-parameter is out of its range; or a strategy from outside raises, or has no phases.
    """
    kind = find(name, key)
    if name in _TABLE:
        return kind(kind.config_class(**options))
    with outside.guarded(f"{key}={name} cannot be made", key):
        strategy = kind(kind.config_class(**options))
        phases = strategy.every_phase()
    if not (isinstance(phases, tuple) and phases and all(isinstance(phase, Phase) for phase in phases)):
        raise Refusal(
            f"{key}={name}: every_phase() should return a tuple of one umbel.Phase or more, found {phases!r}.",
            key=key,
            remedy='Return (Phase("train", self.send_model, self.local, self.fold, self.update),).',
        )
    by_name(phases, key)
    return strategy


def check(name: str, strategy: Strategy[Any], setting: Setting, key: str = "strategy.name") -> None:
    """Ask a strategy whether it goes with an experiment.

    Args:
        name: The strategy's.
        strategy: The strategy.
        setting: The experiment.
        key: As in `find`.

    Raises:
        Refusal: It does not; or one from outside raises something else.
    """
    if ":" not in name or name.startswith(FLOWER_PREFIX):
        strategy.check(setting)
        return
    with outside.guarded(f"{key}={name} cannot be asked whether it goes with this experiment", key):
        strategy.check(setting)


def _checked(name: str, kind: Any, key: str) -> type[Strategy[Any]]:
    """Return what somebody named if it is a class of a strategy that says all that it must."""
    path = f"{key}={name}"
    if not (inspect.isclass(kind) and issubclass(kind, Strategy)):
        raise Refusal(
            f"{path}: {getattr(kind, '__name__', repr(kind))} is no subclass of umbel.Strategy.",
            key=key,
            remedy="Name a class that is.",
        )
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise Refusal(
            f"{path}: {kind.__name__} does not say {', '.join(missing)}.",
            key=key,
            remedy="Write these methods; umbel.strategies.base.Strategy says what each returns.",
        )
    config = getattr(kind, "config_class", None)
    if not (inspect.isclass(config) and dataclasses.is_dataclass(config)):
        raise Refusal(
            f"{path}: {kind.__name__} has no config_class, the frozen dataclass of its hyper-parameters.",
            key=key,
            remedy="Set it; without hyper-parameters it is an empty dataclass.",
        )
    without = [
        field.name
        for field in dataclasses.fields(config)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if without:
        raise Refusal(
            f"{path}: {config.__name__} has no default for {', '.join(without)}.",
            key=key,
            remedy="Give each hyper-parameter one.",
        )
    return kind


def options(name: str) -> dict[str, Any]:
    """Return the hyper-parameters of a strategy with their defaults."""
    config = find(name).config_class()
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
