"""Training at home: every client trains a model of its own, and nothing is averaged.

The baseline that any federated method has to beat on a client's own data. Cohorts, rounds, epochs and the client's
optimiser are those of the experiment, so that both have the same budget; what a client has learned stays in its
memory, and all that it sends is its loss.

| name | meaning |
|---|---|
| memory tree `model` | the client's own model, all of its state that a federated method would share |
| `State.model` | the model as initialised, where every client begins |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from umbel.core.folds import Folded, Product, product
from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload, Reply
from umbel.core.tree import Tree
from umbel.strategies.base import ClientContext, Phase, Predictor, ServerContext, Strategy, initial_model


@dataclass(frozen=True)
class Config:
    """Training at home has no hyper-parameters of its own."""


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: Where every client begins; it never changes.
    """

    model: dict[str, Tensor]


class Local(Strategy[State]):
    """Each client for itself."""

    config_class = Config
    is_generic = False
    config: Config

    def initial(self, server: ServerContext) -> State:
        return State(initial_model(server))

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send_model, self.local, self.fold, self.update),)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        model = client.model(_own(payload, client))
        report = client.train(model)
        client.remember(MemoryRecord({"model": client.weights(model)}))
        return Reply({}, {"loss": report.loss}, client.num_examples)

    def fold(self) -> Product:
        return product({}, numbers=["loss"])

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        return state

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        return {"model": Predictor(client.model(_own(payload, client)).eval())}


def _own(payload: Payload, client: ClientContext) -> Tree:
    """Return the client's own model, which begins as the one that came."""
    return client.memory.trees["model"] if client.memory else payload.trees["model"]
