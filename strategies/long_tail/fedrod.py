"""FedRoD: on bridging generic and personalized federated learning for image classification.

Chen, Chao. ICLR 2022, arXiv:2107.00778, the variant with a linear personalized head, in delta form.

| paper | here | meaning |
|---|---|---|
| theta, psi | `State.model` | feature extractor and generic head |
| phi_m | memory tree `head` | personalized head of client m |
| f(x; theta) | `features` | features |
| gamma | `Config.gamma` | exponent of the class counts in the balanced loss |
| N_{m,c} | counts of the client's labels | its examples of class c |
| g^G, g^P | logits of the head, and with those of `head` added | generic and personalized logits |

    g^G = h(f(x; theta); psi)                 g^P = g^G + h^P(f(x; theta); phi_m)
    l^BSM = -log( N_{m,y}^gamma exp(g^G_y) / sum_c N_{m,c}^gamma exp(g^G_c) )
    client   theta, psi <- SGD of l^BSM       phi_m <- SGD of cross-entropy(g^P), theta and psi still
    server   theta, psi <- mean of the clients'

So each client trains the common model as if its classes were balanced, which makes clients alike, and a head of its own
on top for the classes that it has. A class that a client lacks has N = 0 and is no part of its balanced softmax. With
gamma = 0 the common model is FedAvg's. Each batch steps both parts, by the same optimiser; no gradient goes from one to
the other. phi_m begins at zero, so that a client begins with the generic predictions; the paper leaves that open.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.tree import subtract
from umbel.models.base import Model
from umbel.strategies.base import ClientContext, Phase, Predictor, Setting
from umbel.strategies.fedavg import Config as FedAvgConfig
from umbel.strategies.fedavg import FedAvg, State
from umbel.strategies.setting import refuse_other_losses


@dataclass(frozen=True)
class Config(FedAvgConfig):
    """Hyper-parameters of FedRoD.

    Attributes:
        gamma: Exponent of the class counts in the balanced loss; 1 is balanced softmax, 0 plain cross-entropy.
    """

    gamma: Annotated[float, Ge(0)] = 1.0


@dataclass(frozen=True)
class BalancedAndPersonal:
    """The sum of both losses, a function of (logits [2, B, C], labels [B]): generic, and personalized.

    Attributes:
        counts_C: N_{m,c}, [C].
        gamma: Exponent.
    """

    counts_C: Tensor
    gamma: float

    def __call__(self, logits_2BC: Tensor, labels_B: Tensor) -> Tensor:
        generic, personal = logits_2BC
        return balanced_softmax(generic, labels_B, self.counts_C, self.gamma) + F.cross_entropy(personal, labels_B)


def balanced_softmax(logits_BC: Tensor, labels_B: Tensor, counts_C: Tensor, gamma: float = 1.0) -> Tensor:
    """Return l^BSM [], the mean over B (Ren et al. 2020, equation 4).

    Args:
        logits_BC: g^G.
        labels_B: Labels, of classes whose count is above 0.
        counts_C: N_{m,c}.
        gamma: Exponent; at 0 every class counts the same, also one that the client lacks.
    """
    if gamma == 0:
        return F.cross_entropy(logits_BC, labels_B)
    return F.cross_entropy(logits_BC + gamma * counts_C.to(logits_BC.dtype).log(), labels_B)


class BothHeads(Model):
    """A model under its own head and a personalized one, which sees features and logits without a gradient."""

    def __init__(self, model: Model, personal: nn.Linear) -> None:
        super().__init__()
        self.num_features, self.in_channels, self.image_size = model.num_features, model.in_channels, model.image_size
        self.model, self.personal = model, personal

    def forward(self, x: Tensor) -> Tensor:
        """Return [2, B, C]: g^G, g^P."""
        f = self.model.features(x)
        generic = self.model.head(f)
        return torch.stack([generic, generic.detach() + self.personal(f.detach())])


class FedRoD(FedAvg):
    """A common model trained as if all classes were balanced, and a head of each client's own on top."""

    config_class = Config
    config: Config

    def check(self, setting: Setting) -> None:
        refuse_other_losses(setting, "fedrod")
        if setting.client.clip_norm:
            raise Refusal(
                f"strategy.name=fedrod trains two parts at once, and client.clip_norm={setting.client.clip_norm} would "
                "let the gradient of one shorten the other's.",
                key="client.clip_norm",
                remedy="Set client.clip_norm=0.",
            )
        if setting.data.heads == "per_task":
            raise Refusal(
                "strategy.name=fedrod balances all classes of a client, and data.heads=per_task shows a task's only.",
                key="data.heads",
                remedy="Set data.heads=shared.",
            )

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send_model, self.local, self.fold, self.update),)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        model = client.model(payload.trees["model"])
        personal = personal_head(model, client)
        counts = torch.bincount(client.train_data.labels, minlength=client.num_classes).to(client.device)
        loss = BalancedAndPersonal(counts, self.config.gamma)
        report = replace(client, loss=loss).train(BothHeads(model, personal))
        own = {name: tensor.detach().cpu().clone() for name, tensor in personal.state_dict().items()}
        client.remember(MemoryRecord({"head": own}))
        delta = subtract(client.weights(model), payload.trees["model"])
        return Reply({"delta": delta}, {"loss": report.loss}, client.num_examples)

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        """Evaluate g^P, and g^G beside it."""
        model = client.model(payload.trees["model"]).eval()
        both = BothHeads(model, personal_head(model, client)).eval()
        return {"model": Predictor(lambda x: both(x)[1]), "generic": Predictor(model)}


def personal_head(model: Model, client: ClientContext) -> nn.Linear:
    """Return phi_m, which begins at zero."""
    personal: nn.Linear = copy.deepcopy(model.head)
    known = client.memory.trees.get("head") if client.memory else None
    with torch.no_grad():
        for name, tensor in personal.state_dict().items():
            tensor.copy_(known[name]) if known else tensor.zero_()
    return personal
