"""FedAvg: communication-efficient learning of deep networks from decentralized data.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas. AISTATS 2017, arXiv:1602.05629, algorithm 1, in delta form:
clients send the change of the model, which a server learning rate may scale (1 is the paper).

| paper | here | meaning |
|---|---|---|
| w_t | `State.model` | global model before round t |
| K, C | `data.num_clients`, `run.participation` | clients, fraction selected in a round |
| S_t | the cohort | selected clients |
| E, B, eta | `client.epochs`, `client.batch_size`, `client.lr` | local passes, batch, learning rate |
| n_k | `Reply.num_examples` | training examples of client k |
| w_{t+1}^k - w_t | tree `delta` | change of client k |

    w_{t+1} = w_t + eta_g * sum_k n_k (w_{t+1}^k - w_t) / sum_k n_k
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from umbel.core.folds import Fold, Folded, Like, Product, UniformMean, WeightedMean, product
from umbel.core.ranges import OneOf
from umbel.core.tree import Tree
from umbel.strategies.base import (
    Phase,
    ServerContext,
    Strategy,
    initial_model,
    server_step,
    train_and_subtract,
)

WEIGHTINGS = ("examples", "uniform")


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FedAvg.

    Attributes:
        server_lr: Server learning rate eta_g, no unit; 1 is the paper's averaging.
        weighting: `examples` weighs a client by n_k as the paper does, `uniform` gives every client the same.
    """

    server_lr: Annotated[float, Ge(0)] = 1.0
    weighting: Annotated[str, OneOf(*WEIGHTINGS)] = "examples"


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: w_t, the global model's shared state.
    """

    model: dict[str, Tensor]


def mean_fold(weighting: str, like: Like) -> Fold:
    """Return the mean that `weighting` names, over trees shaped as the payload's tree `like`."""
    return WeightedMean(like) if weighting == "examples" else UniformMean(like)


def step(model: Tree, mean_delta: Tree, server_lr: float) -> dict[str, Tensor]:
    """Return w_{t+1} = w_t + eta_g * mean delta.

    Args:
        model: w_t; any names and shapes.
        mean_delta: Mean change of the clients, same names and shapes, float64.
        server_lr: eta_g.
    """
    return server_step(model, mean_delta, server_lr)


class FedAvg(Strategy[State]):
    """Federated averaging: train locally, average the changes."""

    config_class = Config
    config: Config

    def initial(self, server: ServerContext) -> State:
        return State(initial_model(server))

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send_model, train_and_subtract, self.fold, self.update),)

    def fold(self) -> Product:
        return product({"delta": mean_fold(self.config.weighting, "model")}, numbers=["loss"])

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        return State(step(state.model, folded.trees["delta"], self.config.server_lr))

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model
