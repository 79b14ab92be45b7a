"""EWC: overcoming catastrophic forgetting in neural networks, in a federation.

Kirkpatrick, Pascanu, Rabinowitz, Veness, Desjardins, Rusu, Milan, Quan, Ramalho, Grabska-Barwinska, Hassabis, Clopath,
Kumaran, Hadsell. PNAS 114(13), 2017, arXiv:1612.00796, equation 3; `form=online` is that of Schwarz et al., Progress &
compress, ICML 2018, arXiv:1805.06370 (online EWC).

| paper | here | meaning |
|---|---|---|
| theta | `State.model` | parameters of the global model |
| theta*_t | the global model after the last round of task t | |
| F_t | tree `fisher`, their mean | diagonal of the Fisher information at theta*_t |
| lambda | `Config.strength` | how much old tasks count against the new one |
| gamma | `Config.decay` | what is left of the older tasks' F after each task; online form |

    client, training   gradient of L_k(theta) + lambda / 2 sum_t sum_i F_t,i (theta_i - theta*_t,i)^2, t past tasks
    end of a task      F_t = sum_k n_k F_t^k / sum_k n_k, F_t^k the diagonal on client k's data at theta*_t

A sum of quadratics is one quadratic and a constant: with S = sum_t F_t and c = sum_t F_t theta*_t / S its gradient is
lambda S (theta - c). So every past task has its own penalty, about its own theta*_t, and the server keeps and sends
two tensors of a parameter's size, however many tasks there were (`form=separate`, the paper). The online form has
S = gamma S + F_t and the last theta*_t as its centre.

The penalty enters as its gradient. With lambda = 0 this is FedAvg, bit for bit; nothing is computed of F then.

F is of the model's own distribution: the squared gradient of log p(y | x) for y drawn from p(. | x), one an example, or
the expectation over all y. With the labels of the data it is the empirical Fisher, which is another matrix away from
an optimum. Under `data.heads=per_task` p is of the current task's classes.

Legend: N examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from umbel.core.folds import Folded, Product, WeightedMean, product
from umbel.core.losses import CrossEntropy
from umbel.core.ranges import OneOf
from umbel.core.records import BadReplyError, Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.training import LocalConfig
from umbel.core.tree import Tree, map_tree
from umbel.models.base import Model
from umbel.strategies.base import (
    ClientContext,
    Phase,
    ServerContext,
    Setting,
    Strategy,
    initial_model,
    server_step,
    split_buffers,
    train_and_subtract,
)
from umbel.strategies.fedavg import Config as FedAvgConfig
from umbel.strategies.fedavg import mean_fold
from umbel.strategies.setting import refuse_without_sequence

_PARAMETER = "parameter/"  # before the names of the parameters whose F is asked for


@dataclass(frozen=True)
class Config(FedAvgConfig):
    """Hyper-parameters of EWC.

    Attributes:
        strength: lambda; 0 computes nothing of F, and is FedAvg.
        form: `separate` pulls to where each past task ended, as the paper does; `online` to where the last one did.
        decay: gamma of the online form.
        labels: Of which y the Fisher is: `drawn` from the model, one an example; `expected`: all, by their
            probability, which takes a backward pass for each class; `true`: those of the data.
        sample_limit: Training examples that a client computes F on at most, its first ones; 0 takes all.
    """

    strength: Annotated[float, Ge(0)] = 10.0
    form: Annotated[str, OneOf("separate", "online")] = "separate"
    decay: Annotated[float, Interval(ge=0, le=1)] = 1.0
    labels: Annotated[str, OneOf("drawn", "expected", "true")] = "drawn"
    sample_limit: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: theta, the global model's shared state.
        importance: S, a tensor for each parameter of the shared state; empty before the first task has ended.
        centre: c, likewise.
        fisher_next: The next round is the last of a task that another follows.
    """

    model: dict[str, Tensor]
    importance: dict[str, Tensor]
    centre: dict[str, Tensor]
    fisher_next: bool


@dataclass(frozen=True)
class Consolidation:
    """Adds lambda S (theta - c) to the gradient of each parameter theta, in place.

    Attributes:
        strength: lambda.
        importance: S, one tensor a parameter.
        centre: c, likewise.
    """

    strength: float
    importance: Sequence[Tensor]
    centre: Sequence[Tensor]

    def __call__(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        for parameter, gradient, s, c in zip(parameters, gradients, self.importance, self.centre, strict=True):
            gradient.add_(s * (parameter - c), alpha=self.strength)


def diagonal_fisher(
    model: Model, images: Tensor, labels_N: Tensor, kind: str, own_C: Tensor | None, source: torch.Generator
) -> dict[str, Tensor]:
    """Return the mean over examples of (d log p(y | x) / d theta)^2 for each trainable parameter, by its name.

    A square is of one example alone, so that examples go through the model singly.

    Args:
        model: In evaluation mode.
        images: [N, ...], N at least 1.
        labels_N: int64, which `true` reads alone.
        kind: `Config.labels`.
        own_C: The classes that p is of, bool; None has all.
        source: Draws labels, on the CPU.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p, dtype=torch.float64 if p.device.type != "mps" else p.dtype) for p in parameters]
    for image, label in zip(torch.split(images, 1), labels_N.tolist(), strict=True):
        logits_C = model(image)[0]
        if own_C is not None:
            logits_C = logits_C.masked_fill(~own_C, -torch.inf)
        log_p_C = logits_C.log_softmax(0)
        p_C = log_p_C.detach().double().cpu().exp()
        if kind == "expected":
            terms = [(y, p) for y, p in enumerate(p_C.tolist()) if p > 0]
        else:
            terms = [(label if kind == "true" else int(torch.multinomial(p_C, 1, generator=source)), 1.0)]
        for y, p in terms:
            grads = torch.autograd.grad(log_p_C[y], parameters, retain_graph=len(terms) > 1, allow_unused=True)
            for total, grad in zip(sums, grads, strict=True):
                if grad is not None:
                    total.add_(grad.square(), alpha=p)
    return {name: (total / len(images)).to(p.dtype) for name, total, p in zip(names, sums, parameters, strict=True)}


def consolidated(
    importance: Tree, centre: Tree, fisher: Tree, ended: Tree, form: str, decay: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return S and c with one more task in them; all trees have the same names and shapes.

    Args:
        importance: S of the tasks before; empty without.
        centre: Their c.
        fisher: F_t, float64.
        ended: theta*_t.
        form: `Config.form`.
        decay: gamma.
    """
    if not importance:
        return map_tree(lambda w, f: f.to(w.dtype), ended, fisher), dict(ended)
    kept = decay if form == "online" else 1.0
    total = map_tree(lambda s, f: kept * s.to(torch.float64) + f, importance, fisher)
    if form == "online":
        centre = ended
    else:  # where nothing has any importance yet, any centre will do

        def mean(s: Tensor, c: Tensor, f: Tensor, w: Tensor, t: Tensor) -> Tensor:
            return torch.where(t > 0, (s * c.to(torch.float64) + f * w) / t, w.to(torch.float64)).to(w.dtype)

        centre = map_tree(mean, importance, centre, fisher, ended, total)
    return map_tree(lambda w, t: t.to(w.dtype), ended, total), dict(centre)


class _FisherMean(WeightedMean):
    """The mean of squares: one that is below 0 is nobody's, and would push models away from what they know."""

    def check(self, what: str, tree: Tree, payload: Payload) -> None:
        super().check(what, tree, payload)
        _check_squares(what, tree)

    def check_accumulator(self, what: str, accumulator: Tree, payload: Payload, clients: Sequence[int]) -> None:
        super().check_accumulator(what, accumulator, payload, clients)
        _check_squares(what, accumulator)


def _check_squares(what: str, tree: Tree) -> None:
    for name, tensor in tree.items():
        if bool((tensor < 0).any()):
            raise BadReplyError(f"{what}: {name!r} should be squares, found values below 0")


class EWC(Strategy[State]):
    """FedAvg whose clients are held to what earlier tasks need, each parameter by its Fisher information."""

    config_class = Config
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.form == "separate" and config.decay != 1:
            raise Refusal(
                f"strategy.decay={config.decay:g} is of the online form, and strategy.form=separate keeps all of every "
                "task.",
                key="strategy.decay",
                remedy="Set strategy.form=online, or strategy.decay=1.",
            )

    def check(self, setting: Setting) -> None:
        if self.config.strength:
            refuse_without_sequence(setting, "ewc", "strategy.strength", "0")

    def initial(self, server: ServerContext) -> State:
        return State(initial_model(server), {}, {}, self._ends(server, 1))

    def _ends(self, server: ServerContext, round_: int) -> bool:
        return self.config.strength > 0 and server.schedule.hands_over(round_)

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (
            Phase("train", self.send, self.local, self.fold, self.after_train),
            Phase(
                "fisher",
                self.ask,
                self.fisher,
                self.fold_fishers,
                self.after_fisher,
                who="same:train",
                measured=self.held,
                num_processed=self.num_processed,
            ),
        )

    def phases(self, state: State) -> tuple[Phase[State], ...]:
        train, fisher = self.every_phase()
        return (train, fisher) if state.fisher_next else (train,)

    # ---- train: as FedAvg, held by the penalty ---------------------------------------------------------------

    def send(self, state: State, server: ServerContext) -> Payload:
        held = {"importance": state.importance, "centre": state.centre} if state.importance else {}
        return Payload({"model": state.model, **held})

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        if "importance" not in payload.trees:
            return train_and_subtract(payload, client)
        model = client.model(payload.trees["model"])
        s, c = (client.align(model, payload.trees[name]) for name in ("importance", "centre"))
        return train_and_subtract(payload, client, Consolidation(self.config.strength, s, c))

    def fold(self) -> Product:
        return product({"delta": mean_fold(self.config.weighting, "model")}, numbers=["loss"])

    def after_train(self, state: State, folded: Folded, server: ServerContext) -> State:
        model = server_step(state.model, folded.trees["delta"], self.config.server_lr)
        ends = state.fisher_next or self._ends(server, server.round + 1)  # else `after_fisher` looks ahead
        return replace(state, model=model, fisher_next=ends)

    # ---- fisher: what the task needs -------------------------------------------------------------------------

    def num_processed(self, local: LocalConfig, own: int) -> int:
        """Return the examples that a client computes F on."""
        return min(own, self.config.sample_limit or own)

    def ask(self, state: State, server: ServerContext) -> Payload:
        parameters, _ = split_buffers(server.build_model(), state.model)
        return Payload({"model": state.model}, {f"{_PARAMETER}{name}": 1.0 for name in parameters})

    def fisher(self, payload: Payload, client: ClientContext) -> Reply:
        model = client.model(payload.trees["model"]).eval()
        images, labels = client.prepare(client.train_data)
        some = slice(self.config.sample_limit or None)
        tasks = client.loss.task_of_class if isinstance(client.loss, CrossEntropy) else None
        own = None if tasks is None else tasks == client.task
        found = diagonal_fisher(model, images[some], labels[some], self.config.labels, own, client.rng("labels"))
        return Reply({"fisher": {name: found[name].cpu() for name in _asked(payload)}}, {}, client.num_examples)

    def fold_fishers(self) -> Product:
        return product({"fisher": _FisherMean(_asked)})

    def after_fisher(self, state: State, folded: Folded, server: ServerContext) -> State:
        fisher = folded.trees["fisher"]
        ended = {name: state.model[name] for name in fisher}
        config = self.config
        s, c = consolidated(state.importance, state.centre, fisher, ended, config.form, config.decay)
        return State(state.model, s, c, self._ends(server, server.round + 1))

    # ---- what is evaluated and reported ----------------------------------------------------------------------

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model

    def held(self, state: State) -> dict[str, float]:
        """Return the mean and the largest of S: plain SGD needs lr lambda S below 2 to come to rest."""
        largest = max(float(s.max()) for s in state.importance.values())
        total = sum(float(s.sum(dtype=torch.float64)) for s in state.importance.values())
        return {
            "importance/mean": total / sum(s.numel() for s in state.importance.values()),
            "importance/largest": largest,
        }


def _asked(payload: Payload) -> dict[str, Tensor]:
    """Return the parameters whose F is asked for, as they came."""
    names = [name.removeprefix(_PARAMETER) for name in payload.numbers if name.startswith(_PARAMETER)]
    return {name: payload.trees["model"][name] for name in names}
