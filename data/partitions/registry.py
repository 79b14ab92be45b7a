"""Partitions by name: an explicit table of how each is drawn, and of what it reads and makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from umbel.core.names import unknown
from umbel.data.partitions import label_schemes, own_schemes
from umbel.data.partitions.scheme import Assignment, Request

Tasks = Literal["none", "classes", "pixels"]
"""What sets the tasks of a sequence apart: their classes, or the order of their pixels; `none` is no sequence."""


@dataclass(frozen=True)
class Scheme:
    """How to draw a partition.

    Attributes:
        draw: One draw.
        description: One line.
        keys: Keys of `data` that it reads beside `num_clients` and `min_examples`.
        random: Another draw may give clients other sizes, so that it is worth drawing again.
        tasks: What sets its tasks apart.
    """

    draw: Callable[[Request], Assignment]
    description: str
    keys: tuple[str, ...] = ()
    random: bool = True
    tasks: Tasks = "none"

    @property
    def fills(self) -> bool:
        """Examples may move between any two clients, so that `top_up` breaks no promise."""
        return "top_up" in self.keys


_TABLE: Mapping[str, Scheme] = {
    "iid": Scheme(label_schemes.iid, "equal parts of the shuffled pool", random=False),
    "dirichlet": Scheme(
        label_schemes.dirichlet,
        "each class over the clients by Dirichlet(alpha)",
        keys=("alpha", "top_up"),
    ),
    "shards": Scheme(
        label_schemes.shards,
        "sorted by class, cut into equal shards, `shards_per_client` for each; a rest smaller than one "
        "example a shard is left out",
        keys=("shards_per_client",),
        random=False,
    ),
    "pathological": Scheme(
        label_schemes.pathological,
        "exactly `classes_per_client` classes for each client",
        keys=("classes_per_client",),
    ),
    "quantity_skew": Scheme(
        label_schemes.quantity_skew,
        "IID in classes, sizes by Dirichlet(alpha) above `min_examples`",
        keys=("alpha",),
        random=False,
    ),
    "natural_id": Scheme(
        label_schemes.natural_id,
        "by who made an example; several ids a client",
        random=False,
    ),
    "domain": Scheme(label_schemes.domain, "each client in one domain, IID inside it", random=False),
    "long_tail": Scheme(
        own_schemes.long_tail,
        "exponential class profile of factor `imbalance`, then Dirichlet(alpha)",
        keys=("imbalance", "alpha", "top_up"),
    ),
    "split_tasks": Scheme(
        own_schemes.split_tasks,
        "classes in order cut into `num_tasks` tasks, each IID over clients",
        keys=("num_tasks",),
        random=False,
        tasks="classes",
    ),
    "permuted_tasks": Scheme(
        own_schemes.permuted_tasks,
        "IID; every task has all examples in its own order of pixels",
        keys=("num_tasks",),
        random=False,
        tasks="pixels",
    ),
    "domain_label": Scheme(
        own_schemes.domain_label,
        "each client in one domain, classes by Dirichlet(alpha) inside it",
        keys=("alpha",),
    ),
}


def names() -> tuple[str, ...]:
    """Return the names that `data.partition` takes."""
    return tuple(_TABLE)


def describe(name: str) -> str:
    """Return one line about a partition."""
    return find(name).description


def keys(name: str) -> tuple[str, ...]:
    """Return the keys of `data` that a partition reads beside `num_clients` and `min_examples`, without `data.`."""
    return find(name).keys


def tasks(name: str) -> Tasks:
    """Return what sets the tasks of a partition apart; `none` where it makes no sequence of tasks."""
    return find(name).tasks


def sequences() -> tuple[str, ...]:
    """Return the names of the partitions that make tasks, one after the other."""
    return tuple(name for name, scheme in _TABLE.items() if scheme.tasks != "none")


def find(name: str) -> Scheme:
    """Return a partition by its name.

    Raises:
        UnknownNameError: There is no such partition.
    """
    if name not in _TABLE:
        raise unknown("partition", name, _TABLE, key="data.partition")
    return _TABLE[name]
