"""What the tests of methods for sequences of tasks share: small federated runs over three tasks, and one client."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.contexts import client_context
from tests.helpers import small_run
from umbel import RunResult, models
from umbel.core.losses import CrossEntropy
from umbel.core.rng import generator
from umbel.core.schedule import Schedule
from umbel.core.training import LocalConfig
from umbel.core.tree import num_bytes
from umbel.data.types import Examples
from umbel.models.base import Model
from umbel.models.weights import load_state, shared_state
from umbel.strategies.base import ClientContext, ServerContext

F64 = torch.float64
CLASSES, SIDE = 6, 3
TASK_OF_CLASS = torch.tensor([0, 0, 1, 1, 2, 2])
LOCAL = LocalConfig(epochs=1, batch_size=0, lr=0.5, device="cpu", precision="fp64")
# Noise shows that what does not learn draws nothing.
THREE_TASKS = (
    *("model.name=mlp", "model.sizes={hidden: 8, dropout: 0.5}", "client.batch_size=8"),
    *("data.partition=split_tasks", "data.num_tasks=3", "data.rounds_per_task=1", "data.heads=per_task"),
    *("data.num_clients=3", "data.max_train=90", "data.client_test=0.0", "run.rounds=3", "evaluate.every=3"),
)


def sequence_run(results: Path, *overrides: str) -> RunResult:
    """Run three tasks of a round each on three clients."""
    return small_run(results, *THREE_TASKS, *overrides)


def model_bytes(run: RunResult) -> int:
    """Return P, the bytes of a run's model."""
    return num_bytes(load_file(run.path / "model.safetensors"))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def network(name: str = "linear", **sizes: int) -> Model:
    """Return a model of 9 pixels and 6 classes with weights of its own, the same every time."""
    model = models.build(name, CLASSES, SIDE, 1, **sizes).double()
    load_state(model, {n: 0.5 * normal(*w.shape, seed=i) for i, (n, w) in enumerate(shared_state(model).items())})
    return model


def images_of(task: int, num: int = 5) -> Examples:
    """Return examples of the two classes of a task."""
    labels = torch.arange(num) % 2 + 2 * task
    return Examples(normal(num, 1, SIDE, SIDE, seed=50 + task), labels)


def client_of(model: Model, task: int = 1, heads: bool = True, **changes: object) -> ClientContext:
    """Return a client in a task."""
    loss = CrossEntropy(task_of_class=TASK_OF_CLASS if heads else None)
    return client_context(images_of(task), CLASSES, model, local=LOCAL, loss=loss, task=task, **changes)


def server_of(round_: int, model: Model) -> ServerContext:
    """Return the server in a round of three tasks of two rounds each."""
    return ServerContext(
        seed=0,
        round=round_,
        num_rounds=6,
        num_clients=2,
        local=LOCAL,
        build_model=lambda: model,
        shared_names=frozenset(shared_state(model)),
        validation=None,
        device=torch.device("cpu"),
        prepare=lambda examples: (examples.images, examples.labels),
        schedule=Schedule(3, 2),
        task_of_class=TASK_OF_CLASS,
    )
