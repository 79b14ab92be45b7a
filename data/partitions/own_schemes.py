"""Partitions that flwr-datasets does not have: long tails, sequences of tasks, domain x label.

Shapes: N examples, K clients, C classes, T tasks, D domains.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from umbel.data.errors import PartitionError
from umbel.data.partitions.scheme import Assignment, Ints, Request


def long_tail_counts(largest: int, imbalance: float, num_classes: int) -> list[int]:
    """Return the number of examples of each class under an exponential long tail.

    n_c = int(largest * IF^(c / (C - 1))) with IF = 1 / imbalance (Cui et al., "Class-Balanced Loss Based on
    Effective Number of Samples", CVPR 2019, and the CIFAR-LT code that followed). For CIFAR-10,
    `long_tail_counts(5000, 100, 10)` has 12,406 examples.

    Args:
        largest: Examples of class 0.
        imbalance: Largest over smallest class, at least 1.
        num_classes: C.
    """
    factor = 1 / imbalance
    return [int(largest * factor ** (index / max(1, num_classes - 1))) for index in range(num_classes)]


def long_tail(request: Request) -> Assignment:
    """Thin the classes to an exponential profile, then give each example of class c to client ~ Cat(q_c).

    q_c ~ Dirichlet(alpha) over the K clients. Class 0 stays the largest. `largest` is the size of the largest
    class in the pool; a class that has fewer than its share keeps all.
    """
    sizes = np.bincount(request.labels, minlength=request.num_classes)
    profile = long_tail_counts(int(sizes.max()), request.config.imbalance, request.num_classes)
    rows = request.shuffled()
    rows = rows[_rank(request.labels[rows]) < np.asarray(profile)[request.labels[rows]]]
    clients = np.arange(request.config.num_clients)
    return rows, _by_class(request.labels[rows], clients, request, "clients of a class")


def class_tasks(num_classes: int, num_tasks: int) -> Tensor:
    """Return the task of each class, [C] int64: classes in order, cut into T runs as equal as can be.

    Raises:
        PartitionError: There are more tasks than classes.
    """
    if num_tasks > num_classes:
        raise PartitionError(
            f"data.num_tasks={num_tasks} is more than the {num_classes} classes, and under "
            f"data.partition=split_tasks a task has at least one class.",
            key="data.num_tasks",
            remedy="Lower data.num_tasks.",
        )
    runs = np.array_split(np.arange(num_classes), num_tasks)
    return torch.from_numpy(np.repeat(np.arange(num_tasks), [len(run) for run in runs]))


def split_tasks(request: Request) -> Assignment:
    """Give every client its equal share of each task, IID inside a task."""
    num_clients = request.config.num_clients
    task_of_class = class_tasks(request.num_classes, request.config.num_tasks).numpy()
    rows = request.shuffled()
    tasks = task_of_class[request.labels[rows]]
    per_task = np.bincount(tasks, minlength=request.config.num_tasks)
    if per_task.min() < num_clients:
        raise PartitionError(
            f"Task {int(per_task.argmin())} has {int(per_task.min())} examples, fewer than "
            f"data.num_clients={num_clients}; every client needs some of each task.",
            key="data.num_clients",
            remedy="Lower data.num_clients or data.num_tasks.",
        )
    # Dealing on from where the last task stopped keeps both the shares of a task and the sums within one.
    owner = np.empty(len(rows), dtype=np.int64)
    owner[np.argsort(tasks, kind="stable")] = np.arange(len(rows)) % num_clients
    return rows, owner


def permuted_tasks(request: Request) -> Assignment:
    """Deal the pool evenly; every task of a client has all its examples, in the task's order of pixels."""
    rows = request.shuffled()
    return rows, np.arange(len(rows)) % request.config.num_clients


def domain_label(request: Request) -> Assignment:
    """Put client k in domain k mod D; give each example of (domain, class) to one of the domain's clients.

    The client is ~ Cat(q), q ~ Dirichlet(alpha) over the clients of the domain, one q a domain and class.
    """
    if request.domains is None:
        raise PartitionError(
            f"data.partition=domain_label needs a data set with domains, and {request.config.name} has none.",
            key="data.partition",
            remedy="Set data.partition to one that uses labels only, such as dirichlet.",
        )
    distinct = np.unique(request.domains)
    num_clients = request.config.num_clients
    if num_clients < len(distinct):
        raise PartitionError(
            f"data.num_clients={num_clients} is fewer than the {len(distinct)} domains, and a client belongs to one.",
            key="data.num_clients",
            remedy=f"Raise data.num_clients to at least {len(distinct)}.",
        )
    rows = request.shuffled()
    owner = np.empty(len(rows), dtype=np.int64)
    for position, domain in enumerate(distinct):
        inside = request.domains[rows] == domain
        clients = np.arange(position, num_clients, len(distinct))
        owner[inside] = _by_class(request.labels[rows[inside]], clients, request, f"domain {domain}")
    return rows, owner


def _rank(groups: Ints) -> Ints:
    """Return how many earlier entries have the same group, [N]."""
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty_like(groups)
    rank[order] = np.arange(len(groups)) - starts[groups[order]]
    return rank


def _by_class(labels: Ints, clients: Ints, request: Request, purpose: str) -> Ints:
    """Draw the client of each example from Cat(q_c), q_c ~ Dirichlet(alpha) over `clients`, [N]."""
    rng = request.rng(purpose)
    owner = np.empty(len(labels), dtype=np.int64)
    for label in range(request.num_classes):
        chances = rng.dirichlet(np.full(len(clients), request.config.alpha))
        inside = np.flatnonzero(labels == label)
        owner[inside] = rng.choice(clients, size=len(inside), p=chances)
    return owner
