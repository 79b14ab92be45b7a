"""FedRep: exploiting shared representations for personalized federated learning.

Collins, Hassani, Mokhtari, Shakkottai. ICML 2021, arXiv:2102.07078, algorithm 1, in delta form.

| paper | here | meaning |
|---|---|---|
| phi^t | `State.model` | global representation, all of the model but its head |
| h_i^t | memory of client i | its head |
| tau | passes of `Config.head_epochs` | updates of the head in a round |
| the updates of phi | `client.epochs`, `client.max_steps` | local passes over the body |
| r n | the cohort | clients selected |

    client   h_i <- head_epochs passes of SGD on the head, phi as it came
             phi_i <- client.epochs passes of SGD on the body, h_i as it is now
    server   phi <- mean of phi_i

So the head fits the representation that came before that moves, and the gradients of the body are those under a fitted
head. The head never travels, begins as initialised, and goes on in the client's memory. The paper's mean is uniform.
Both parts are trained in training mode: batch norm's statistics, which belong to the body, move in both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge

from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.training import LocalConfig, num_processed
from umbel.core.training.steps import training_only
from umbel.core.tree import subtract
from umbel.strategies.base import (
    ClientContext,
    Phase,
    Setting,
)
from umbel.strategies.fedavg import WEIGHTINGS, FedAvg, State
from umbel.strategies.fedavg import Config as FedAvgConfig
from umbel.strategies.setting import refuse_collapse_of_own_parts


@dataclass(frozen=True)
class Config(FedAvgConfig):
    """Hyper-parameters of FedRep.

    Attributes:
        head_epochs: Passes over a client's examples on its head, before those on the body.
        weighting: `uniform` as in the paper, or `examples`.
    """

    head_epochs: Annotated[int, Ge(0)] = 10
    weighting: Annotated[str, OneOf(*WEIGHTINGS)] = "uniform"


class FedRep(FedAvg):
    """A common representation, trained under heads that each client fits to it first."""

    config_class = Config
    config: Config
    local_parts = ("head",)
    is_generic = False

    def check(self, setting: Setting) -> None:
        refuse_collapse_of_own_parts(setting, "fedrep")

    def every_phase(self) -> tuple[Phase[State], ...]:
        processed = self.num_processed
        return (Phase("train", self.send_model, self.local, self.fold, self.update, num_processed=processed),)

    def on_head(self, local: LocalConfig) -> LocalConfig:
        """Return how a client trains its head."""
        return replace(local, epochs=self.config.head_epochs, max_steps=0)

    def num_processed(self, local: LocalConfig, own: int) -> int:
        """Return the examples that a client goes through, of head and body."""
        return num_processed(self.on_head(local), own) + num_processed(local, own)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        received = payload.trees["model"]
        model = client.model(received)
        head = [f"head.{name}" for name, _ in model.head.named_parameters()]
        body = [name for name, _ in model.named_parameters() if name not in head]
        if self.config.head_epochs:
            # An order of examples of its own: what a client draws goes by the phase.
            fitting = replace(client, local=self.on_head(client.local), phase=f"{client.phase} head")
            with training_only(model, head):
                fitting.train(model)
        with training_only(model, body):
            report = client.train(model)
        delta = subtract(client.weights(model), received)
        return Reply({"delta": delta}, {"loss": report.loss}, client.num_examples)
