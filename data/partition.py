"""Who has which example: the training pool cut into clients.

Shapes: N examples of the pool, M of them in the partition, K clients, C classes. A partition is two tensors
(compressed sparse rows), so that 100,000 clients are no Python objects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from umbel.data.config import DataConfig
from umbel.data.errors import PartitionError
from umbel.data.partitions.own_schemes import class_tasks, long_tail_counts
from umbel.data.partitions.registry import Tasks, describe, find, keys, names, sequences, tasks
from umbel.data.partitions.scheme import Assignment, Ints, Request

__all__ = [
    "Partition",
    "Tasks",
    "build",
    "check",
    "class_tasks",
    "describe",
    "keys",
    "long_tail_counts",
    "names",
    "repeats",
    "sequences",
    "tasks",
]

_ATTEMPTS = 10


@dataclass(frozen=True)
class Partition:
    """Example numbers of all clients, one client after the other.

    Attributes:
        indices: [M] int64, example numbers of the pool, none twice.
        offsets: [K + 1] int64; client k has `indices[offsets[k]:offsets[k + 1]]`.
        tasks: [M] int64, the task of each example under `split_tasks`, else None.
        repeats: In how many tasks each example occurs: `num_tasks` under `permuted_tasks`, where every task
            has all examples in another order of pixels, else 1.
    """

    indices: Tensor
    offsets: Tensor
    tasks: Tensor | None = None
    repeats: int = 1

    @property
    def num_clients(self) -> int:
        """Number of clients K."""
        return int(self.offsets.shape[0]) - 1

    @property
    def sizes(self) -> Tensor:
        """Number of examples of each client, [K] int64."""
        return self.offsets.diff()

    def client(self, number: int) -> Tensor:
        """Return the example numbers of a client, [m] int64 (a view).

        Raises:
            IndexError: There is no such client.
        """
        if not 0 <= number < self.num_clients:
            raise IndexError(f"Client {number} asked for, but clients are numbered 0..{self.num_clients - 1}.")
        return self.indices[int(self.offsets[number]) : int(self.offsets[number + 1])]

    def owners(self) -> Tensor:
        """Return the client of each entry of `indices`, [M] int64."""
        return torch.repeat_interleave(torch.arange(self.num_clients), self.sizes)

    def counts(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return how many examples of each class each client has, [K, C] int64.

        Args:
            labels: [N] int64, the labels of the pool.
            num_classes: C.
        """
        cell = self.owners() * num_classes + labels[self.indices]
        return torch.bincount(cell, minlength=self.num_clients * num_classes).view(-1, num_classes)


def check(config: DataConfig) -> None:
    """Raise for what can be refused without seeing the data.

    Raises:
        UnknownNameError: There is no such partition.
        PartitionError: `data.top_up` with a partition that it would make something else of.
    """
    scheme = find(config.partition)
    if config.top_up and not scheme.fills:
        filling = [name for name in names() if find(name).fills]
        raise PartitionError(
            f"data.top_up=true works with data.partition={' or '.join(filling)}, found {config.partition}, "
            f"which moved examples would make something else.",
            key="data.top_up",
            remedy="Set data.top_up=false.",
        )


def build(
    config: DataConfig,
    labels: Tensor,
    domains: Tensor | None,
    natural_ids: Tensor | None,
    seed: int,
    num_classes: int | None = None,
) -> Partition:
    """Cut a pool of examples into clients.

    Args:
        config: The scheme, its parameters and the number of clients K.
        labels: [N] int64.
        domains: [N] int64, or None.
        natural_ids: [N] int64, or None.
        seed: The seed of the data; the same seed gives the same partition.
        num_classes: C; None takes the largest label plus one.

    Raises:
        UnknownNameError: There is no such partition.
        PartitionError: The pool cannot be cut so; the message names the key to change.
    """
    check(config)
    num = int(labels.shape[0])
    needed = config.num_clients * max(1, config.min_examples)
    if num < needed:
        raise PartitionError(
            f"data.num_clients={config.num_clients} with data.min_examples={config.min_examples} needs at "
            f"least {needed} examples, but the training pool has {num}.",
            key="data.num_clients",
            remedy="Lower data.num_clients or data.min_examples, or raise data.max_train.",
        )
    request = Request(
        config=config,
        labels=labels.numpy(),
        num_classes=num_classes if num_classes is not None else int(labels.max()) + 1,
        domains=None if domains is None else domains.numpy(),
        natural_ids=None if natural_ids is None else natural_ids.numpy(),
        seed=seed,
        attempt=0,
    )
    rows, owner = _draw(request)
    order = np.argsort(owner, kind="stable")
    offsets = np.zeros(config.num_clients + 1, dtype=np.int64)
    np.cumsum(np.bincount(owner, minlength=config.num_clients), out=offsets[1:])
    indices = torch.from_numpy(rows[order])
    apart = tasks(config.partition)
    task = class_tasks(request.num_classes, config.num_tasks)[labels[indices]] if apart == "classes" else None
    return Partition(indices, torch.from_numpy(offsets), task, repeats(config))


def repeats(config: DataConfig) -> int:
    """Return in how many tasks each example occurs (`Partition.repeats`)."""
    return config.num_tasks if tasks(config.partition) == "pixels" else 1


def _draw(request: Request) -> Assignment:
    """Draw until every client has `min_examples`; then top up where that is wanted, or refuse."""
    config = request.config
    scheme = find(config.partition)
    attempts = _ATTEMPTS if scheme.random and not config.top_up else 1
    for attempt in range(attempts):
        rows, owner = scheme.draw(replace(request, attempt=attempt))
        sizes = np.bincount(owner, minlength=config.num_clients)
        if sizes.min() >= config.min_examples:
            return rows, owner
    if config.top_up:
        return rows, _top_up(owner, config.num_clients, config.min_examples)
    below = int((sizes < config.min_examples).sum())
    drawn = f" after {attempts} draws" if attempts > 1 else ""
    remedy = "Lower data.num_clients or data.min_examples"
    if scheme.random and "alpha" in scheme.keys:
        remedy += ", raise data.alpha"
    if scheme.fills:
        remedy += ", or set data.top_up=true"
    raise PartitionError(
        f"data.partition={config.partition} left {below} of {config.num_clients} clients with fewer than "
        f"data.min_examples={config.min_examples} examples{drawn} (the smallest has {sizes.min()}).",
        key="data.num_clients",
        remedy=f"{remedy}.",
    )


def _top_up(owner: Ints, num_clients: int, min_examples: int) -> Ints:
    """Move examples from the largest clients to those below `min_examples`, no more than needed.

    The spare examples of a client are those beyond its first `min_examples`; the ones of the highest rank go
    first, which brings the largest clients down to one level.

    Args:
        owner: [M], the client of each example in random order.
        num_clients: K.
        min_examples: What every client must have.
    """
    sizes = np.bincount(owner, minlength=num_clients)
    order = np.argsort(owner, kind="stable")
    starts = np.cumsum(sizes) - sizes
    rank = np.empty_like(owner)
    rank[order] = np.arange(len(owner)) - starts[owner[order]]
    missing = np.maximum(min_examples - sizes, 0)
    receivers = np.repeat(np.arange(num_clients), missing)
    givers = np.argsort(-rank, kind="stable")[: len(receivers)]
    if len(givers) < len(receivers) or (len(givers) and rank[givers].min() < min_examples):
        raise PartitionError(
            f"The partition keeps {len(owner)} examples, fewer than data.num_clients={num_clients} times "
            f"data.min_examples={min_examples}.",
            key="data.num_clients",
            remedy="Lower one of them.",
        )
    moved = owner.copy()
    moved[givers] = receivers
    return moved
