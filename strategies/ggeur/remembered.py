"""What a client of GGEUR remembers beside what its base does: the geometry that came, and what it draws by it.

Legend: N examples, D features, A anchors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload
from umbel.core.rng import generator
from umbel.data.types import Examples
from umbel.strategies.base import ClientContext
from umbel.strategies.ggeur.completion import completion, foreign_prototypes, num_drawn
from umbel.strategies.ggeur.shapes import Geometry

if TYPE_CHECKING:
    from umbel.strategies.ggeur.method import Config

PREFIX = "ggeur:"  # trees and numbers of a client's memory that are not the base's


def received(payload: Payload, round_: int) -> MemoryRecord:
    """Return the geometry that came in a round as what a client remembers of it."""
    trees = {f"{PREFIX}{name}": tree for name, tree in payload.trees.items()}
    numbers = {"round": float(round_), **payload.numbers}
    return MemoryRecord(trees, {f"{PREFIX}{name}": value for name, value in numbers.items()})


def for_base(client: ClientContext) -> ClientContext:
    """Return the client as its base sees it: without GGEUR's part of the memory, which stays."""
    memory = client.memory
    if memory is None:
        return client
    own_trees = {name: tree for name, tree in memory.trees.items() if name.startswith(PREFIX)}
    own_numbers = {name: value for name, value in memory.numbers.items() if name.startswith(PREFIX)}
    trees = {name: tree for name, tree in memory.trees.items() if name not in own_trees}
    numbers = {name: value for name, value in memory.numbers.items() if name not in own_numbers}

    def remember(record: MemoryRecord) -> None:
        client.remember(MemoryRecord({**record.trees, **own_trees}, {**record.numbers, **own_numbers}))

    return replace(client, memory=MemoryRecord(trees, numbers) if trees or numbers else None, remember=remember)


def classes_of(
    config: Config, client: ClientContext, memory: MemoryRecord
) -> Iterator[tuple[Tensor, int, dict[str, Any]]]:
    """Yield for each class the client's embeddings [N, D], T, and what else there is to draw around."""
    prototypes = memory.trees.get(f"{PREFIX}prototypes", {})
    means = memory.trees.get(f"{PREFIX}means", {}).get("mean")
    data = client.train_data
    features = data.images.flatten(1)
    own_domains = set() if data.domains is None else set(data.domains.tolist())
    num_classes = len(memory.trees[f"{PREFIX}geometry"]["eigenvalues"])
    counts = torch.tensor([memory.numbers[f"{PREFIX}count/{label}"] for label in range(num_classes)])
    for label, count in enumerate(counts.tolist()):
        # A class that nobody described has no shape, and draws would be copies of their anchors.
        target = (config.target or round(count)) if count > 0 else 0
        more = {
            "foreign_AD": foreign_prototypes(prototypes, label, own_domains),
            "per_prototype": config.draws_per_prototype,
            "keep_own": config.keep_own,
            "mean_D": None if means is None else means[label],
        }
        yield features[data.labels == label], target, more


def num_new(config: Config, client: ClientContext, memory: MemoryRecord) -> int:
    """Return how many examples `complete` adds to the client's."""
    return sum(num_drawn(len(own), target, **more) for own, target, more in classes_of(config, client, memory))


def complete(config: Config, client: ClientContext, memory: MemoryRecord) -> Examples:
    """Return the client's embeddings, and what is drawn to complete each class."""
    sent = memory.trees[f"{PREFIX}geometry"]
    unused = torch.empty(0)  # draws need neither means nor counts
    shape = Geometry(sent["eigenvalues"], sent["eigenvectors"], unused, unused)
    drawn, labels = [client.train_data.images.flatten(1)], [client.train_data.labels]
    round_ = client.round if config.refresh else 0  # the same draws in every round where the features are the same
    for label, (own, target, more) in enumerate(classes_of(config, client, memory)):
        source = generator(client.seed, round_, "ggeur", client.id, f"class {label}")
        new = completion(shape, label, own, target, source, scale=config.scale, draws=config.draws, **more)
        drawn.append(new)
        labels.append(torch.full((len(new),), label, dtype=torch.int64))
    return Examples(torch.cat(drawn), torch.cat(labels))
