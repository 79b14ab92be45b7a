"""FedDyn: federated learning based on dynamic regularization.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama. ICLR 2021, arXiv:2111.04263, algorithm 1, in delta form.

| paper | here | meaning |
|---|---|---|
| theta^t | `State.model` | global model |
| h^t | `State.mean_gradient` | mean of what all clients remember, 0 at first |
| theta_k^t | the local model | |
| grad L_k(theta_k^{t-1}) | memory tree `gradient`, g_k | client k's gradient where it ended last; 0 at first |
| theta_k^t - theta^{t-1} | tree `delta` | change of client k |
| alpha | `Config.alpha` | strength of the regularizer |
| m, P_t | `data.num_clients`, the cohort | all clients, those selected |

    local    theta_k = argmin L_k(theta) - <g_k, theta> + alpha/2 norm(theta - theta^{t-1})^2
             g_k <- g_k - alpha (theta_k - theta^{t-1})
    server   h <- h - alpha/m sum_{P_t} (theta_k - theta^{t-1})
             theta^t = mean_{P_t} theta_k - h / alpha

Where the argmin is exact, the new g_k is the gradient of L_k at theta_k. h is the mean of all g_k, whoever takes part;
where nothing moves any more it is 0, and the model stationary for the objective of all clients, although each of them
trains to the end.

The paper's mean is uniform. `weighting=examples` takes all means by n_k, the share of the examples of those who replied
in place of |P_t| / m among them: else h would not be the mean of all g_k. The regularizer enters as its gradient,
alpha (theta - theta^{t-1}) - g_k. Batch-norm statistics are part of the model, but have no gradient: their mean is
taken, without h. Under `model.norm=local` parameters that stay with a client are pulled toward where they were, without
a g_k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from umbel.core.folds import Folded, Product, product
from umbel.core.memory import MemoryRecord
from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.training.corrections import AffineCorrection
from umbel.core.tree import Tree, zeros_like
from umbel.strategies.base import (
    ClientContext,
    Phase,
    ServerContext,
    Strategy,
    initial_model,
    server_step,
    split_buffers,
    train_and_subtract,
)
from umbel.strategies.fedavg import WEIGHTINGS, mean_fold
from umbel.strategies.steps import replied_share


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FedDyn.

    Attributes:
        alpha: Strength alpha of the regularizer, in units of the loss over squared weights; above 0.
        weighting: `uniform` as in the paper, or `examples` for all means.
    """

    alpha: Annotated[float, Gt(0)] = 0.01
    weighting: Annotated[str, OneOf(*WEIGHTINGS)] = "uniform"


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: theta^t, the global model's shared state.
        mean_gradient: h^t, one tensor for each parameter of the shared state.
    """

    model: dict[str, Tensor]
    mean_gradient: dict[str, Tensor]


def renewed(gradient: Tree, change: Tree, alpha: float, share: float = 1.0) -> dict[str, Tensor]:
    """Return g - alpha share change of each tensor of `gradient`, computed in float64 and cast once.

    With a client's own change it is its new g_k; with the mean change of those who replied, and their share, the new h.

    Args:
        gradient: g_k, or h.
        change: Change of the model; it may have other tensors besides, which have no gradient.
        alpha: alpha.
        share: Weight of those who replied among all clients.
    """
    return {
        name: (g.to(torch.float64) - alpha * share * change[name].to(torch.float64)).to(g.dtype)
        for name, g in gradient.items()
    }


def server_change(mean_change: Tree, mean_gradient: Tree, alpha: float) -> dict[str, Tensor]:
    """Return theta^t - theta^{t-1}, the mean change less h / alpha where there is an h.

    Args:
        mean_change: Mean change of the clients, float64.
        mean_gradient: h, of some of its names.
        alpha: alpha.
    """
    return {
        name: change - mean_gradient[name].to(torch.float64) / alpha if name in mean_gradient else change
        for name, change in mean_change.items()
    }


class FedDyn(Strategy[State]):
    """Regularizers that change with each round, so that clients' optima come to be those of all."""

    config_class = Config
    config: Config

    def initial(self, server: ServerContext) -> State:
        model = initial_model(server)
        parameters, _ = split_buffers(server.build_model(), model)
        return State(model, zeros_like(parameters))

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send_model, self.local, self.fold, self.update),)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        model = client.model(payload.trees["model"])
        parameters, _ = split_buffers(model, payload.trees["model"])
        known = client.memory.trees if client.memory else {}
        gradient = known["gradient"] if "gradient" in known else zeros_like(parameters)
        anchors = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        shifts = [-own for own in client.align(model, gradient)]
        reply = train_and_subtract(payload, client, AffineCorrection(self.config.alpha, anchors, shifts))
        own = renewed(gradient, reply.trees["delta"], self.config.alpha)
        client.remember(MemoryRecord({"gradient": own}))
        return reply

    def fold(self) -> Product:
        return product({"delta": mean_fold(self.config.weighting, "model")}, numbers=["loss"])

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        delta, alpha = folded.trees["delta"], self.config.alpha
        share = replied_share(self.config.weighting, folded, server)
        mean_gradient = renewed(state.mean_gradient, delta, alpha, share)
        return State(server_step(state.model, server_change(delta, mean_gradient, alpha)), mean_gradient)

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model
