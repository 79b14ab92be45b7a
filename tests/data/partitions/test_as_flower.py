"""Partitions that flwr-datasets has, too: the same clients with the same examples in the same order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    GroupedNaturalIdPartitioner,
    IidPartitioner,
    Partitioner,
    PathologicalPartitioner,
    ShardPartitioner,
    SizePartitioner,
)

from tests.data.partitions.test_partition import LABELS, PEOPLE, C, N, cut
from umbel.data.config import DataConfig
from umbel.data.partition import build
from umbel.data.partitions.scheme import Request


def library(name: str, num_clients: int, rng: np.random.Generator, settings: dict[str, object]) -> Partitioner:
    """The partitioner of flwr-datasets that a scheme is to be the same as; numpy takes a generator as a seed."""
    shuffled = {"num_partitions": num_clients, "partition_by": "label", "shuffle": True, "seed": rng}
    if name == "dirichlet":
        return DirichletPartitioner(**shuffled, alpha=settings["alpha"], min_partition_size=0, self_balancing=False)
    if name == "shards":
        return ShardPartitioner(**shuffled, num_shards_per_partition=settings["shards_per_client"])
    if name == "pathological":
        num = settings["classes_per_client"]
        mode = "first-deterministic"
        return PathologicalPartitioner(**shuffled, num_classes_per_partition=num, class_assignment_mode=mode)
    if name == "natural_id":
        return GroupedNaturalIdPartitioner(partition_by="person", group_size=1, sort_unique_ids=True)
    return IidPartitioner(num_clients)


@pytest.mark.parametrize(
    ("name", "num_clients", "settings"),
    [
        ("iid", 7, {}),
        ("iid", 1, {}),
        ("dirichlet", 10, {"alpha": 0.5}),
        ("dirichlet", 1, {"alpha": 0.5}),
        ("dirichlet", 700, {"alpha": 0.01}),
        ("dirichlet", 3, {"alpha": 1000.0}),
        ("shards", 10, {"shards_per_client": 2}),
        ("shards", 7, {"shards_per_client": 3}),
        ("shards", 41, {"shards_per_client": 1}),
        ("pathological", 10, {"classes_per_client": 2}),
        ("pathological", 4, {"classes_per_client": 1}),
        ("pathological", 40, {"classes_per_client": 10}),
        ("pathological", 23, {"classes_per_client": 5}),
        ("natural_id", 60, {}),
    ],
)
@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.filterwarnings("ignore")  # advice that names the library's own parameters
def test_a_partition_is_that_of_flwr_datasets(
    name: str, num_clients: int, settings: dict[str, object], seed: int
) -> None:
    """The same clients with the same examples in the same order; its order of the pool and its seed are ours."""
    labels = (torch.arange(N) * torch.arange(N) // 7) % C  # classes of unlike sizes
    config = DataConfig(partition=name, num_clients=num_clients, min_examples=0, **settings)  # type: ignore[arg-type]
    ours = build(config, labels, None, PEOPLE, seed)
    request = Request(config, labels.numpy(), C, None, PEOPLE.numpy(), seed, attempt=0)
    order = request.shuffled()
    theirs = library(name, num_clients, request.rng("partitioner"), settings)
    columns = {"idx": order, "label": labels.numpy()[order], "person": PEOPLE.numpy()[order]}
    theirs.dataset = Dataset.from_dict(columns)
    for client in range(num_clients):
        assert list(theirs.load_partition(client)["idx"]) == ours.client(client).tolist(), client


def test_sizes_that_are_drawn_are_cut_as_flwr_datasets_cuts_them() -> None:
    ours = cut(partition="quantity_skew", num_clients=12)
    theirs = SizePartitioner(ours.sizes.tolist())
    order = Request(DataConfig(partition="quantity_skew"), LABELS.numpy(), C, None, None, 0, attempt=0).shuffled()
    theirs.dataset = Dataset.from_dict({"idx": order})
    for client in range(12):
        assert list(theirs.load_partition(client)["idx"]) == ours.client(client).tolist()
