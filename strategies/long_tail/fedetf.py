"""FedETF: no fear of classifier biases, neural collapse inspired federated learning with a synthetic, fixed classifier.

Li, Shang, He, Lin, Wu. ICCV 2023, arXiv:2303.10058, its generic model, in delta form.

| paper | here | meaning |
|---|---|---|
| h | `features` | features [B, D] |
| g, z | the model's `head` | projection layer, and what it gives: [B, C] |
| mu | `unit` | normalised projection z / |z| |
| V | `frame` | simplex ETF [C, C], fixed: V^T V = C / (C - 1) (I - 1 1^T / C) |
| beta | `State.scale` | learnable scale of the logits |
| n_{k,c}, gamma | counts of the client's labels, `Config.gamma` | its examples of class c, their exponent |

    logits  s_c = beta v_c^T mu
    l       = -log( n_{k,y}^gamma exp(s_y) / sum_c n_{k,c}^gamma exp(s_c) )      (balanced feature loss)
    client  all but V <- SGD of l            server  mean of the clients', beta too

So all clients draw their features to the same fixed directions, and no classifier can become biased. V lies in C
dimensions, in which a simplex of C directions has room: V = sqrt(C / (C - 1)) (I - 1 1^T / C), the paper's with U = I,
which a projection layer makes up for. Hence v_c^T z grows with z_c less the mean of z: the class of the largest z_c is
the class that is predicted, and the model that is saved predicts by its own head, without V and beta. What the paper
has beyond, fine-tuning on each client, is not here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from umbel.core.folds import Folded, Product, product
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.tree import subtract
from umbel.models.base import Model
from umbel.strategies.base import (
    ClientContext,
    Phase,
    Predictor,
    ServerContext,
    Setting,
    Strategy,
    initial_model,
    server_step,
)
from umbel.strategies.fedavg import Config as FedAvgConfig
from umbel.strategies.fedavg import mean_fold
from umbel.strategies.long_tail.fedrod import balanced_softmax
from umbel.strategies.setting import refuse_other_losses

_SCALE = "scale"


@dataclass(frozen=True)
class Config(FedAvgConfig):
    """Hyper-parameters of FedETF.

    Attributes:
        gamma: Exponent of the class counts in the balanced loss.
        scale: beta before the first round; the paper leaves it open.
    """

    gamma: Annotated[float, Ge(0)] = 1.0
    scale: Annotated[float, Gt(0)] = 10.0


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: Backbone and projection layer.
        scale: beta, by its name, [].
    """

    model: dict[str, Tensor]
    scale: dict[str, Tensor]


def frame(num_classes: int) -> Tensor:
    """Return V [C, C], float64: C directions of length 1 with cosines -1 / (C - 1), whose numbers sum to 0.

    Args:
        num_classes: C, 2 or more.
    """
    centred = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    return centred * math.sqrt(num_classes / (num_classes - 1))


class Framed(Model):
    """A model whose head's outputs are projected on a fixed frame."""

    frame: Tensor

    def __init__(self, model: Model, scale: Tensor) -> None:
        super().__init__()
        self.num_features, self.in_channels, self.image_size = model.num_features, model.in_channels, model.image_size
        self.model, self.scale = model, nn.Parameter(scale.detach().clone().to(model.head.weight))
        self.register_buffer("frame", frame(model.head.weight.shape[0]).to(model.head.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return s [B, C]."""
        unit = nn.functional.normalize(self.model(x), dim=1)
        return self.scale * (unit @ self.frame)


@dataclass(frozen=True)
class Balanced:
    """The balanced loss, a function of (logits [B, C], labels [B]).

    Attributes:
        counts_C: n_{k,c}, [C].
        gamma: Exponent.
    """

    counts_C: Tensor
    gamma: float

    def __call__(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        return balanced_softmax(logits_BC, labels_B, self.counts_C, self.gamma)


class FedETF(Strategy[State]):
    """FedAvg of a model whose classifier is a fixed simplex."""

    config_class = Config
    config: Config

    def check(self, setting: Setting) -> None:
        refuse_other_losses(setting, "fedetf")
        for key, value, off in (
            ("data.heads", setting.data.heads, "shared"),
            ("evaluate.collapse", setting.evaluate.collapse, False),
        ):
            if value != off:
                raise Refusal(
                    f"strategy.name=fedetf has a fixed classifier of all classes together; {key}={value} looks at one "
                    "that is learned.",
                    key=key,
                    remedy=f"Set {key}={str(off).lower()}.",
                )

    def initial(self, server: ServerContext) -> State:
        return State(initial_model(server), {_SCALE: torch.tensor(self.config.scale)})

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send, self.local, self.fold, self.update, measured=self.measured),)

    def send(self, state: State, server: ServerContext) -> Payload:
        return Payload({"model": state.model, _SCALE: state.scale})

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        received, before = payload.trees["model"], payload.trees[_SCALE]
        model = client.model(received)
        framed = Framed(model, before[_SCALE]).to(client.device)
        counts = torch.bincount(client.train_data.labels, minlength=client.num_classes).to(client.device)
        report = replace(client, loss=Balanced(counts, self.config.gamma)).train(framed)
        scale = framed.scale.detach().cpu().to(before[_SCALE].dtype) - before[_SCALE]
        delta = subtract(client.weights(model), received)
        return Reply({"delta": delta, _SCALE: {_SCALE: scale}}, {"loss": report.loss}, client.num_examples)

    def fold(self) -> Product:
        weighting = self.config.weighting
        return product({"delta": mean_fold(weighting, "model"), _SCALE: mean_fold(weighting, _SCALE)}, numbers=["loss"])

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        model = server_step(state.model, folded.trees["delta"], self.config.server_lr)
        return State(model, server_step(state.scale, folded.trees[_SCALE], self.config.server_lr))

    def measured(self, state: State) -> Mapping[str, float]:
        """Return beta."""
        return {_SCALE: float(state.scale[_SCALE])}

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model

    def predictors(self, state: State, server: ServerContext) -> Mapping[str, Predictor]:
        """Evaluate s, whose largest is that of the model's own head; the loss is that of s."""
        return {"model": Predictor(Framed(server.model(state.model), state.scale[_SCALE]).to(server.device).eval())}

    def evaluated(self, state: State, server: ServerContext) -> Payload:
        return self.send(state, server)

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        model = client.model(payload.trees["model"])
        return {"model": Predictor(Framed(model, payload.trees[_SCALE][_SCALE]).to(client.device).eval())}
