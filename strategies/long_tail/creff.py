"""CReFF: federated learning on heterogeneous and long-tailed data via classifier re-training with federated features.

Shang, Lu, Huang, Wang. IJCAI 2022, arXiv:2204.13399, algorithm 1, in delta form.

| paper | here | meaning |
|---|---|---|
| w = (u, v) | `State.model` | feature extractor and classifier of the global model |
| v hat | `State.classifier` | classifier that is re-trained on the server |
| S = {s_{c,i}} | `State.features` | federated features, m of each class, [C, m, D] |
| g_c^k | `class_gradients` | gradient of v hat of client k's examples of class c, [C, D] |
| g_c^agg | `targets` | its mean over the clients that have the class |
| I, eta_S | `Config.match_steps`, `Config.match_lr` | steps on the features, and their rate |
| J, eta | `Config.retrain_steps`, `Config.retrain_lr` | steps on v hat, and their rate |

    client   g_c^k = mean over its examples of class c of grad_{v hat} l(v hat; f_u(x), c), u as it came
             w_k <- SGD from w
    server   w <- mean of w_k
             S <- I steps down sum_c sum_j (1 - cos(g_c^S[j], g_c^agg[j])), j a row of v hat's weight
             v hat <- J steps of SGD of cross-entropy on S, from v hat

So the features have in each class the gradient that real examples would have, equally many of each class, and a
classifier trained on them is balanced, without any example leaving its client. Only the weight's gradient is matched,
not the bias's. The clients' classifier v goes on beside it and is what the extractor is trained under; predictions are
v hat's. A class that no client has had yet is not re-trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from umbel.core.folds import Folded, Product, Sum, product
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.spent import count
from umbel.core.training import LocalConfig, num_processed
from umbel.core.tree import Tree, subtract
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

_BATCH = 512
_WEIGHT, _BIAS = "head.weight", "head.bias"


@dataclass(frozen=True)
class Config(FedAvgConfig):
    """Hyper-parameters of CReFF.

    Attributes:
        num_features: m, federated features of each class.
        match_steps: I, steps on the features in a round.
        match_lr: eta_S, their rate.
        retrain_steps: J, steps on the re-trained classifier in a round, each on all features.
        retrain_lr: eta, their rate.
    """

    num_features: Annotated[int, Ge(1)] = 100
    match_steps: Annotated[int, Ge(0)] = 100
    match_lr: Annotated[float, Gt(0)] = 0.1
    retrain_steps: Annotated[int, Ge(0)] = 300
    retrain_lr: Annotated[float, Gt(0)] = 0.01


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: w, the global model's shared state.
        classifier: v hat: `head.weight` [C, D], and `head.bias` [C] where the model has one.
        features: `features`, S [C, m, D], and `seen` [C], 1 for classes that a client has had.
    """

    model: dict[str, Tensor]
    classifier: dict[str, Tensor]
    features: dict[str, Tensor]


def class_gradients(features_ND: Tensor, labels_N: Tensor, weight_CD: Tensor, bias_C: Tensor | None) -> Tensor:
    """Return the gradient of the classifier's weight, the mean over the examples of each class; 0 for those without.

    Args:
        features_ND: Features.
        labels_N: Their classes.
        weight_CD: The classifier's weight.
        bias_C: Its bias, or None.

    Returns:
        [C, C, D]: the first index is the examples' class, the second the row of the weight.
    """
    num_classes = len(weight_CD)
    own = F.one_hot(labels_N, num_classes).to(features_ND.dtype)
    errors = F.linear(features_ND, weight_CD, bias_C).softmax(1) - own
    counts = own.sum(0).clamp(min=1)
    return torch.einsum("nc,nj,nd->cjd", own / counts, errors, features_ND)


def gradients_of(features_CMD: Tensor, weight_CD: Tensor, bias_C: Tensor | None) -> Tensor:
    """Return g^S [C, C, D]: as `class_gradients`, of m features of each class."""
    errors = F.linear(features_CMD, weight_CD, bias_C).softmax(2) - torch.eye(len(weight_CD)).to(weight_CD)[:, None, :]
    return torch.einsum("cmj,cmd->cjd", errors, features_CMD) / features_CMD.shape[1]


def distance(ours_CCD: Tensor, theirs_CCD: Tensor) -> Tensor:
    """Return D [C]: for each class the sum over rows of 1 - cos."""
    return (1 - F.cosine_similarity(ours_CCD, theirs_CCD, dim=2)).sum(1)


def match(
    features_CMD: Tensor,
    targets_CCD: Tensor,
    has_C: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor | None,
    steps: int,
    lr: float,
) -> Tensor:
    """Return the features after some steps down the distance of their gradients to the targets.

    Args:
        features_CMD: S.
        targets_CCD: g^agg.
        has_C: 1 for classes that have a target; the features of others stay.
        weight_CD: v hat's weight.
        bias_C: Its bias, or None.
        steps: I.
        lr: eta_S.
    """
    features = features_CMD.clone()
    for _ in range(steps):
        features.requires_grad_(True)
        total = (distance(gradients_of(features, weight_CD, bias_C), targets_CCD) * has_C).sum()
        (gradient,) = torch.autograd.grad(total, features)
        features = features.detach() - lr * gradient
    return features


def retrain(classifier: Tree, features_CMD: Tensor, seen_C: Tensor, steps: int, lr: float) -> dict[str, Tensor]:
    """Return v hat after some steps of gradient descent on the features of the classes that were seen.

    Args:
        classifier: v hat before.
        features_CMD: S.
        seen_C: 1 for classes that were.
        steps: J.
        lr: eta.
    """
    chosen = seen_C > 0
    labels = torch.arange(len(seen_C), device=features_CMD.device)[chosen].repeat_interleave(features_CMD.shape[1])
    inputs, current = features_CMD[chosen].flatten(0, 1), {name: tensor.clone() for name, tensor in classifier.items()}
    for _ in range(steps if len(labels) else 0):
        names = list(current)
        leaves = [current[name].requires_grad_(True) for name in names]
        loss = F.cross_entropy(F.linear(inputs, current[_WEIGHT], current.get(_BIAS)), labels)
        found = torch.autograd.grad(loss, leaves)
        current = {name: leaf.detach() - lr * each for name, leaf, each in zip(names, leaves, found, strict=True)}
    count(steps if len(labels) else 0, steps * len(labels))
    return current


class CReFF(Strategy[State]):
    """FedAvg, with a classifier that the server re-trains on features whose gradients are those of the clients'."""

    config_class = Config
    config: Config

    def check(self, setting: Setting) -> None:
        if setting.data.heads == "per_task":
            raise Refusal(
                "strategy.name=creff re-trains one classifier of all classes, and data.heads=per_task has one a task.",
                key="data.heads",
                remedy="Set data.heads=shared.",
            )

    def initial(self, server: ServerContext) -> State:
        model = initial_model(server)
        classifier = {name: model[name] for name in (_WEIGHT, _BIAS) if name in model}
        num_classes, dimension = model[_WEIGHT].shape
        shape = (num_classes, self.config.num_features, dimension)
        features = torch.randn(shape, generator=server.rng("features"), dtype=torch.float64).to(model[_WEIGHT].dtype)
        return State(model, classifier, {"features": features, "seen": torch.zeros(num_classes)})

    def every_phase(self) -> tuple[Phase[State], ...]:
        processed = self.num_processed
        return (Phase("train", self.send, self.local, self.fold, self.update, num_processed=processed),)

    def num_processed(self, local: LocalConfig, own: int) -> int:
        """Return the examples that a client goes through: once for gradients, and in training."""
        return own + num_processed(local, own)

    def send(self, state: State, server: ServerContext) -> Payload:
        return Payload({"model": state.model, "classifier": state.classifier})

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        received, classifier = payload.trees["model"], payload.trees["classifier"]
        model = client.model(received)
        gradients = self._gradients(model, classifier, client)
        report = client.train(model)
        delta = subtract(client.weights(model), received)
        return Reply({"delta": delta, "gradients": gradients}, {"loss": report.loss}, client.num_examples)

    def _gradients(self, model: Model, classifier: Tree, client: ClientContext) -> dict[str, Tensor]:
        """Return g_c^k, and which classes there are."""
        images, labels = client.prepare(client.train_data)
        model.eval()
        with torch.no_grad():
            parts = [model.features(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
            weight = classifier[_WEIGHT].to(client.device)
            bias = classifier[_BIAS].to(client.device) if _BIAS in classifier else None
            found = class_gradients(torch.cat(parts).to(weight.dtype), labels, weight, bias)
        has = torch.bincount(labels, minlength=len(weight)) > 0
        return {"weight": found.cpu(), "has": has.to(found.dtype).cpu()}

    def fold(self) -> Product:
        return product(
            {"delta": mean_fold(self.config.weighting, "model"), "gradients": Sum(_gradients_like)}, numbers=["loss"]
        )

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        config, device = self.config, server.device
        model = server_step(state.model, folded.trees["delta"], config.server_lr)
        weight = state.classifier[_WEIGHT]
        summed = {name: tensor.to(weight.dtype) for name, tensor in folded.trees["gradients"].items()}
        has = (summed["has"] > 0).to(weight.dtype)
        targets = summed["weight"] / summed["has"].clamp(min=1)[:, None, None]
        classifier = {name: tensor.to(device) for name, tensor in state.classifier.items()}
        features, seen = state.features["features"].to(device), torch.maximum(state.features["seen"].to(has.dtype), has)
        known = (has.to(device), classifier[_WEIGHT], classifier.get(_BIAS))
        features = match(features, targets.to(device), *known, config.match_steps, config.match_lr)
        again = retrain(classifier, features, seen.to(device), config.retrain_steps, config.retrain_lr)
        kept = {"features": features.cpu(), "seen": seen.to(torch.float32)}
        return State(model, {name: tensor.cpu() for name, tensor in again.items()}, kept)

    def model(self, state: State) -> dict[str, Tensor]:
        """Return u under v hat."""
        return state.model | state.classifier

    def predictors(self, state: State, server: ServerContext) -> Mapping[str, Predictor]:
        """Evaluate u under v hat, and under v beside it."""
        return {
            "model": Predictor(server.model(self.model(state))),
            "aggregated": Predictor(server.model(state.model)),
        }


def _gradients_like(payload: Payload) -> dict[str, Tensor]:
    """Return what a client should send, without content."""
    weight = payload.trees["classifier"][_WEIGHT]
    return {
        "weight": torch.empty((len(weight), *weight.shape), dtype=weight.dtype, device="meta"),
        "has": torch.empty(len(weight), dtype=weight.dtype, device="meta"),
    }
