"""FedNova: tackling the objective inconsistency problem in heterogeneous federated optimization.

Wang, Liu, Liang, Joshi, Poor. NeurIPS 2020, arXiv:2007.07481, sections 4 and 5, in delta form.

| paper | here | meaning |
|---|---|---|
| x^(t,0) | `State.model` | global model before round t |
| tau_i | steps of the local run | local steps of client i |
| a_i | weights of its gradients | how much each local gradient counts in the change |
| norm_1(a_i) | `summed_weights`, tree `length` | their sum |
| -eta d_i | tree `delta` | change of client i over norm_1(a_i) |
| p_i | `Config.weighting` | weight of client i |
| tau_eff | mean of the trees `length` | effective number of steps of a round |
| rho, mu | `client.momentum`, `Config.mu` | local momentum, strength of the proximal term |
| eta | `client.lr` | local learning rate |

    x^(t+1,0) = x^(t,0) - tau_eff sum_i p_i eta d_i,   d_i = G_i a_i / norm_1(a_i),   tau_eff = sum_i p_i norm_1(a_i)

    SGD            norm_1(a_i) = tau_i
    momentum       norm_1(a_i) = (tau_i - rho (1 - rho^tau_i) / (1 - rho)) / (1 - rho)
    proximal term  norm_1(a_i) = (1 - (1 - eta mu)^tau_i) / (eta mu)

A mean of changes, as FedAvg takes it, weighs a client by p_i norm_1(a_i), and so minimises another objective than the
one with the weights p_i where clients take different numbers of steps. Equal steps make it FedAvg but for rounding, and
nothing is rounded where norm_1(a_i) is a power of two.

Any combination of momentum, Nesterov's form and the proximal term is covered: the change of a local run is linear in
its gradients, and the sum of the a_i is the change that gradients of 1 would give. With momentum a strong proximal term
makes some a_i negative; their sum is taken all the same. The mean is over those who replied. Batch-norm statistics are
averaged as they are: no step size is in them. Left out is the paper's momentum at the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from umbel.core.folds import Folded, Product, product
from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.training.corrections import AffineCorrection
from umbel.core.tree import scale, subtract
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
from umbel.strategies.steps import check_linear


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FedNova.

    Attributes:
        mu: Strength mu of the proximal term, in units of the loss over squared weights; 0 has none.
        server_lr: Server learning rate; 1 is the paper.
        weighting: `examples` as in the paper, or `uniform`.
    """

    mu: Annotated[float, Ge(0)] = 0.0
    server_lr: Annotated[float, Ge(0)] = 1.0
    weighting: Annotated[str, OneOf(*WEIGHTINGS)] = "examples"


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: x, the global model's shared state.
        buffers: Names in `model` that are batch-norm statistics.
    """

    model: dict[str, Tensor]
    buffers: tuple[str, ...]


def summed_weights(num_steps: int, momentum: float = 0.0, pull: float = 0.0, nesterov: bool = False) -> float:
    """Return norm_1(a_i), the sum of what the gradients of a local run count in its change, in learning rates.

    It is how far the optimiser goes (`torch.optim.SGD`) if each gradient is 1.

    Args:
        num_steps: tau_i.
        momentum: rho.
        pull: eta mu, what a step takes back of the way from the global model.
        nesterov: Nesterov's form of momentum.
    """
    way = velocity = 0.0
    for _ in range(num_steps):
        gradient = 1.0 - pull * way
        velocity = momentum * velocity + gradient
        way += gradient + momentum * velocity if nesterov else velocity
    return way


def length_like(payload: Payload) -> dict[str, Tensor]:
    """Return the tree `length` of a reply, without content."""
    return {"sum": torch.empty((), dtype=torch.float64, device="meta")}


class FedNova(Strategy[State]):
    """Averages changes by the step, so that clients that take more of them do not count more."""

    config_class = Config
    config: Config

    def check(self, setting: Setting) -> None:
        local = setting.client
        check_linear(local, "FedNova divides a client's change by what its gradients count in it")
        if local.lr * self.config.mu >= 1:
            raise Refusal(
                f"With client.lr={local.lr:g}, strategy.mu={self.config.mu:g} pulls each step to the global model, or "
                "past it.",
                key="strategy.mu",
                remedy=f"Set it below {1 / local.lr:g}, 1 / client.lr.",
            )

    def initial(self, server: ServerContext) -> State:
        model = initial_model(server)
        _, buffers = split_buffers(server.build_model(), model)
        return State(model, tuple(buffers))

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send_model, self.local, self.fold, self.update),)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        x, mu, local = payload.trees["model"], self.config.mu, client.local
        model = client.model(x)
        anchors = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        report = client.train(model, AffineCorrection(mu, anchors))
        parameters, buffers = split_buffers(model, subtract(client.weights(model), x))
        length = summed_weights(max(report.num_steps, 1), local.momentum, report.lr * mu, local.nesterov)
        normalised = {name: change / length for name, change in parameters.items()} | buffers
        trees = {
            "delta": {name: normalised[name] for name in x},
            "length": {"sum": torch.tensor(length, dtype=torch.float64)},
        }
        return Reply(trees, {"loss": report.loss}, client.num_examples)

    def fold(self) -> Product:
        mean = self.config.weighting
        return product({"delta": mean_fold(mean, "model"), "length": mean_fold(mean, length_like)}, numbers=["loss"])

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        delta, effective = folded.trees["delta"], float(folded.trees["length"]["sum"])
        parameters = scale({name: change for name, change in delta.items() if name not in state.buffers}, effective)
        model = server_step(state.model, {**delta, **parameters}, self.config.server_lr)
        return State(model, state.buffers)

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model
