"""The strategy that GGEUR goes over, made of its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from umbel.core.names import unknown
from umbel.core.ranges import check_ranges
from umbel.core.refusal import Refusal
from umbel.strategies import registry
from umbel.strategies.base import Strategy

if TYPE_CHECKING:
    from umbel.strategies.ggeur.method import Config

REFRESHABLE = ("fedavg", "fedprox", "fedopt")


def make_base(config: Config, over: type[Strategy[Any]]) -> Strategy[Any]:
    """Return the strategy that trains on what is completed.

    Args:
        config: Names it and its options.
        over: The class that goes over it.

    Raises:
        Refusal: It cannot be a base, or an option is none of its own or out of range.
    """

    def refused(reason: str, remedy: str) -> Refusal:
        return Refusal(f"strategy.base={config.base}{reason}.", key="strategy.base", remedy=remedy)

    if config.base.startswith(registry.FLOWER_PREFIX):
        raise refused(": Flower's own cannot be a base", "Choose one of ours.")
    kind, known = registry.find(config.base, "strategy.base"), registry.options(config.base)
    for key in config.base_options.keys() - known.keys():
        raise unknown(f"option of {config.base}", key, known, key=f"strategy.base_options.{key}")
    if issubclass(kind, over):
        raise refused(": GGEUR goes over another strategy, not over itself", "Choose another, such as fedavg.")
    if kind.own_model:
        raise refused(
            " trains models of its own, and GGEUR completes what goes into the experiment's linear head",
            "Choose a strategy.base that trains model.name, such as fedavg.",
        )
    if kind.local_parts:
        raise refused(
            f" keeps the {', '.join(kind.local_parts)} with each client, and GGEUR completes what goes into it for all",
            "Choose a strategy.base whose clients share it, such as fedavg.",
        )
    if kind.is_asynchronous:
        raise refused(
            " has clients begin and end at times of its own, and GGEUR's phases come before it, for all at once",
            "Choose a strategy.base with rounds, such as fedavg.",
        )
    if config.refresh and kind not in map(registry.find, REFRESHABLE):
        raise Refusal(
            f"strategy.refresh={config.refresh} trains head and trunk apart, which works with strategy.base="
            f"{', '.join(REFRESHABLE)}, found {config.base}.",
            key="strategy.refresh",
            remedy="Choose one of these, or set strategy.refresh=0.",
        )
    check_ranges(kind.config_class(**config.base_options), "strategy.base_options")
    return registry.make(config.base, config.base_options, "strategy.base")
