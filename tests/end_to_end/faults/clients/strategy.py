"""Federated averaging with a client that does whatever is asked by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.end_to_end.faults.clients.lent import HARMLESS, OTHERS
from tests.end_to_end.faults.clients.replies import FORMS, NUMBERS, RAISED
from tests.end_to_end.faults.clients.shared import ENDS, SHARED, TIMES
from umbel.core.records import Payload
from umbel.strategies import fedavg
from umbel.strategies.base import ClientContext

BAD = 1  # the client: one runs before it, others after it
BAD_KINDS = {**FORMS, **NUMBERS, **RAISED, **SHARED, **TIMES, **ENDS}
KINDS = {**BAD_KINDS, **HARMLESS, **OTHERS}


@dataclass(frozen=True)
class Config(fedavg.Config):
    """Of a federation one of whose clients is bad.

    Attributes:
        kinds: What it does in each round; an empty one, and none, is to be absent.
        evaluates: It does so when it evaluates, and trains honestly.
    """

    kinds: tuple[str, ...] = ()
    evaluates: bool = False


class Bad(fedavg.FedAvg):
    """Federated averaging with a bad client."""

    config_class = Config
    config: Config

    def every_phase(self) -> tuple[Any, ...]:
        (train,) = super().every_phase()

        def local(payload: Payload, client: ClientContext) -> Any:
            if client.id != BAD or self.config.evaluates:
                return train.local(payload, client)
            return self._act(payload, client, lambda: train.local(payload, client))

        return (replace(train, local=local),)

    def personal(self, payload: Payload, client: ClientContext) -> Any:
        honest = super().personal
        if client.id != BAD or not self.config.evaluates:
            return honest(payload, client)
        return self._act(payload, client, lambda: honest(payload, client))

    def _act(self, payload: Payload, client: ClientContext, honest: Callable[[], Any]) -> Any:
        kind = self.config.kinds[client.round - 1] if client.round <= len(self.config.kinds) else ""
        if not kind:
            raise RuntimeError("absent")
        return KINDS[kind](payload, client, honest)
