"""SCAFFOLD: stochastic controlled averaging for federated learning.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh. ICML 2020, arXiv:1910.06378, algorithm 1, in delta form.

| paper | here | meaning |
|---|---|---|
| x | `State.model` | global model |
| c | `State.control`, payload tree `control` | server's control variate |
| c_i | memory tree `control` | client i's control variate, 0 before its first round |
| y_i | the local model | |
| Delta y_i = y_i - x | tree `delta` | change of the model |
| Delta c_i = c_i^+ - c_i | tree `control` of the reply | change of the control variate |
| K, eta_l | what the local run's gradients count, `client.lr` | local steps and learning rate |
| eta_g | `Config.server_lr` | global learning rate |
| N, S | `data.num_clients`, the cohort | all clients, those selected |

    local step   y_i <- y_i - eta_l (g_i(y_i) - c_i + c)
    option I     c_i^+ = g_i(x), the gradient at the server's model over all local examples
    option II    c_i^+ = c_i - c + (x - y_i) / (K eta_l)
    server       x <- x + eta_g mean_S Delta y_i,    c <- c + |S| / N mean_S Delta c_i

Option II wants the mean gradient of the local steps. Plain SGD goes y_i - x = -eta_l sum_k (g_k - c_i + c), and K is
the number of steps. The paper has no local momentum; with it a gradient counts as often as later steps repeat it, the
change is still linear in the gradients, and K here is the sum of what they count, `fednova.summed_weights` (FedNova's
norm_1(a_i)), so that c_i^+ is their weighted mean. Dividing by the steps belongs to a correction of the step, after
momentum; with this one of the gradient it would make control variates 1 / (1 - rho) times too long. Weight decay is
part of g_k, the gradient of the penalised loss.

Both means are uniform in the paper. `weighting=examples` weighs both by n_i: a weighted mean of one and a uniform
mean of the other has no fixed point at either optimum when clients differ in size. It then also takes the share
of the examples in place of |S| / N, since c must stay the mean of all c_i by the same weights: otherwise a sampled
cohort leaves c with an error that never dies out, and x ends beside the optimum. Batch-norm statistics are part
of x and y_i but have no gradient and so no control variate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from umbel.core.folds import Folded, Product, product
from umbel.core.memory import MemoryRecord
from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.training import LocalConfig, num_processed
from umbel.core.training.corrections import AffineCorrection
from umbel.core.tree import Tree, map_tree, subtract, zeros_like
from umbel.strategies.base import (
    ClientContext,
    Phase,
    ServerContext,
    Setting,
    Strategy,
    initial_model,
    server_step,
    split_buffers,
)
from umbel.strategies.fedavg import WEIGHTINGS, mean_fold
from umbel.strategies.fednova import summed_weights
from umbel.strategies.steps import check_linear, replied_share


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of SCAFFOLD.

    Attributes:
        option: How a client renews its control variate: `II` reuses the local steps (the paper's experiments),
            `I` takes an extra pass for the gradient at the server's model.
        server_lr: Global learning rate eta_g.
        weighting: `uniform` as in the paper, or `examples` for both means.
    """

    option: Annotated[str, OneOf("I", "II")] = "II"
    server_lr: Annotated[float, Ge(0)] = 1.0
    weighting: Annotated[str, OneOf(*WEIGHTINGS)] = "uniform"


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: x, the global model's shared state.
        control: c, one tensor for each parameter of the shared state.
    """

    model: dict[str, Tensor]
    control: dict[str, Tensor]


def renewed_control(
    control_i: Tree, control: Tree, before: Tree, after: Tree, num_steps: float, lr: float
) -> dict[str, Tensor]:
    """Return option II's c_i^+ = c_i - c + (x - y_i) / (K eta_l); all trees have the same names and shapes.

    Args:
        control_i: c_i.
        control: c.
        before: x.
        after: y_i.
        num_steps: K > 0; with momentum what the gradients count, `summed_weights`.
        lr: eta_l.
    """
    return map_tree(
        lambda own, common, x, y: own - common + (x - y) / (num_steps * lr), control_i, control, before, after
    )


def control_step(control: Tree, mean_change: Tree, fraction: float) -> dict[str, Tensor]:
    """Return the server's c <- c + fraction * mean Delta c_i, computed in float64 and cast once.

    Args:
        control: c.
        mean_change: Mean Delta c_i, same names and shapes, float64.
        fraction: Weight of those who replied among all clients, |S| / N for a uniform mean.
    """
    return map_tree(lambda c, change: (c.to(torch.float64) + fraction * change).to(c.dtype), control, mean_change)


class Scaffold(Strategy[State]):
    """Control variates that cancel the drift of clients toward their own optima."""

    config_class = Config
    config: Config

    def check(self, setting: Setting) -> None:
        if self.config.option == "II":
            check_linear(
                setting.client,
                "SCAFFOLD's option II reads the mean gradient off (x - y_i) / (K eta_l)",
                instead="strategy.option=I",
            )

    def initial(self, server: ServerContext) -> State:
        model = initial_model(server)
        parameters, _ = split_buffers(server.build_model(), model)
        return State(model, zeros_like(parameters))

    def every_phase(self) -> tuple[Phase[State], ...]:
        send, processed = self.send_model_and_control, self.num_processed
        return (Phase("train", send, self.local, self.fold, self.update, num_processed=processed),)

    def num_processed(self, local: LocalConfig, own: int) -> int:
        """Return the examples that a client goes through: with option I each once more, for the gradient at x."""
        return num_processed(local, own) + own * (self.config.option == "I")

    def send_model_and_control(self, state: State, server: ServerContext) -> Payload:
        return Payload({"model": state.model, "control": state.control})

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        x, c = payload.trees["model"], payload.trees["control"]
        known = client.memory.trees if client.memory else {}
        c_i = known["control"] if "control" in known else zeros_like(c)
        model = client.model(x)
        gradient_at_x = client.full_gradient(model) if self.config.option == "I" else {}
        drift = [common - own for own, common in zip(client.align(model, c_i), client.align(model, c), strict=True)]
        report = client.train(model, AffineCorrection(shifts=drift))
        y = client.weights(model)
        if self.config.option == "I":
            renewed = {name: gradient_at_x[name].cpu() for name in c}
        else:
            before, after = {name: x[name] for name in c}, {name: y[name] for name in c}
            num_steps = summed_weights(max(report.num_steps, 1), client.local.momentum, nesterov=client.local.nesterov)
            renewed = renewed_control(c_i, c, before, after, num_steps, report.lr)
        client.remember(MemoryRecord({"control": renewed}))
        trees = {"delta": subtract(y, x), "control": subtract(renewed, c_i)}
        return Reply(trees, {"loss": report.loss}, client.num_examples)

    def fold(self) -> Product:
        mean = self.config.weighting
        return product({"delta": mean_fold(mean, "model"), "control": mean_fold(mean, "control")}, numbers=["loss"])

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        model = server_step(state.model, folded.trees["delta"], self.config.server_lr)
        fraction = replied_share(self.config.weighting, folded, server)
        return State(model, control_step(state.control, folded.trees["control"], fraction))

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model
