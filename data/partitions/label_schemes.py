"""The partitions of the literature that need labels, ids or domains alone; flwr-datasets has them too.

Drawn here, because every process of a run would import it, with pandas, datasets and a plotting library. The tests hold
each against its partitioner: the same clients with the same examples in the same order.

Shapes: N examples, K clients, C classes. A row is a place in the pool after it was shuffled by our seed.
"""

from __future__ import annotations

import numpy as np

from umbel.data.errors import PartitionError
from umbel.data.partitions.scheme import Assignment, Ints, Request


def iid(request: Request) -> Assignment:
    """Cut the shuffled pool into equal parts; the first N mod K clients have one example more."""
    num, parts = len(request.labels), request.config.num_clients
    sizes = np.full(parts, num // parts, dtype=np.int64)
    sizes[: num % parts] += 1
    return _sized(request, sizes)


def quantity_skew(request: Request) -> Assignment:
    """Draw sizes from Dirichlet(alpha), IID in classes (Li et al., "Non-IID Data Silos", ICDE 2022, 3.3).

    Every client first gets `min_examples`, at least one, and the rest is shared in the drawn proportions.
    flwr-datasets' `ExponentialPartitioner` is another: with e^k examples for client k it refuses more than a dozen.
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
    num_clients = request.config.num_clients
    order, rng = request.shuffled(), request.rng("partitioner")
    labels = request.labels[order]
    alpha = np.full(num_clients, float(request.config.alpha))
    rows, owner = [], []
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        ends = (np.cumsum(rng.dirichlet(alpha)) * len(mine)).astype(np.int64)
        ends[-1] = len(mine)
        rows.append(mine)
        owner.append(np.repeat(np.arange(num_clients), np.diff(ends, prepend=0)))
    return _dealt(order, np.concatenate(rows), np.concatenate(owner), num_clients, rng)


def shards(request: Request) -> Assignment:
    """Sort by label, cut into K * S equal shards, give each client S (McMahan et al., AISTATS 2017)."""
    config = request.config
    wanted = config.num_clients * config.shards_per_client
    if wanted > len(request.labels):
        raise PartitionError(
            f"data.num_clients={config.num_clients} times data.shards_per_client={config.shards_per_client} "
            f"asks for {wanted} shards out of {len(request.labels)} examples.",
            key="data.shards_per_client",
            remedy="Lower one of them.",
        )
    order, rng = request.shuffled(), request.rng("partitioner")
    order = order[np.argsort(request.labels[order], kind="stable")]
    size = len(order) // wanted
    drawn = rng.permutation(len(order) // size)[:wanted]
    rows = (drawn[:, None] * size + np.arange(size)).ravel()
    owner = np.repeat(np.arange(config.num_clients), config.shards_per_client * size)
    return _dealt(order, rows, owner, config.num_clients, rng)


def pathological(request: Request) -> Assignment:
    """Give each client exactly `classes_per_client` classes (Li et al., ICDE 2022, "#C = c").

    Client k has class k mod C and others at random, so that every class is used when K >= C; with fewer
    clients a class that nobody drew is left out.
    """
    config = request.config
    order, rng = request.shuffled(), request.rng("partitioner")
    labels = request.labels[order]
    present, counts = np.unique(labels, return_counts=True)
    if config.classes_per_client > len(present):
        raise PartitionError(
            f"data.classes_per_client={config.classes_per_client} is more than the {len(present)} classes of "
            f"the training pool.",
            key="data.classes_per_client",
            remedy="Lower data.classes_per_client.",
        )
    has = np.zeros((config.num_clients, len(present)), dtype=bool)
    for client in range(config.num_clients):
        has[client, client % len(present)] = True
        left = config.classes_per_client - 1
        while left:
            place = int(rng.integers(0, len(present), size=1)[0])
            left -= 0 if has[client, place] else 1
            has[client, place] = True
    wanted = has.sum(0)
    if len(short := np.flatnonzero(wanted > counts)):
        raise PartitionError(
            f"data.partition=pathological with data.num_clients={config.num_clients} and data.classes_per_client="
            f"{config.classes_per_client} gives class {present[short[0]]} to {wanted[short[0]]} clients, and it has "
            f"{counts[short[0]]} examples.",
            key="data.num_clients",
            remedy="Lower data.num_clients or data.classes_per_client, or raise data.max_train.",
        )
    rows, owner = [], []
    for place in np.flatnonzero(wanted).tolist():
        mine = np.flatnonzero(labels == present[place])
        sizes = np.full(wanted[place], len(mine) // wanted[place], dtype=np.int64)
        sizes[: len(mine) % wanted[place]] += 1
        rows.append(mine)
        owner.append(np.repeat(np.flatnonzero(has[:, place]), sizes))
    return _dealt(order, np.concatenate(rows), np.concatenate(owner), config.num_clients, rng)


def natural_id(request: Request) -> Assignment:
    """Give each client whole natural ids: one each when K is their number, several at random when less."""
    num_clients = request.config.num_clients
    distinct, position = np.unique(_there(request, request.natural_ids, "natural ids"), return_inverse=True)
    if num_clients > len(distinct):
        raise PartitionError(
            f"data.num_clients={num_clients} is more than the {len(distinct)} natural ids of {request.config.name}.",
            key="data.num_clients",
            remedy=f"Set data.num_clients to at most {len(distinct)}.",
        )
    client_of_id = np.arange(len(distinct)) * num_clients // len(distinct)
    if num_clients < len(distinct):
        client_of_id = request.rng("ids").permutation(client_of_id)
    return _by_column(request, client_of_id[position])


def domain(request: Request) -> Assignment:
    """Put client k in domain k mod D, IID among the clients of a domain; with K < D a client has several."""
    num_clients = request.config.num_clients
    distinct, position = np.unique(_there(request, request.domains, "domains"), return_inverse=True)
    client = position % num_clients
    for index in range(min(len(distinct), num_clients)):
        clients = np.arange(index, num_clients, len(distinct))
        if len(clients) > 1:
            inside = request.rng(f"domain {index}").permutation(np.flatnonzero(position == index))
            client[inside] = clients[np.arange(len(inside)) % len(clients)]
    return _by_column(request, client)


def _there(request: Request, column: Ints | None, what: str) -> Ints:
    """Return a column of the set; refuse a set that has none."""
    if column is None:
        raise PartitionError(
            f"data.partition={request.config.partition} needs a data set with {what}, and {request.config.name} has "
            "none.",
            key="data.partition",
            remedy="Set data.partition to one that uses labels only, such as dirichlet.",
        )
    return column


def _by_column(request: Request, client: Ints) -> Assignment:
    """Give each client the rows of which a column [N] says that they are its own."""
    num_clients = request.config.num_clients
    reached = len(np.unique(client))
    if reached < num_clients:
        raise PartitionError(
            f"data.partition={request.config.partition} leaves {num_clients - reached} of "
            f"data.num_clients={num_clients} clients without examples.",
            key="data.num_clients",
            remedy="Lower data.num_clients.",
        )
    order = request.shuffled()
    return _dealt(order, np.arange(len(order)), client[order], num_clients)


def _sized(request: Request, sizes: Ints) -> Assignment:
    return request.shuffled()[: int(sizes.sum())], np.repeat(np.arange(len(sizes)), sizes)


def _dealt(
    order: Ints, rows: Ints, owner: Ints, num_clients: int, rng: np.random.Generator | None = None
) -> Assignment:
    """Return examples in the order of their clients.

    Args:
        order: [N], the example of each row.
        rows: [M], rows in the order in which a client gets them.
        owner: [M], the client of each.
        num_clients: K.
        rng: Shuffles what each client has; None leaves it as it is.
    """
    dealt = rows[np.argsort(owner, kind="stable")]
    sizes = np.bincount(owner, minlength=num_clients)
    if rng is not None:
        for own in np.split(dealt, np.cumsum(sizes)[:-1]):
            rng.shuffle(own)  # a view: what it is part of is shuffled there
    return order[dealt], np.repeat(np.arange(num_clients), sizes)
