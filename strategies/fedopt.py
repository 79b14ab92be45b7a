"""FedOpt: adaptive federated optimization.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan. ICLR 2021, arXiv:2003.00295, algorithms 1 and 2.
SGD with momentum is also FedAvgM (Hsu, Qi, Brown, arXiv:1909.06335).

| paper | here | meaning |
|---|---|---|
| x_t | `State.model` | global model |
| Delta_t | folded tree `delta` | mean change of the clients |
| -Delta_t | gradient of the server's optimiser | pseudo-gradient |
| eta | `Config.lr` | server learning rate |
| beta_1, beta_2 | `Config.momentum`, `Config.beta2` | decay of the first and second moment |
| tau | `Config.tau` | degree of adaptivity |
| m_t, v_t | `State.moments` | moments, v_0 = tau^2 |

    sgd       m_t = beta_1 m_{t-1} + Delta_t,                    x_{t+1} = x_t + eta m_t
    adam      m_t = beta_1 m_{t-1} + (1 - beta_1) Delta_t,       x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau)
              v_t = beta_2 v_{t-1} + (1 - beta_2) Delta_t^2
    yogi      as adam, v_t = v_{t-1} - (1 - beta_2) Delta_t^2 sign(v_{t-1} - Delta_t^2)

The paper's Adam has no bias correction; `bias_correction=true` takes `torch.optim.Adam` as it is (v_0 = 0). The
mean is weighted by examples unless `weighting=uniform` (the paper's algorithm box). Batch-norm statistics are
averaged, not optimised: they are no descent direction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from umbel.core.folds import Folded, Product, product
from umbel.core.ranges import OneOf
from umbel.core.refusal import Refusal
from umbel.core.training.optimizers import eager
from umbel.core.tree import Tree
from umbel.strategies.base import (
    Phase,
    ServerContext,
    Strategy,
    initial_model,
    server_step,
    split_buffers,
    train_and_subtract,
)
from umbel.strategies.fedavg import WEIGHTINGS, mean_fold


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FedOpt.

    Attributes:
        optimizer: sgd, adam or yogi.
        lr: Server learning rate eta; the paper's grid has 0.001 to 10, 1 with sgd and momentum 0 is FedAvg.
        momentum: Decay beta_1 of the first moment.
        beta2: Decay beta_2 of the second moment (adam, yogi).
        tau: Degree of adaptivity tau (adam, yogi), in units of the change.
        bias_correction: Use torch's Adam with its bias correction in place of the paper's form.
        weighting: `examples` or `uniform`.
    """

    optimizer: Annotated[str, OneOf("sgd", "adam", "yogi")] = "sgd"
    lr: Annotated[float, Ge(0)] = 1.0
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    beta2: Annotated[float, Interval(ge=0, lt=1)] = 0.99
    tau: Annotated[float, Gt(0)] = 1e-3
    bias_correction: bool = False
    weighting: Annotated[str, OneOf(*WEIGHTINGS)] = "examples"


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: x_t, the global model's shared state.
        buffers: Names in `model` that are batch-norm statistics.
        moments: The optimiser's state: for each parameter, its named tensors.
    """

    model: dict[str, Tensor]
    buffers: tuple[str, ...]
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)


class PaperAdaptive(torch.optim.Optimizer):
    """Adam or Yogi of the paper's algorithm 2: no bias correction, v_0 = tau^2.

    Args:
        params: Parameters, any shapes.
        lr: eta.
        beta1: beta_1.
        beta2: beta_2.
        tau: tau.
        yogi: Yogi's second moment in place of Adam's.
    """

    def __init__(self, params: list[Tensor], lr: float, beta1: float, beta2: float, tau: float, yogi: bool) -> None:
        super().__init__(params, {"lr": lr, "beta1": beta1, "beta2": beta2, "tau": tau, "yogi": yogi})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients -Delta_t that the parameters hold."""
        for group in self.param_groups:
            beta1, beta2, tau = group["beta1"], group["beta2"], group["tau"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.full_like(parameter, tau**2)
                delta, squared = -parameter.grad, parameter.grad**2
                first, second = state["exp_avg"], state["exp_avg_sq"]
                first.mul_(beta1).add_(delta, alpha=1 - beta1)
                if group["yogi"]:
                    second.sub_((1 - beta2) * squared * torch.sign(second - squared))
                else:
                    second.mul_(beta2).add_(squared, alpha=1 - beta2)
                parameter.add_(first / (second.sqrt() + tau), alpha=group["lr"])


def make_optimizer(config: Config, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Make the server's optimiser."""
    made: torch.optim.Optimizer
    if config.optimizer == "sgd":
        made = eager(torch.optim.SGD)(parameters, lr=config.lr, momentum=config.momentum)
    elif config.optimizer == "adam" and config.bias_correction:
        betas = (config.momentum, config.beta2)
        made = eager(torch.optim.Adam)(parameters, lr=config.lr, betas=betas, eps=config.tau)
    else:
        yogi = config.optimizer == "yogi"
        made = eager(PaperAdaptive)(parameters, config.lr, config.momentum, config.beta2, config.tau, yogi)
    return made


def optimize(
    config: Config, model: Tree, mean_delta: Tree, moments: Mapping[str, Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Take one server step on the pseudo-gradient.

    Args:
        config: Which optimiser.
        model: x_t, parameters only.
        mean_delta: Delta_t in float64, same names and shapes.
        moments: The optimiser's state after the last step, empty before the first.

    Returns:
        x_{t+1} and the optimiser's new state.
    """
    parameters = {name: weight.detach().clone() for name, weight in model.items()}
    optimizer = make_optimizer(config, list(parameters.values()))
    for name, parameter in parameters.items():
        parameter.grad = mean_delta[name].to(parameter.dtype).neg()
        if name in moments:
            state: dict[str, Any] = {key: value.clone() for key, value in moments[name].items()}
            optimizer.state[parameter] = state
    optimizer.step()
    new = {
        name: {key: value for key, value in optimizer.state[p].items() if isinstance(value, Tensor)}
        for name, p in parameters.items()
    }
    return {name: p.detach() for name, p in parameters.items()}, new


class FedOpt(Strategy[State]):
    """The mean change as a gradient for an optimiser on the server."""

    config_class = Config
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.bias_correction and config.optimizer != "adam":
            raise Refusal(
                f"strategy.bias_correction=true goes with strategy.optimizer=adam only, found {config.optimizer}.",
                key="strategy.bias_correction",
                remedy="Set strategy.bias_correction=false.",
            )

    def initial(self, server: ServerContext) -> State:
        model = initial_model(server)
        _, buffers = split_buffers(server.build_model(), model)
        return State(model, tuple(buffers))

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send_model, train_and_subtract, self.fold, self.update),)

    def fold(self) -> Product:
        return product({"delta": mean_fold(self.config.weighting, "model")}, numbers=["loss"])

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        delta = folded.trees["delta"]
        parameters = {name: tensor for name, tensor in state.model.items() if name not in state.buffers}
        buffers = {name: state.model[name] for name in state.buffers}
        moved, moments = optimize(self.config, parameters, {name: delta[name] for name in parameters}, state.moments)
        averaged = server_step(buffers, {name: delta[name] for name in buffers})
        merged = moved | averaged
        return State({name: merged[name] for name in state.model}, state.buffers, moments)

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model
