"""The half of Flower's own strategies that runs in this project: train, send the whole model, collect.

Flower's server strategies (`flwr:Krum`, `flwr:FedTrimmedAvg`, ...) aggregate whole models, one ArrayRecord and
`num-examples` a reply. Clients here train as in FedAvg and reply with the trained model; the replies are
collected in the cohort's order and handed to `aggregate`, which the server binds to Flower's `aggregate_train`.
Batch-norm statistics are aggregated with all other tensors, as Flower does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from umbel.core.collecting import Collect, replies_in
from umbel.core.folds import Folded, Product, product
from umbel.core.records import Payload, Reply
from umbel.core.tree import cast_like
from umbel.strategies.base import ClientContext, Phase, ServerContext, Strategy, initial_model


@dataclass(frozen=True)
class Config:
    """Which of Flower's strategies.

    Attributes:
        name: `flwr:<class>`.
        options: Keyword arguments of the class.
    """

    name: str = "flwr:FedAvg"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: The global model's shared state.
        arrays: The Flower strategy's own named trees, such as Adam's moments.
        numbers: Its own numbers that change from round to round.
    """

    model: dict[str, Tensor]
    arrays: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


Aggregate = Callable[[int, State, Sequence[tuple[int, int, dict[str, Tensor]]]], State]


class WholeModels(Strategy[State]):
    """Whole models, collected and handed to an aggregate."""

    config_class = Config
    config: Config

    def __init__(self, config: Config, aggregate: Aggregate | None = None) -> None:
        super().__init__(config)
        self.aggregate = aggregate

    def initial(self, server: ServerContext) -> State:
        return State(initial_model(server))

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send_model, self.local, self.fold, self.update),)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        model = client.model(payload.trees["model"])
        report = client.train(model)
        return Reply({"arrays": client.weights(model)}, {"loss": report.loss}, client.num_examples)

    def fold(self) -> Product:
        return product({"arrays": Collect(like="model")}, numbers=["loss"])

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        if self.aggregate is None:
            raise RuntimeError("Only a server can aggregate with one of Flower's strategies.")
        new = self.aggregate(server.round, state, replies_in(folded.trees["arrays"]))
        return State(cast_like(new.model, state.model), new.arrays, new.numbers)

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model
