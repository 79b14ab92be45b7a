"""What a strategy may look at when it is asked whether it goes with an experiment: its sections, read only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from umbel.core.refusal import Refusal
from umbel.core.schedule import Schedule
from umbel.core.training import LocalConfig
from umbel.core.virtual.config import DevicesConfig
from umbel.data.config import DataConfig


class ModelSetting(Protocol):
    """The section `model`; its keys are in docs/configuration.md."""

    @property
    def name(self) -> str: ...
    @property
    def norm(self) -> str: ...
    @property
    def checkpoint(self) -> bool: ...
    @property
    def sizes(self) -> Mapping[str, Any]: ...
    @property
    def operators(self) -> Mapping[str, Any]: ...


class RunSetting(Protocol):
    """The section `run`, as far as it says what is computed."""

    @property
    def rounds(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def participation(self) -> float: ...
    @property
    def clients_per_round(self) -> int: ...
    @property
    def min_replies(self) -> int | float: ...
    @property
    def sampling(self) -> str: ...
    @property
    def over_sample(self) -> int: ...
    @property
    def deadline(self) -> float: ...
    @property
    def until(self) -> str: ...
    @property
    def patience(self) -> int: ...
    @property
    def budget(self) -> str: ...


class SimulationSetting(Protocol):
    """The section `simulation`."""

    @property
    def devices(self) -> DevicesConfig: ...


class EvaluateSetting(Protocol):
    """The section `evaluate`."""

    @property
    def every(self) -> int: ...
    @property
    def server(self) -> bool: ...
    @property
    def clients(self) -> int: ...
    @property
    def collapse(self) -> bool: ...


class Setting(Protocol):
    """An experiment, as a strategy sees it before anything starts; an `Experiment` is one.

    Attributes:
        data: The section `data`.
        model: The section `model`.
        client: How clients train.
        run: The section `run`.
        evaluate: The section `evaluate`.
        simulation: The section `simulation`.
        schedule: When the sequence of tasks moves on.
        num_sampled: Clients that a `sample` phase selects.
    """

    @property
    def data(self) -> DataConfig: ...
    @property
    def model(self) -> ModelSetting: ...
    @property
    def client(self) -> LocalConfig: ...
    @property
    def run(self) -> RunSetting: ...
    @property
    def evaluate(self) -> EvaluateSetting: ...
    @property
    def simulation(self) -> SimulationSetting: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def num_sampled(self) -> int: ...


def refuse_collapse_of_own_parts(setting: Setting, strategy: str) -> None:
    """Refuse to measure the collapse of a model of which clients do not share features and head.

    Args:
        setting: The experiment.
        strategy: The strategy's name, for the message.

    Raises:
        Refusal: It is to be measured.
    """
    if setting.evaluate.collapse:
        raise Refusal(
            f"evaluate.collapse=true measures features and head of a model that all share, and under strategy.name="
            f"{strategy} clients have parts of their own.",
            key="evaluate.collapse",
            remedy="Set evaluate.collapse=false.",
        )


def refuse_norm_of_own(setting: Setting, strategy: str, why: str) -> None:
    """Refuse batch norm that stays with each client (`model.norm=local`), under which a method would be another.

    Args:
        setting: The experiment.
        strategy: The strategy's name, for the message.
        why: What is wrong with it there, after the strategy's name; no full stop.

    Raises:
        Refusal: It is to stay with each client.
    """
    if setting.model.norm == "local":
        raise Refusal(f"strategy.name={strategy} {why}.", key="model.norm", remedy="Leave model.norm as it is.")


def refuse_other_losses(setting: Setting, strategy: str) -> None:
    """Refuse what would change a loss that the strategy does not train with.

    Args:
        setting: The experiment.
        strategy: The strategy's name, for the message.

    Raises:
        Refusal: Labels are to be smoothed, or classes weighed.
    """
    client = setting.client
    for key, value, off in (
        ("label_smoothing", client.label_smoothing, 0.0),
        ("class_weights", client.class_weights, "none"),
    ):
        if value != off:
            raise Refusal(
                f"strategy.name={strategy} trains with losses of its own, in which client.{key}={value} has no part.",
                key=f"client.{key}",
                remedy=f"Set client.{key}={off:g}." if isinstance(off, float) else f"Set client.{key}={off}.",
            )


def refuse_without_sequence(setting: Setting, strategy: str, key: str, off: str) -> None:
    """Refuse a method for sequences of tasks where there is none: it would be FedAvg under another name.

    Args:
        setting: The experiment.
        strategy: The strategy's name, for the message.
        key: Its option that does what it does.
        off: The option's value with which it is meant to be FedAvg.

    Raises:
        Refusal: No task follows another.
    """
    if not setting.schedule.is_sequence:
        raise Refusal(
            f"strategy.name={strategy} is about what earlier tasks leave, and data.rounds_per_task="
            f"{setting.data.rounds_per_task} makes no sequence of tasks.",
            key="data.rounds_per_task",
            remedy="Set data.partition to one with tasks, such as split_tasks, and data.rounds_per_task to the rounds "
            f"of a task; or set {key}={off}, which is FedAvg.",
        )
