"""What several tests share: quadratic clients driven by hand, small inline runs, comparisons with given numbers."""

from __future__ import annotations

import math
import shutil
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contexts import client_context
from umbel import RunResult, run
from umbel.conf.schema import Experiment
from umbel.core.fold_tree import FoldTree
from umbel.core.folds import Folded
from umbel.core.memory import MemoryRecord
from umbel.core.records import Reply
from umbel.core.schedule import COSTS
from umbel.core.training import LocalConfig
from umbel.core.virtual.devices import Devices
from umbel.data.types import Examples
from umbel.models.base import Model
from umbel.server.listener import Listener
from umbel.simulations.compare.comparison import Comparison, Item, Member
from umbel.simulations.report.measures import MEASURES
from umbel.strategies.base import ClientContext, Phase, ServerContext, Strategy

CPU = torch.device("cpu")
COMPILES = pytest.mark.skipif(
    shutil.which("c++") is None or not (Path(sysconfig.get_path("include")) / "Python.h").is_file(),
    reason="torch.compile needs a C++ compiler and Python's headers on a CPU",
)


class Point(Model):
    """A model that is nothing but a point w in R^D: `forward(b) = w - b`."""

    def __init__(self, dim: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(dim, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.w - x.flatten(1)


@dataclass
class Quadratics:
    """Clients f_k(w) = a_k / 2 (w - b_k)^2, elementwise, trained by `num_steps` full-batch gradient steps.

    Attributes:
        a: [K, D] curvatures.
        b: [K, D] optima.
        sizes: n_k; client k holds n_k copies of b_k.
        lr: Local learning rate.
        num_steps: E local steps.
        memory: What each client remembers.
        devices: Their devices in virtual time.
        num_sampled: Clients of a sample.
        sgd: Momentum, Nesterov's form and weight decay of the steps.
    """

    a: Tensor
    b: Tensor
    sizes: Sequence[int]
    lr: float = 0.25
    num_steps: int = 2
    memory: dict[int, MemoryRecord] = field(default_factory=dict)
    devices: Devices | None = None
    num_sampled: int = 0
    sgd: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_clients(self) -> int:
        return len(self.a)

    @property
    def local(self) -> LocalConfig:
        return LocalConfig(epochs=self.num_steps, batch_size=0, lr=self.lr, device="cpu", precision="fp64", **self.sgd)

    def shares(self, weighting: str) -> Tensor:
        """p_k as a column [K, 1]."""
        if weighting == "uniform":
            return torch.full((self.num_clients, 1), 1 / self.num_clients, dtype=torch.float64)
        sizes = torch.tensor(self.sizes, dtype=torch.float64)
        return (sizes / sizes.sum())[:, None]

    def server(self, round_: int = 0) -> ServerContext:
        return ServerContext(
            seed=0,
            round=round_,
            num_rounds=1000,
            num_clients=self.num_clients,
            local=self.local,
            build_model=lambda: Point(self.a.shape[1]),
            shared_names=frozenset({"w"}),
            validation=None,
            device=CPU,
            prepare=lambda examples: (examples.images, examples.labels),
            num_sampled=self.num_sampled,
            num_examples=sum(self.sizes),
            num_train=self.sizes,
            devices=self.devices,
        )

    def client(self, k: int, round_: int, remember: Callable[[MemoryRecord], None]) -> ClientContext:
        images = self.b[k].view(1, 1, 1, -1).repeat(self.sizes[k], 1, 1, 1)
        data = Examples(images, torch.zeros(self.sizes[k], dtype=torch.int64))

        return client_context(
            data,
            1,
            Point(self.a.shape[1]),
            id=k,
            round=round_,
            local=self.local,
            memory=self.memory.get(k),
            remember=remember,
            loss=lambda distance, _: (self.a[k] / 2 * distance**2).sum(1).mean(),
        )

    def reply(self, strategy: Strategy[Any], state: Any, k: int, round_: int) -> Reply:
        phase = strategy.phase("train")
        payload = phase.broadcast(state, self.server(round_))
        remembered: list[MemoryRecord] = []
        reply = phase.local(payload, self.client(k, round_, remembered.append))
        phase.fold().check(reply, payload)
        if remembered:
            self.memory[k] = remembered[-1]
        return reply

    def round(
        self,
        strategy: Strategy[Any],
        state: Any,
        round_: int,
        cohort: Sequence[int] | None = None,
        arrival: Sequence[int] | None = None,
    ) -> Any:
        """Run one round; replies are handed over in the order `arrival`."""
        cohort = list(range(self.num_clients)) if cohort is None else list(cohort)
        train = strategy.phase("train")
        fold = train.fold()
        replies = FoldTree(fold, len(cohort))
        for k in cohort if arrival is None else arrival:
            replies.add_reply(cohort.index(k), k, self.reply(strategy, state, k, round_))
        folded: Folded = fold.finish(replies.root())
        return train.update(state, folded, self.server(round_))

    def run(self, strategy: Strategy[Any], num_rounds: int, start: Tensor | None = None) -> Tensor:
        """Run rounds with all clients and return w."""
        state = strategy.initial(self.server())
        if start is not None:
            state.model["w"].copy_(start)
        for round_ in range(1, num_rounds + 1):
            state = self.round(strategy, state, round_)
        return strategy.model(state)["w"]


def watch_phases(monkeypatch: pytest.MonkeyPatch, kind: type[Strategy[Any]], **parts: Callable[..., Any]) -> None:
    """Put others in place of functions of all phases of a strategy; each gets the phase as it was, then what it takes.

    `local` and `fold` take effect on clients, `broadcast`, `update` and `measured` on the server.
    """
    phase, phases = kind.phase, kind.phases

    def watched(own: Phase[Any]) -> Phase[Any]:
        changes: dict[str, Any] = {name: partial(part, own) for name, part in parts.items()}
        return replace(own, **changes)

    monkeypatch.setattr(kind, "phase", lambda self, name: watched(phase(self, name)))
    monkeypatch.setattr(kind, "phases", lambda self, state: tuple(map(watched, phases(self, state))))


def unequal() -> Quadratics:
    """Three clients in R^2 of unequal curvature, optimum and size."""
    return Quadratics(
        a=torch.tensor([[1.0, 3.0], [2.0, 1.0], [3.0, 2.0]], dtype=torch.float64),
        b=torch.tensor([[1.0, -2.0], [-1.0, 3.0], [5.0, 0.0]], dtype=torch.float64),
        sizes=(1, 2, 5),
    )


SMALL = (
    "data.max_train=200",
    "data.max_test=60",
    "data.num_clients=4",
    "model.name=cnn",
    "model.sizes={width: 4, hidden: 16}",
    "client.epochs=1",
    "client.device=cpu",
    "run.rounds=2",
    "evaluate.clients=0",
)

SMALL_FOT = (
    "strategy.name=fot",
    "strategy.threshold=0.7",
    "data.partition=permuted_tasks",
    "data.num_tasks=3",
    "data.rounds_per_task=1",
    "data.num_clients=3",
    "data.max_train=90",
    "data.client_test=0.0",
    "run.rounds=3",
    "evaluate.every=0",
    "checkpoint.every=0",
    "model.name=cnn",
    "model.sizes={width: 2, hidden: 8}",
)

SMALL_FEDLOGE = (
    "strategy.name=fedloge",
    "model.name=cnn",
    "model.sizes={width: 4, hidden: 16}",
    "data.num_clients=4",
    "data.max_train=300",
    "run.rounds=2",
)


def small_run(
    results: Path, *overrides: str, experiment: str = "digits", listener: Listener | None = None
) -> RunResult:
    """Run a small federation inline: 200 digits, 4 clients, 2 rounds."""
    return run(experiment, *SMALL, f"run.results={results}", *overrides, listener=listener)


class Notices(Listener):
    """Keeps what a person is told beside the course of a run."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        self.texts.append(text)


def compared(values: Mapping[str, Sequence[Mapping[str, float]]]) -> Comparison:
    """Make a comparison of strategies whose measures are given, one mapping a seed; others were not measured."""
    items = tuple(Item(label, label) for label in values)
    seeds = tuple(range(len(next(iter(values.values())))))
    members = []
    for item in items:
        for seed in seeds:
            member = Member(item, seed, Experiment(), Path())
            member.__dict__["lost"] = ""
            member.__dict__["costs"] = dict.fromkeys(COSTS, math.nan) | {
                cost: values[item.label][seed][cost] for cost in COSTS if cost in values[item.label][seed]
            }
            member.__dict__["measures"] = dict.fromkeys(MEASURES, math.nan) | dict(values[item.label][seed])
            members.append(member)
    return Comparison(Path(), items, seeds, tuple(members), "digits")


def tree(**tensors: Any) -> dict[str, Tensor]:
    """Float64 tensors by name."""
    return {
        name: value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for name, value in tensors.items()
    }


def bits(result: RunResult) -> str:
    """The hash of the model, and of the representations where there are some."""
    return result.summary["weights_sha256"] + result.summary.get("representations_sha256", "")
