"""Ditto: fair and robust federated learning through personalization.

Li, Hu, Beirami, Smith. ICML 2021, arXiv:2012.04221, algorithm 1 with FedAvg as its global solver, in delta form.

| paper | here | meaning |
|---|---|---|
| w^t | `State.model` | global model before round t |
| v_k | memory tree `model` | personal model of client k |
| lambda | `Config.pull` | strength of the pull of v_k to w^t |
| eta | `client.lr` | learning rate, of both |
| s, r | `client.epochs`, `client.max_steps` | local steps, of both |
| p_k | `strategy.weighting` | weight of client k |

    client   v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w^t)), some steps
             w_k <- w^t - eta grad F_k, as many
    server   w <- sum_k p_k w_k

Nothing of v_k comes back to the server, so that w^t is FedAvg's, bit for bit where clients train one by one. With
lambda = 0 each v_k is trained at home, bit for bit as under `local`, where all clients take part in the first round.
Both pass over the same batches. A client begins v_k at the w^t that it gets first. Batch norm's statistics are v_k's
own in v_k and the clients' mean in w; that of `model.norm=local` would be one for both, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload, Reply
from umbel.core.training import AffineCorrection, LocalConfig, num_processed
from umbel.core.tree import Tree, subtract
from umbel.strategies.base import ClientContext, Phase, Predictor, Setting
from umbel.strategies.fedavg import Config as FedAvgConfig
from umbel.strategies.fedavg import FedAvg, State
from umbel.strategies.setting import refuse_norm_of_own


@dataclass(frozen=True)
class Config(FedAvgConfig):
    """Hyper-parameters of Ditto.

    Attributes:
        pull: lambda, strength of the pull of a personal model to the global one; 0 pulls nowhere.
    """

    pull: Annotated[float, Ge(0)] = 1.0


class Ditto(FedAvg):
    """FedAvg, beside which each client trains a model of its own that is drawn to the common one."""

    config_class = Config
    config: Config

    def check(self, setting: Setting) -> None:
        refuse_norm_of_own(
            setting,
            "ditto",
            "trains two models on each client, and model.norm=local would have both change one batch norm",
        )

    def every_phase(self) -> tuple[Phase[State], ...]:
        processed = self.num_processed
        return (Phase("train", self.send_model, self.local, self.fold, self.update, num_processed=processed),)

    def num_processed(self, local: LocalConfig, own: int) -> int:
        """Return the examples that a client goes through, of both models."""
        return 2 * num_processed(local, own)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        received = payload.trees["model"]
        model = client.model(personal_weights(received, client))
        pull = AffineCorrection(self.config.pull, client.align(model, received)) if self.config.pull else None
        client.train(model, pull)
        client.remember(MemoryRecord({"model": client.weights(model)}))
        model = client.model(received)
        report = client.train(model)
        return Reply({"delta": subtract(client.weights(model), received)}, {"loss": report.loss}, client.num_examples)

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        """Evaluate v_k; the common model's accuracy is what the server evaluates."""
        return {"model": Predictor(client.model(personal_weights(payload.trees["model"], client)).eval())}


def personal_weights(received: Tree, client: ClientContext) -> Tree:
    """Return v_k, which begins as the model that came."""
    return client.memory.trees["model"] if client.memory else received
