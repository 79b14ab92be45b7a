"""FedNTD: preservation of the global knowledge by not-true distillation in federated learning.

Lee, Jeong, Shin, Bae, Yun. NeurIPS 2022, arXiv:2106.03097, equations 2 to 4, in delta form.

| paper | here | meaning |
|---|---|---|
| w^t | `State.model` | global model before a round |
| z_l, z_g | logits of the local and of the global model | |
| q~_l, q~_g | softmax over the classes that are not the true one | what the models say of the others |
| tau | `Config.temperature` | temperature of both |
| beta | `Config.beta` | weight of the distillation |
| L_CE | the client's loss (section `client`) | cross-entropy |

    L     = L_CE(z_l, y) + beta L_NTD(q~_l, q~_g)
    L_NTD = sum_{c != y} q~_g(c) log( q~_g(c) / q~_l(c) ),    q~(c) = exp(z_c / tau) / sum_{c' != y} exp(z_c' / tau)

What the global model knows of the classes that a client hardly has is kept, and of the true class the client learns as
it would without: the logit of the true class has no part in L_NTD. With beta = 0 this is FedAvg, bit for bit.

L_NTD is as the paper writes it, without the factor tau^2 by which distillation often keeps gradients of one size: at
another temperature than 1, beta tau^2 in place of beta has it. The global model is in evaluation mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.training import LocalConfig, num_processed
from umbel.data.federation import Federation
from umbel.models.base import Model
from umbel.strategies.base import (
    ClientContext,
    Phase,
    Setting,
    train_and_subtract,
)
from umbel.strategies.fedavg import Config as FedAvgConfig
from umbel.strategies.fedavg import FedAvg, State
from umbel.strategies.steps import frozen


@dataclass(frozen=True)
class Config(FedAvgConfig):
    """Hyper-parameters of FedNTD.

    Attributes:
        beta: Weight beta of the distillation.
        temperature: tau, above 0.
    """

    beta: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 1.0


def not_true(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the logits of the classes that are not the true one, [B, C - 1], in the order of the classes.

    Args:
        logits_BC: [B, C].
        labels_B: [B] int64.
    """
    others = torch.ones_like(logits_BC, dtype=torch.bool).scatter_(1, labels_B[:, None], False)
    return logits_BC[others].view(len(logits_BC), -1)


def distillation(local_BC: Tensor, global_BC: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """Return L_NTD [], the mean over a batch of B; C classes, 2 or more.

    Args:
        local_BC: z_l.
        global_BC: z_g.
        labels_B: y, int64.
        temperature: tau.
    """
    ours, theirs = (F.log_softmax(not_true(z, labels_B) / temperature, dim=1) for z in (local_BC, global_BC))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class FedNTD(FedAvg):
    """FedAvg whose clients keep what the global model says of the classes that are not the true one."""

    config_class = Config
    config: Config

    def check(self, setting: Setting) -> None:
        if setting.data.heads == "per_task":
            raise Refusal(
                "FedNTD distils the outputs of all classes but the true one, and data.heads=per_task hides those of "
                "other tasks.",
                key="data.heads",
                remedy="Set data.heads=shared.",
            )

    def check_data(self, federation: Federation) -> None:
        if federation.num_classes < 3:
            raise Refusal(
                "FedNTD compares what models say of the classes that are not the true one, which needs two of them; "
                f"these data have {federation.num_classes} classes in all.",
                key="strategy.name",
                remedy="Choose another strategy, such as fedavg.",
            )

    def every_phase(self) -> tuple[Phase[State], ...]:
        processed = self.num_processed
        return (Phase("train", self.send_model, self.local, self.fold, self.update, num_processed=processed),)

    def num_processed(self, local: LocalConfig, own: int) -> int:
        """Return the examples that a client goes through: each with the global model, too."""
        return 2 * num_processed(local, own)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        common = frozen(client.model(payload.trees["model"]))
        loss, beta, temperature = client.training_loss(), self.config.beta, self.config.temperature

        def objective(model: Model, x: Tensor, y: Tensor) -> Tensor:
            logits = model(x)
            with torch.no_grad():
                theirs = common(x)
            return loss(logits, y) + beta * distillation(logits, theirs, y, temperature)

        return train_and_subtract(payload, client, objective=objective)
