"""FedBABU: toward enhanced representation for federated image classification.

Oh, Kim, Yun. ICLR 2022, arXiv:2106.06042, algorithm 1, in delta form.

| paper | here | meaning |
|---|---|---|
| theta_ext | `State.model` | body (extractor), all of the model but its head |
| theta_cls | the head as initialised | the same for all clients, and never changed in training |
| tau | `client.epochs` | local passes over the body |
| tau_f | `Config.finetune_epochs` | passes of fine-tuning before a client's evaluation |
| lambda | `client.lr` | learning rate of both |

    client      theta_ext,k <- SGD of the local loss on the body, under theta_cls
    server      theta_ext <- sum_k n_k / n theta_ext,k
    evaluation  client k fine-tunes (theta_ext, theta_cls) on its training examples

So all bodies are trained toward one set of directions, and none of what is averaged was made by a client's head. The
head does not travel: everybody has it by the run's seed. On the server the body is evaluated under this head, as the
paper evaluates its initial model (`model`); clients evaluate their fine-tuned models (`model`), and that one as
`generic`. What is fine-tuned is forgotten after the evaluation. The paper fine-tunes all layers; `finetune` may take
the head or the body alone, as in its ablation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge

from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.training.steps import training_only
from umbel.core.tree import subtract
from umbel.models.base import Model
from umbel.strategies.base import (
    ClientContext,
    Phase,
    Predictor,
)
from umbel.strategies.fedavg import Config as FedAvgConfig
from umbel.strategies.fedavg import FedAvg, State
from umbel.strategies.steps import frozen


@dataclass(frozen=True)
class Config(FedAvgConfig):
    """Hyper-parameters of FedBABU.

    Attributes:
        finetune_epochs: Passes over a client's training examples before it evaluates; 0 evaluates the model as it came.
        finetune: What they train: `all`, `head` or `body`.
    """

    finetune_epochs: Annotated[int, Ge(0)] = 5
    finetune: Annotated[str, OneOf("all", "head", "body")] = "all"


def parameters_of(model: Model, part: str) -> list[str]:
    """Return the names of the parameters of a part of a model: `all`, `head` or `body`."""
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if part == "all" or name.startswith("head.") == (part == "head")]


class FedBABU(FedAvg):
    """FedAvg of the body under a head that nobody trains; each client fine-tunes when it evaluates."""

    config_class = Config
    config: Config
    local_parts = ("head",)

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send_model, self.local, self.fold, self.update),)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        received = payload.trees["model"]
        model = client.model(received)
        with training_only(model, parameters_of(model, "body")):
            report = client.train(model)
        delta = subtract(client.weights(model), received)
        return Reply({"delta": delta}, {"loss": report.loss}, client.num_examples)

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        tuned = frozen(self.finetuned(payload, client))
        generic = client.model(payload.trees["model"]).eval()
        return {"model": Predictor(tuned), "generic": Predictor(generic)}

    def finetuned(self, payload: Payload, client: ClientContext) -> Model:
        """Return the model that came, after its passes over the client's training examples."""
        model = client.model(payload.trees["model"])
        if self.config.finetune_epochs:
            local = replace(client.local, epochs=self.config.finetune_epochs, max_steps=0)
            with training_only(model, parameters_of(model, self.config.finetune)):
                replace(client, local=local).train(model)
        return model
