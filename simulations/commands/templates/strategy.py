"""What this strategy does: federated averaging, with a step size on the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from umbel.core.folds import Folded, Product, WeightedMean, product
from umbel.core.records import Payload, Reply
from umbel.core.tree import Tree
from umbel.strategies.base import ClientContext, Phase, ServerContext, Strategy, initial_model, train_and_subtract


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; each has a default, and its range stands in its annotation.

    Attributes:
        step: How far the server goes towards the clients' mean, above 0; 1 is federated averaging.
    """

    step: Annotated[float, Gt(0)] = 1.0


@dataclass(frozen=True)
class State:
    """What the server keeps from round to round; it is saved in checkpoints.

    Attributes:
        model: The global model's shared state.
    """

    model: dict[str, Tensor]


def moved(model: Tree, delta: Tree, step: float) -> dict[str, Tensor]:
    """Return model + step * delta.

    Args:
        model: Tensors by name.
        delta: The same names and shapes.
        step: A number.
    """
    return {name: tensor + step * delta[name] for name, tensor in model.items()}


class NewStrategy(Strategy[State]):
    """Federated averaging with a step size on the server."""

    config_class = Config
    config: Config

    def initial(self, server: ServerContext) -> State:
        """Return the State before the first round."""
        return State(initial_model(server))

    def every_phase(self) -> tuple[Phase[State], ...]:
        """Return the exchanges of a round: what is sent, what a client does, how replies combine, what comes of it."""
        return (Phase("train", self.send_model, self.local, self.fold, self.update),)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        """Train on a client's data and reply with the change, by name `delta`, and the loss."""
        return train_and_subtract(payload, client)

    def fold(self) -> Product:
        """Say how the replies of a round combine: a mean, weighted by numbers of examples."""
        return product({"delta": WeightedMean(like="model")}, numbers=["loss"])

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        """Return the State after the round."""
        return State(moved(state.model, folded.trees["delta"], self.config.step))

    def model(self, state: State) -> dict[str, Tensor]:
        """Return what is evaluated, saved and hashed."""
        return state.model
