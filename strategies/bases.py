"""The strategy that another goes over, made of its name and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from umbel.core.names import unknown
from umbel.core.ranges import check_ranges
from umbel.core.refusal import Refusal
from umbel.strategies import registry
from umbel.strategies.base import Strategy


def refused(name: str, reason: str, remedy: str) -> Refusal:
    """Return the refusal of a base, which begins with its key and name."""
    return Refusal(f"strategy.base={name}{reason}.", key="strategy.base", remedy=remedy)


def make_base(name: str, options: Mapping[str, Any], over: type[Strategy[Any]], does: str) -> Strategy[Any]:
    """Return a base: a strategy with rounds, whose clients train the experiment's model and share all of it.

    Args:
        name: Of the table, or `package.module:Class`.
        options: Its hyper-parameters.
        over: The class that goes over it.
        does: What that does with the base's model, for the messages; begins with its name.

    Raises:
        Refusal: It cannot be a base, or an option is none of its own or out of range.
    """
    who = does.split()[0]
    if name.startswith(registry.FLOWER_PREFIX):
        raise refused(name, ": Flower's own cannot be a base", "Choose one of ours.")
    kind, known = registry.find(name, "strategy.base"), registry.options(name)
    for key in options.keys() - known.keys():
        raise unknown(f"option of {name}", key, known, key=f"strategy.base_options.{key}")
    if issubclass(kind, over):
        raise refused(name, f": {who} goes over another strategy, not over itself", "Choose another, such as fedavg.")
    if kind.own_model:
        raise refused(
            name,
            f" trains models of its own, and {does}",
            "Choose a strategy.base that trains model.name, such as fedavg.",
        )
    if kind.local_parts:
        raise refused(
            name,
            f" keeps the {', '.join(kind.local_parts)} with each client, and {does}, the same for all",
            "Choose a strategy.base whose clients share it, such as fedavg.",
        )
    if kind.is_asynchronous:
        raise refused(
            name,
            f" has clients begin and end at times of its own, and {does}, for which all are asked at once",
            "Choose a strategy.base with rounds, such as fedavg.",
        )
    check_ranges(kind.config_class(**options), "strategy.base_options")
    return registry.make(name, options, "strategy.base")
