"""FedProx: federated optimization in heterogeneous networks.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith. MLSys 2020, arXiv:1812.06127, algorithm 2, in delta form.

| paper | here | meaning |
|---|---|---|
| w^t | `State.model` | global model before round t |
| mu | `Config.mu` | strength of the proximal term |
| h_k(w; w^t) | F_k(w) + mu/2 * norm(w - w^t)^2 | what client k minimises |
| gamma_k-inexactness | `client.epochs`, `client.max_steps` | how far it gets |

The proximal term enters as its gradient mu (w - w^t). With mu = 0 this is FedAvg, bit for bit. The paper
samples clients in proportion to n_k and averages uniformly; the default here samples uniformly and weighs by
n_k, as its published experiments' comparison with FedAvg does in expectation; `weighting=uniform` averages
uniformly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from umbel.core.folds import Folded, Product, product
from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.training.corrections import AffineCorrection
from umbel.strategies.base import (
    ClientContext,
    Phase,
    ServerContext,
    Strategy,
    initial_model,
    server_step,
    train_and_subtract,
)
from umbel.strategies.fedavg import WEIGHTINGS, mean_fold


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FedProx.

    Attributes:
        mu: Strength mu of the proximal term, in units of the loss over squared weights.
        server_lr: Server learning rate eta_g; 1 is the paper.
        weighting: `examples` or `uniform`.
    """

    mu: Annotated[float, Ge(0)] = 0.01
    server_lr: Annotated[float, Ge(0)] = 1.0
    weighting: Annotated[str, OneOf(*WEIGHTINGS)] = "examples"


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: w^t, the global model's shared state.
    """

    model: dict[str, Tensor]


class FedProx(Strategy[State]):
    """FedAvg with a proximal term that keeps clients near the global model."""

    config_class = Config
    config: Config

    def initial(self, server: ServerContext) -> State:
        return State(initial_model(server))

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send_model, self.local, self.fold, self.update),)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        model = client.model(payload.trees["model"])
        anchors = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        return train_and_subtract(payload, client, AffineCorrection(self.config.mu, anchors))

    def fold(self) -> Product:
        return product({"delta": mean_fold(self.config.weighting, "model")}, numbers=["loss"])

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        return State(server_step(state.model, folded.trees["delta"], self.config.server_lr))

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model
