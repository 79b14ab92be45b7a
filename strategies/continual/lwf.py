"""LwF: learning without forgetting, in a federation.

Li, Hoiem. ECCV 2016, arXiv:1606.09282, section 3, in delta form; each round is FedAvg's.

| paper | here | meaning |
|---|---|---|
| theta_s, theta_o, theta_n | `State.model` | shared layers, heads of the old tasks, head of the new one |
| Y_o, y_o | outputs of `State.teacher` | what the global model of the task before says of the new task's images |
| Y^_o, y^_o | outputs of the local model | what it says now, of the same images and heads |
| y'^(i) | softmax of logits / T | (y^(i))^(1/T) / sum_j (y^(j))^(1/T) |
| T | `Config.temperature` | 2 in the paper |
| lambda_o | `Config.strength` | weight of the old tasks, 1 in the paper |

    L     = L_new(y_n, y^_n) + lambda_o sum over old heads of L_old(y_o, y^_o)
    L_old = -sum_i y'_o^(i) log y^'_o^(i)

No old example is needed: the old model, which does not learn, says of the new images what it would have said, and the
new one should go on saying so. With `data.heads=per_task` each head of an earlier task has a term of its own. With one
head for all tasks there is one term, of all its outputs. With lambda_o = 0 this is FedAvg, bit for bit.

The paper first trains theta_n alone until it converges, and records y_o once, before any augmentation changes the
image; here a task trains all of the model from its first step, and the old model sees what the new one sees. Weight
decay, the paper's R, is `client.weight_decay`. The old model is in evaluation mode.

Legend: B batch, C classes, O classes of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from umbel.core.folds import Folded, Product, product
from umbel.core.losses import CrossEntropy
from umbel.core.records import Payload, Reply
from umbel.core.training import num_processed
from umbel.models.base import Model
from umbel.strategies.base import (
    ClientContext,
    Phase,
    ServerContext,
    Setting,
    Strategy,
    initial_model,
    server_step,
    train_and_subtract,
)
from umbel.strategies.fedavg import Config as FedAvgConfig
from umbel.strategies.fedavg import mean_fold
from umbel.strategies.phase import Visit
from umbel.strategies.setting import refuse_norm_of_own, refuse_without_sequence
from umbel.strategies.steps import frozen


@dataclass(frozen=True)
class Config(FedAvgConfig):
    """Hyper-parameters of LwF.

    Attributes:
        strength: lambda_o; 0 sends no old model, and is FedAvg.
        temperature: T, above 0.
    """

    strength: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 2.0


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: The global model's shared state.
        teacher: What it was after the last round of the task before; empty in the first task.
    """

    model: dict[str, Tensor]
    teacher: dict[str, Tensor]


def old_heads(task_of_class: Tensor | None, task: int, num_classes: int) -> list[Tensor]:
    """Return the classes [O] of each head to distil: of every earlier task, or of the one head there is.

    Args:
        task_of_class: [C], where each task has a head of its own; else None.
        task: The current task.
        num_classes: C.
    """
    if task_of_class is None:
        return [torch.arange(num_classes)]
    return [(task_of_class == old).nonzero().flatten() for old in range(task)]


def distillation(now_BC: Tensor, old_BC: Tensor, heads: Sequence[Tensor], temperature: float) -> Tensor:
    """Return the sum of L_old over heads [], each the mean over a batch of B.

    Args:
        now_BC: Logits of the local model.
        old_BC: Logits of the old one.
        heads: Classes of each head, from `old_heads`.
        temperature: T.
    """
    total = now_BC.new_zeros(())
    for head in heads:
        now, old = now_BC[:, head], old_BC[:, head]
        log_p, q = (now / temperature).log_softmax(1), (old / temperature).softmax(1)
        total = total - (q * log_p).sum(1).mean()
    return total


class LwF(Strategy[State]):
    """FedAvg whose clients keep saying of new images what the global model said before the task."""

    config_class = Config
    config: Config

    def check(self, setting: Setting) -> None:
        if not self.config.strength:
            return
        refuse_without_sequence(setting, "lwf", "strategy.strength", "0")
        refuse_norm_of_own(
            setting,
            "lwf",
            "has the model of the task before beside the one that learns, and model.norm=local "
            "would give both the client's batch norm as it is now",
        )

    def initial(self, server: ServerContext) -> State:
        return State(initial_model(server), {})

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send, self.local, self.fold, self.update, besides=self.besides),)

    def besides(self, state: State, visit: Visit) -> int:
        """Return the examples that go through the old model, where there is one."""
        return num_processed(visit.server.local, visit.own) if state.teacher else 0

    def send(self, state: State, server: ServerContext) -> Payload:
        return Payload({"model": state.model, **({"teacher": state.teacher} if state.teacher else {})})

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        if "teacher" not in payload.trees:
            return train_and_subtract(payload, client)
        old = frozen(client.model(payload.trees["model"]), payload.trees["teacher"])
        loss, strength, temperature = client.training_loss(), self.config.strength, self.config.temperature
        tasks = client.loss.task_of_class if isinstance(client.loss, CrossEntropy) else None
        heads = [head.to(client.device) for head in old_heads(tasks, client.task, client.num_classes)]

        def objective(model: Model, x: Tensor, y: Tensor) -> Tensor:
            logits = model(x)
            with torch.no_grad():
                said = old(x)
            return loss(logits, y) + strength * distillation(logits, said, heads, temperature)

        return train_and_subtract(payload, client, objective=objective)

    def fold(self) -> Product:
        return product({"delta": mean_fold(self.config.weighting, "model")}, numbers=["loss"])

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        model = server_step(state.model, folded.trees["delta"], self.config.server_lr)
        ends = self.config.strength > 0 and server.schedule.hands_over(server.round)
        return State(model, model if ends else state.teacher)

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model
