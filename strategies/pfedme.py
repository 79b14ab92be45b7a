"""pFedMe: personalized federated learning with Moreau envelopes.

Dinh, Tran, Nguyen. NeurIPS 2020, arXiv:2006.08848, algorithm 1, in delta form.

| paper | here | meaning |
|---|---|---|
| w^t | `State.model` | global model before round t |
| w_{i,r}^t | `anchors` | client i's local model, in its round r of R |
| theta_i | memory tree `model` | personal model of client i |
| lambda | `Config.pull` | strength of the pull of theta_i to w_{i,r} |
| K, its learning rate | `Config.inner_steps`, `client.lr` | steps toward theta_i, and their rate |
| eta | `Config.eta` | learning rate of the local model |
| R | batches in `client.epochs`, or `client.max_steps` | local rounds, one for each batch |
| beta | `Config.server_lr` | share of the mean in the next global model |
| D_i | a batch | examples that a local round sees |

    client   for r = 0 .. R - 1, on one batch each:
                 theta <- K steps of SGD of f_i(theta) + lambda/2 ||theta - w_{i,r}||^2
                 w_{i,r+1} = w_{i,r} - eta lambda (w_{i,r} - theta)
    server   w^{t+1} = (1 - beta) w^t + beta mean of w_{i,R}^t

lambda (w - theta) is the gradient of f_i's Moreau envelope at w where theta is its proximal point, so that the global
model minimises the mean of the envelopes, not of the losses. theta begins each round at w^t and goes on from one local
round to the next, as in the authors' code; the paper asks for an approximate proximal point and leaves open how. Its
last value is the client's personal model. The K steps go by optimiser, learning rate and schedule of the section
`client`. The paper's mean is uniform. Batch norm's statistics are moved by theta's passes, and averaged with w.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from umbel.core.losses import CrossEntropy
from umbel.core.memory import MemoryRecord
from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.training import AffineCorrection, LocalConfig, num_processed
from umbel.core.training.loop import batch_order, make_ready
from umbel.core.tree import subtract
from umbel.strategies.base import ClientContext, Phase, Predictor, Setting
from umbel.strategies.ditto import personal_weights
from umbel.strategies.fedavg import WEIGHTINGS, FedAvg, State
from umbel.strategies.fedavg import Config as FedAvgConfig
from umbel.strategies.setting import refuse_norm_of_own


@dataclass(frozen=True)
class Config(FedAvgConfig):
    """Hyper-parameters of pFedMe.

    Attributes:
        pull: lambda, strength of the pull of a personal model to the local one, in units of the loss over squared
            weights.
        inner_steps: K, steps toward the personal model on each batch.
        eta: Learning rate of the local model.
        server_lr: beta, share of the mean of the local models in the next global one; 1 is all of it.
        weighting: `uniform` as in the paper, or `examples`.
    """

    pull: Annotated[float, Gt(0)] = 15.0
    inner_steps: Annotated[int, Ge(1)] = 5
    eta: Annotated[float, Gt(0)] = 0.005
    server_lr: Annotated[float, Ge(0)] = 1.0
    weighting: Annotated[str, OneOf(*WEIGHTINGS)] = "uniform"


def toward(anchors: Sequence[Tensor], thetas: Sequence[Tensor], share: float) -> list[Tensor]:
    """Return w - share (w - theta) for each parameter.

    Args:
        anchors: w; any shapes.
        thetas: theta, same shapes.
        share: eta lambda.
    """
    return [anchor - share * (anchor - theta) for anchor, theta in zip(anchors, thetas, strict=True)]


class PFedMe(FedAvg):
    """A global model whose clients' models lie within a pull of it: each loss is replaced by its Moreau envelope."""

    config_class = Config
    config: Config

    def check(self, setting: Setting) -> None:
        refuse_norm_of_own(
            setting,
            "pfedme",
            "has two models on each client, and model.norm=local would have both change one batch norm",
        )
        local, pull = setting.client, self.config.pull
        m = local.momentum
        bound = 2 * (1 + m) / (1 + 2 * m if local.nesterov else 1)
        if local.optimizer == "sgd" and local.lr * pull >= bound:
            raise Refusal(
                f"client.lr={local.lr:g} times strategy.pull={pull:g} is {bound:.4g} or more, with which the pull "
                "alone makes personal models diverge.",
                key="strategy.pull",
                remedy="Lower one of them.",
            )
        if self.config.eta * pull >= 2:
            raise Refusal(
                f"strategy.eta={self.config.eta:g} times strategy.pull={pull:g} is 2 or more, with which local models "
                "overshoot personal ones by more than they were apart.",
                key="strategy.eta",
                remedy="Lower one of them.",
            )

    def every_phase(self) -> tuple[Phase[State], ...]:
        processed = self.num_processed
        return (Phase("train", self.send_model, self.local, self.fold, self.update, num_processed=processed),)

    def num_processed(self, local: LocalConfig, own: int) -> int:
        """Return the examples that a client goes through: each batch K times."""
        return self.config.inner_steps * num_processed(local, own)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        received, config = payload.trees["model"], self.config
        model = client.model(received)
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        anchors, thetas = client.align(model, received), [p for p in model.parameters() if p.requires_grad]
        images, labels = client.prepare(client.train_data)
        leave_out = make_ready(model, len(labels), client.local)
        total = seen = 0.0
        order = batch_order(len(labels), client.local, client.rng("batches"), leave_out)
        for r, index in enumerate(order):
            index = index.to(labels.device)
            on_batch = self.on_batch(client, r, images[index], labels[index])
            report = on_batch.train(model, AffineCorrection(config.pull, anchors))
            with torch.no_grad():
                anchors = toward(anchors, thetas, config.eta * config.pull)
            total, seen = total + report.loss * len(index), seen + len(index)
        personal = client.weights(model)
        client.remember(MemoryRecord({"model": personal}))
        local = {name: anchor.cpu() for name, anchor in zip(names, anchors, strict=True) if name in personal}
        delta = subtract({**personal, **local}, received)
        return Reply({"delta": delta}, {"loss": total / max(seen, 1)}, client.num_examples)

    def on_batch(self, client: ClientContext, r: int, images: Tensor, labels: Tensor) -> ClientContext:
        """Return the client in its local round r: K steps on images [B, ...] and labels [B], with noise of its own."""
        loss = client.training_loss()
        if isinstance(loss, CrossEntropy):
            loss = replace(loss, class_weights="none")  # classes weigh as in all of its examples
        return replace(
            client,
            loss=loss,
            local=replace(client.local, epochs=self.config.inner_steps, max_steps=0, batch_size=0),
            phase=f"{client.phase} {r}",
            prepare=lambda examples: (images, labels),
        )

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        """Evaluate theta_i; the global model's accuracy is what the server evaluates."""
        return {"model": Predictor(client.model(personal_weights(payload.trees["model"], client)).eval())}
