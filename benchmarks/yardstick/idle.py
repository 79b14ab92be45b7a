"""Strategies whose clients do nothing: what a round of them takes is what umbel itself takes."""

from __future__ import annotations

from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload, Reply
from umbel.core.tree import subtract_from
from umbel.strategies.base import ClientContext, Phase
from umbel.strategies.fedavg import FedAvg, State


class Idle(FedAvg):
    """FedAvg without training: a client takes the model, and sends back that it did not change."""

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send_model, self.idle, self.fold, self.update),)

    def idle(self, payload: Payload, client: ClientContext) -> Reply:
        """Do nothing."""
        before = payload.trees["model"]
        delta = subtract_from(client.weights(client.model(before)), before)
        return Reply({"delta": delta}, {"loss": 0.0}, client.num_examples)


class IdleWithMemory(Idle):
    """The same, with a memory of the model's size that each client reads and writes, as SCAFFOLD's."""

    def idle(self, payload: Payload, client: ClientContext) -> Reply:
        """Read and write the memory."""
        before = payload.trees["model"] if client.memory is None else client.memory.trees["own"]
        client.remember(MemoryRecord({"own": dict(before)}))
        return super().idle(payload, client)
