"""F2: the plain loop in forked workers; weights and sums lie in memory that all of them share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn

from yardstick import training
from yardstick.marks import Clock, assignment, outcome
from yardstick.workload import Workload

Client = tuple[Tensor, Tensor]


def shared_like(tree: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return zeros of the same shapes and orders in memory that forked processes share."""
    return {name: torch.zeros_like(tensor).share_memory_() for name, tensor in tree.items()}


def work(
    orders: Connection,
    data: Sequence[Client],
    model: nn.Module,
    weights: Mapping[str, Tensor],
    total: Mapping[str, Tensor],
    workload: Workload,
    number: int,
) -> None:
    """Train the clients of each order that comes and leave their weighted sum in `total`; None is the last.

    Args:
        orders: Brings lists of clients; takes back how many examples there were.
        data: All clients' examples.
        model: The worker's own, as memory is copied when it is written to.
        weights: The global model, shared.
        total: The worker's sum, shared.
        workload: What is to be done.
        number: The worker's.
    """
    generator = torch.Generator().manual_seed(1 + number)
    while (clients := orders.recv()) is not None:
        for tensor in total.values():
            tensor.zero_()
        for client in clients:
            images, labels = data[client]
            model.load_state_dict(weights, strict=False)
            training.train(model, images, labels, workload, generator)
            training.add(total, model.state_dict(), len(labels))
        orders.send(sum(len(data[client][1]) for client in clients))


def main() -> None:
    """Run as a contender."""
    options, folder = assignment()
    clock, workload = Clock(), Workload.read(folder)
    channels_last, num_workers = bool(options.get("channels_last")), int(options["workers"])
    torch.set_num_threads(1)
    data = training.clients(workload, folder, channels_last)
    model = training.build(workload, folder, channels_last)
    first = training.averaged(model.state_dict())
    weights, totals = shared_like(first), [shared_like(first) for _ in range(num_workers)]
    training.set_mean(weights, [first], 1)
    fork = multiprocessing.get_context("fork")
    ours, theirs = zip(*(fork.Pipe() for _ in range(num_workers)), strict=True)
    workers = [
        fork.Process(target=work, args=(theirs[k], data, model, weights, totals[k], workload, k))
        for k in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    generator = torch.Generator().manual_seed(0)
    for round_ in range(workload.warm_rounds + workload.rounds):
        if round_ == workload.warm_rounds:
            clock.begin()
        drawn = training.draw(workload, generator)
        for k, orders in enumerate(ours):
            orders.send(drawn[k::num_workers])
        seen = sum(orders.recv() for orders in ours)
        training.set_mean(weights, totals, seen)
    clock.end()
    for orders, worker in zip(ours, workers, strict=True):
        orders.send(None)
        worker.join()
    model.load_state_dict(weights, strict=False)
    torch.save(model.state_dict(), outcome())


if __name__ == "__main__":
    main()
