"""Partitions of flwr-datasets, fed with example numbers and labels only: no pixels, nothing downloaded.

A partitioner gets the pool in an order shuffled by our seed, and a seed of its own. It is asked for its table
of rows at once where it has one: `load_partition` costs about a millisecond a client in `Dataset.select`.

Shapes: N examples, K clients, C classes.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from umbel.data.errors import PartitionError
from umbel.data.partitions.scheme import Assignment, Ints, Request


def iid(request: Request) -> Assignment:
    """Cut the shuffled pool into equal parts; the first N mod K clients have one example more.

    These are the rows of `IidPartitioner`, taken from `SizePartitioner`, which gives all clients at once.
    """
    num, parts = len(request.labels), request.config.num_clients
    sizes = np.full(parts, num // parts, dtype=np.int64)
    sizes[: num % parts] += 1
    return _sized(request, sizes)


def quantity_skew(request: Request) -> Assignment:
    """Draw sizes from Dirichlet(alpha), IID in classes (Li et al., "Non-IID Data Silos", ICDE 2022, 3.3).

    Every client first gets `min_examples`, at least one, and the rest is shared in the drawn proportions.
    `ExponentialPartitioner` is not used: with e^k examples for client k it refuses more than a dozen clients.
    """
    num, parts = len(request.labels), request.config.num_clients
    floor = max(1, request.config.min_examples)
    shares = request.rng("sizes").dirichlet(np.full(parts, request.config.alpha)) * (num - parts * floor)
    sizes = np.floor(shares).astype(np.int64)
    largest_remainders = np.argsort(sizes - shares, kind="stable")[: num - parts * floor - int(sizes.sum())]
    sizes[largest_remainders] += 1
    return _sized(request, sizes + floor)


def dirichlet(request: Request) -> Assignment:
    """Divide each class over the clients in proportions ~ Dirichlet(alpha) (Yurochkin et al., ICML 2019)."""
    from flwr_datasets.partitioner import DirichletPartitioner

    # The smallest size is enforced by our own draws, with our own seeds and a message that names keys.
    partitioner = DirichletPartitioner(
        num_partitions=request.config.num_clients,
        partition_by="label",
        alpha=float(request.config.alpha),
        min_partition_size=0,
        self_balancing=False,
        shuffle=True,
        seed=request.seed_for("partitioner"),
    )
    return _run(partitioner, request, request.labels)


def shards(request: Request) -> Assignment:
    """Sort by label, cut into K * S equal shards, give each client S (McMahan et al., AISTATS 2017)."""
    from flwr_datasets.partitioner import ShardPartitioner

    config = request.config
    wanted = config.num_clients * config.shards_per_client
    if wanted > len(request.labels):
        raise PartitionError(
            f"data.num_clients={config.num_clients} times data.shards_per_client={config.shards_per_client} "
            f"asks for {wanted} shards out of {len(request.labels)} examples.",
            key="data.shards_per_client",
            remedy="Lower one of them.",
        )
    partitioner = ShardPartitioner(
        num_partitions=config.num_clients,
        partition_by="label",
        num_shards_per_partition=config.shards_per_client,
        shuffle=True,
        seed=request.seed_for("partitioner"),
    )
    return _run(partitioner, request, request.labels)


def pathological(request: Request) -> Assignment:
    """Give each client exactly `classes_per_client` classes (Li et al., ICDE 2022, "#C = c").

    Client k has class k mod C and others at random, so that every class is used when K >= C; with fewer
    clients a class that nobody drew is left out.
    """
    from flwr_datasets.partitioner import PathologicalPartitioner

    config = request.config
    present = np.bincount(request.labels, minlength=request.num_classes)
    num_present = int((present > 0).sum())
    if config.classes_per_client > num_present:
        raise PartitionError(
            f"data.classes_per_client={config.classes_per_client} is more than the {num_present} classes of "
            f"the training pool.",
            key="data.classes_per_client",
            remedy="Lower data.classes_per_client.",
        )
    partitioner = PathologicalPartitioner(
        num_partitions=config.num_clients,
        partition_by="label",
        num_classes_per_partition=config.classes_per_client,
        class_assignment_mode="first-deterministic",
        shuffle=True,
        seed=request.seed_for("partitioner"),
    )
    return _run(partitioner, request, request.labels)


def natural_id(request: Request) -> Assignment:
    """Give each client whole natural ids: one each when K is their number, several at random when less."""
    ids, num_clients = request.natural_ids, request.config.num_clients
    if ids is None:
        raise PartitionError(
            f"data.partition=natural_id needs a data set with natural ids, and {request.config.name} has none.",
            key="data.partition",
            remedy="Set data.partition to one that uses labels only, such as dirichlet.",
        )
    found, position = np.unique(ids, return_inverse=True)
    if num_clients > len(found):
        raise PartitionError(
            f"data.num_clients={num_clients} is more than the {len(found)} natural ids of {request.config.name}.",
            key="data.num_clients",
            remedy=f"Set data.num_clients to at most {len(found)}.",
        )
    client_of_id = np.arange(len(found)) * num_clients // len(found)
    if num_clients < len(found):
        client_of_id = request.rng("ids").permutation(client_of_id)
    return _by_column(request, client_of_id[position])


def domain(request: Request) -> Assignment:
    """Put client k in domain k mod D, IID among the clients of a domain; with K < D a client has several."""
    domains, num_clients = request.domains, request.config.num_clients
    if domains is None:
        raise PartitionError(
            f"data.partition=domain needs a data set with domains, and {request.config.name} has none.",
            key="data.partition",
            remedy="Set data.partition to one that uses labels only, such as dirichlet.",
        )
    found, position = np.unique(domains, return_inverse=True)
    client = position % num_clients
    for index in range(min(len(found), num_clients)):
        clients = np.arange(index, num_clients, len(found))
        if len(clients) > 1:
            inside = request.rng(f"domain {index}").permutation(np.flatnonzero(position == index))
            client[inside] = clients[np.arange(len(inside)) % len(clients)]
    return _by_column(request, client)


def _by_column(request: Request, client: Ints) -> Assignment:
    """Group rows by a column that holds 0..K-1; the grouped partitioner draws no progress bar."""
    from flwr_datasets.partitioner import GroupedNaturalIdPartitioner

    partitioner = GroupedNaturalIdPartitioner(partition_by="label", group_size=1, sort_unique_ids=True)
    reached = len(np.unique(client))
    if reached < request.config.num_clients:
        raise PartitionError(
            f"data.partition={request.config.partition} leaves {request.config.num_clients - reached} of "
            f"data.num_clients={request.config.num_clients} clients without examples.",
            key="data.num_clients",
            remedy="Lower data.num_clients.",
        )
    return _run(partitioner, request, client)


def _sized(request: Request, sizes: Ints) -> Assignment:
    from flwr_datasets.partitioner import SizePartitioner

    return _run(SizePartitioner(partition_sizes=sizes.tolist()), request, request.labels)


def _run(partitioner: Any, request: Request, column: Ints) -> Assignment:
    """Run a partitioner over the shuffled pool.

    Args:
        partitioner: One that partitions by the column "label", or by size.
        request: The draw.
        column: [N], what the column "label" holds: the class of each example, or its natural id.
    """
    from datasets import Dataset

    order = request.shuffled()
    partitioner.dataset = Dataset.from_dict({"idx": order, "label": column[order]})
    with warnings.catch_warnings():
        # Its advice names its own parameters; sizes and classes are checked by us, with the keys to change.
        warnings.simplefilter("ignore")
        try:
            tables = read_tables(partitioner, request.config.num_clients)
        except ValueError as error:
            raise PartitionError(
                f"data.partition={request.config.partition} with data.num_clients="
                f"{request.config.num_clients} is refused by flwr-datasets for these "
                f"{len(order)} examples: {error}",
                key="data.partition",
            ) from error
    owner = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    return np.concatenate(tables), owner


def read_tables(partitioner: Any, num_clients: int) -> list[Ints]:
    """Return the values of "idx" of each client."""
    first = np.asarray(partitioner.load_partition(0)["idx"], dtype=np.int64)
    rows = getattr(partitioner, "_partition_id_to_indices", None)
    if isinstance(rows, dict) and len(rows) == num_clients:
        # After load_partition: a shard partitioner sorts its data set first.
        numbers = np.asarray(partitioner.dataset["idx"], dtype=np.int64)
        tables = [numbers[np.asarray(rows[client], dtype=np.int64)] for client in range(num_clients)]
        if np.array_equal(tables[0], first):
            return tables
    public = (partitioner.load_partition(client)["idx"] for client in range(num_clients))
    return [np.asarray(table, dtype=np.int64) for table in public]
