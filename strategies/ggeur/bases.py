"""The strategy that GGEUR goes over, made of its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from umbel.core.refusal import Refusal
from umbel.strategies import bases, registry
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
    does = "GGEUR completes what goes into the experiment's linear head"
    base = bases.make_base(config.base, config.base_options, over, does)
    if config.refresh and type(base) not in map(registry.find, REFRESHABLE):
        raise Refusal(
            f"strategy.refresh={config.refresh} trains head and trunk apart, which works with strategy.base="
            f"{', '.join(REFRESHABLE)}, found {config.base}.",
            key="strategy.refresh",
            remedy="Choose one of these, or set strategy.refresh=0.",
        )
    return base
