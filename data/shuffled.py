"""Clients whose labels mean nothing: the ones that are drawn, and what they train on."""

from __future__ import annotations

from dataclasses import replace

import torch

from umbel.core.rng import generator
from umbel.data.errors import DataError
from umbel.data.types import Examples


def drawn_clients(number: int, num_clients: int, seed: int) -> list[int]:
    """Return so many clients, ascending.

    Raises:
        DataError: There are not so many.
    """
    if not 0 <= number <= num_clients:
        raise DataError(
            f"data.num_shuffled must be from 0 to data.num_clients={num_clients}, found {number}.",
            key="data.num_shuffled",
        )
    source = generator(seed, purpose="shuffled clients")
    return sorted(torch.randperm(num_clients, generator=source)[:number].tolist())


def with_shuffled_labels(examples: Examples, client: int, seed: int) -> Examples:
    """Return a client's examples with their labels in another order, drawn by the seed of the data."""
    source = generator(seed, client=client, purpose="shuffled labels")
    return replace(examples, labels=examples.labels[torch.randperm(len(examples), generator=source)])
