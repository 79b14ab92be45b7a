"""MOON: model-contrastive federated learning.

Li, He, Song. CVPR 2021, arXiv:2103.16257, algorithm 1, in delta form.

| paper | here | meaning |
|---|---|---|
| w^t | `State.model` | global model before round t |
| w_i^t, w_i^{t-1} | the local model, memory tree `model` | the client's model now, and when it last took part |
| z | features of the local model | representation of an image |
| z_glob, z_prev | features of w^t, of w_i^{t-1} | representations of the same image, which do not learn |
| mu, tau | `Config.mu`, `Config.temperature` | weight and temperature of the contrastive loss |
| l_sup | the client's loss (section `client`) | supervised loss |

    l     = l_sup(w_i; x, y) + mu l_con(w_i; w_i^{t-1}, w^t; x)
    l_con = -log( exp(sim(z, z_glob) / tau) / (exp(sim(z, z_glob) / tau) + exp(sim(z, z_prev) / tau)) )

sim is the cosine of the angle between two representations. So what a client learns stays near to what the global model
sees, and goes away from what it saw itself the last time. With mu = 0 this is FedAvg, bit for bit.

The paper puts a projection head of two layers on the encoder, and contrasts what comes out of it; here it is the
model's own `features`, of any model of the zoo, so that nothing is trained besides the model. A client that takes part
for the first time has no w_i^{t-1}: w^t would take its place, which makes l_con a constant, and it is left out. The two
models that do not learn are in evaluation mode. Batch norm that stays with a client (`model.norm=local`) is its own in
all three.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload, Reply
from umbel.core.training import Objective, num_processed
from umbel.core.tree import subtract
from umbel.models.base import Model
from umbel.strategies.base import (
    ClientContext,
    Phase,
)
from umbel.strategies.fedavg import Config as FedAvgConfig
from umbel.strategies.fedavg import FedAvg, State
from umbel.strategies.phase import Visit
from umbel.strategies.steps import frozen


@dataclass(frozen=True)
class Config(FedAvgConfig):
    """Hyper-parameters of MOON.

    Attributes:
        mu: Weight mu of the contrastive loss.
        temperature: tau, above 0.
    """

    mu: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 0.5


def contrast(z_BD: Tensor, global_BD: Tensor, previous_BD: Tensor, temperature: float) -> Tensor:
    """Return l_con [], the mean over a batch of B; D features.

    Args:
        z_BD: z.
        global_BD: z_glob.
        previous_BD: z_prev.
        temperature: tau.
    """
    near = F.cosine_similarity(z_BD, global_BD, dim=1)
    away = F.cosine_similarity(z_BD, previous_BD, dim=1)
    return F.softplus((away - near) / temperature).mean()


class MOON(FedAvg):
    """FedAvg with a loss that draws a client's representations to those of the global model."""

    config_class = Config
    config: Config

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send_model, self.local, self.fold, self.update, besides=self.besides),)

    def besides(self, state: State, visit: Visit) -> int:
        """Return the examples of the two models that do not learn, which who comes for the first time has not."""
        return 2 * num_processed(visit.server.local, visit.own) if visit.remembers else 0

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        received = payload.trees["model"]
        model = client.model(received)
        report = client.train(model, objective=self.objective(model, client))
        own = client.weights(model)
        client.remember(MemoryRecord({"model": own}))
        return Reply({"delta": subtract(own, received)}, {"loss": report.loss}, client.num_examples)

    def objective(self, received: Model, client: ClientContext) -> Objective | None:
        """Return l of (model, images [B, ...], labels [B]), from w^t on; None where there is no model before it."""
        known = client.memory.trees if client.memory else {}
        if "model" not in known:
            return None
        common, previous = frozen(received), frozen(received, known["model"])
        supervised, mu, temperature = client.training_loss(), self.config.mu, self.config.temperature

        def objective(model: Model, x: Tensor, y: Tensor) -> Tensor:
            z = model.features(x)
            with torch.no_grad():
                z_glob, z_prev = common.features(x), previous.features(x)
            return supervised(model.head(z), y) + mu * contrast(z, z_glob, z_prev, temperature)

        return objective
