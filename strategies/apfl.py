"""APFL: adaptive personalized federated learning.

Deng, Kamani, Mahdavi. arXiv:2003.13461 (2020), local descent APFL with an adaptive mixing parameter, in delta form.

| paper | here | meaning |
|---|---|---|
| w^t | `State.model` | global model before round t |
| w_i | the client's model in training | client i's version of it |
| v_i | memory tree `model` | local model of client i |
| alpha_i | memory number `alpha`, `Config.alpha` | share of the local model in the mixture |
| v bar_i | `mixture` | personal model, alpha_i v_i + (1 - alpha_i) w_i |
| eta | `client.lr` | learning rate, of all three |

    client   alpha_i <- clip(alpha_i - eta <v_i - w^t, grad f_i(v bar_i)>, 0, 1)
             on each batch: w_i <- w_i - eta grad f_i(w_i)
                            v_i <- v_i - eta alpha_i grad f_i(v bar_i)
    server   w <- sum_i p_i w_i, over the clients of the round

alpha grad f(v bar) is the gradient of f(v bar) by v. Both models step on one batch at once, by the section `client`'s
optimiser. The global model knows nothing of v and alpha: it is FedAvg's, bit for bit where the model draws no noise.
With alpha = 0 that does not adapt each client predicts by the global model; with alpha = 1 each v_i is trained at home,
bit for bit as under `local` where the model draws no noise.

alpha moves once a round, before the training, by the gradient of all of a client's examples, where the paper takes that
of a batch. A client begins v_i at the w^t that it gets first, where the gradient of alpha is 0: so alpha moves from the
second round on that it takes part in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torch.func import functional_call

from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.training import LocalConfig, learning_rate, num_processed
from umbel.core.tree import Tree, subtract
from umbel.models.base import Model
from umbel.strategies.base import ClientContext, Phase, Predictor, Setting
from umbel.strategies.fedavg import Config as FedAvgConfig
from umbel.strategies.fedavg import FedAvg, State
from umbel.strategies.setting import refuse_norm_of_own
from umbel.strategies.steps import frozen, split_buffers


@dataclass(frozen=True)
class Config(FedAvgConfig):
    """Hyper-parameters of APFL.

    Attributes:
        alpha: Share of the local model in the mixture, in which each client begins.
        adaptive: Whether clients move it, each its own.
    """

    alpha: Annotated[float, Interval(ge=0, le=1)] = 0.5
    adaptive: bool = True


def mixture(local: Tree, common: Tree, alpha: float) -> dict[str, Tensor]:
    """Return v bar = alpha v + (1 - alpha) w of each tensor; exactly v at 1, and exactly w at 0.

    Args:
        local: v; any names and shapes.
        common: w, by name; may have more.
        alpha: Share of v, in [0, 1].
    """
    return {name: alpha * tensor + (1 - alpha) * common[name] for name, tensor in local.items()}


def alpha_gradient(local: Tree, common: Tree, gradient: Tree) -> float:
    """Return the derivative of f(v bar) by alpha, <v - w, grad f(v bar)>, in float64.

    Args:
        local: v, by name; may have more than parameters.
        common: w, likewise.
        gradient: Gradient of f at v bar by parameter.
    """
    products = ((local[n] - common[n]).double().mul(g.double().cpu()).sum() for n, g in gradient.items() if n in common)
    return float(sum(products))


class BothModels(Model):
    """The client's version w of the global model, and its mixture with a local model v, whose batch norm is its own."""

    def __init__(self, common: Model, local: Model, alpha: float) -> None:
        super().__init__()
        self.num_features, self.in_channels, self.image_size = (
            common.num_features,
            common.in_channels,
            common.image_size,
        )
        self.common, self.local, self.alpha = common, local, alpha

    def forward(self, x: Tensor) -> Tensor:
        """Return [2, B, C]: the logits of w, and of v bar, of which no gradient goes to w."""
        still = {name: parameter.detach() for name, parameter in self.common.named_parameters()}
        mixed = mixture(dict(self.local.named_parameters()), still, self.alpha)
        return torch.stack([self.common(x), functional_call(self.local, mixed, (x,))])


class APFL(FedAvg):
    """FedAvg, beside which each client trains what it mixes with the common model, and how much of it."""

    config_class = Config
    config: Config

    def check(self, setting: Setting) -> None:
        if setting.client.clip_norm:
            raise Refusal(
                f"strategy.name=apfl trains two models at once, and client.clip_norm={setting.client.clip_norm} would "
                "let the gradient of one shorten the other's.",
                key="client.clip_norm",
                remedy="Set client.clip_norm=0.",
            )
        refuse_norm_of_own(
            setting,
            "apfl",
            "has two models on each client, and model.norm=local would have both change one batch norm",
        )

    def every_phase(self) -> tuple[Phase[State], ...]:
        processed = self.num_processed
        return (Phase("train", self.send_model, self.local, self.fold, self.update, num_processed=processed),)

    def num_processed(self, local: LocalConfig, own: int) -> int:
        """Return the examples that a client goes through: with both models, and once for alpha."""
        return 2 * num_processed(local, own) + own * self.config.adaptive

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        received = payload.trees["model"]
        own, alpha = self.remembered(payload, client)
        if self.config.adaptive:
            alpha = self.moved(own, received, alpha, client)
        model = client.model(received)
        local = frozen(model, own).requires_grad_(True)
        supervised = client.training_loss()

        def objective(both: BothModels, x: Tensor, y: Tensor) -> Tensor:
            common, mixed = both(x)
            return supervised(common, y) + supervised(mixed, y)

        report = client.train(BothModels(model, local, alpha), objective=objective)
        client.remember(MemoryRecord({"model": client.weights(local)}, {"alpha": alpha}))
        return Reply({"delta": subtract(client.weights(model), received)}, {"loss": report.loss}, client.num_examples)

    def moved(self, own: Tree, received: Tree, alpha: float, client: ClientContext) -> float:
        """Return alpha_i after its step of a round, in [0, 1].

        Args:
            own: v_i.
            received: w^t.
            alpha: alpha_i before.
            client: The client.
        """
        gradient = client.full_gradient(self.mixed(own, received, alpha, client))
        step = learning_rate(client.local, client.round) * alpha_gradient(own, received, gradient)
        return min(max(alpha - step, 0.0), 1.0)

    def mixed(self, own: Tree, common: Tree, alpha: float, client: ClientContext) -> Model:
        """Return v bar; its batch norm's running statistics are v's, which v bar's passes moved, and at 0 those of w.

        Args:
            own: v.
            common: w.
            alpha: Share of v.
            client: The client.
        """
        model = client.model(common)
        parameters, buffers = split_buffers(model, own)
        return client.model({**(buffers if alpha else common), **mixture(parameters, common, alpha)})

    def remembered(self, payload: Payload, client: ClientContext) -> tuple[Tree, float]:
        """Return v_i, which begins as the model that came, and alpha_i."""
        if client.memory is None:
            return payload.trees["model"], self.config.alpha
        return client.memory.trees["model"], client.memory.numbers["alpha"]

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        """Evaluate v bar_i with the global model as it is; that one's accuracy is what the server evaluates."""
        own, alpha = self.remembered(payload, client)
        return {"model": Predictor(self.mixed(own, payload.trees["model"], alpha, client).eval())}
