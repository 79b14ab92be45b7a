"""What clients of GGEUR release of their embeddings, and the geometry of each class that it pools to.

Legend: N examples, D features, C classes, K clients.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from umbel.core.folds import Folded
from umbel.core.gathered import collected
from umbel.core.records import Payload, Reply
from umbel.core.tree import Tree
from umbel.strategies.base import ClientContext
from umbel.strategies.ggeur import noise as privacy
from umbel.strategies.ggeur.pooling import (
    ClassStatistics,
    class_statistics,
    covering_clients,
    domain_means,
    from_sums,
    from_tree,
    statistics_tree,
    sums_tree,
)
from umbel.strategies.ggeur.shapes import Geometry, denoise, geometry, inflate_smallest

if TYPE_CHECKING:
    from umbel.strategies.ggeur.method import Config

WIRES = {"float32": torch.float32, "float64": torch.float64}


def release(
    config: Config, sigma: float, payload: Payload, client: ClientContext, features_ND: Tensor, labels_N: Tensor
) -> Reply:
    """Return a client's reply with the statistics of its embeddings, with noise where there is to be some.

    Args:
        config: What is released.
        sigma: Deviation of the noise, as `gaussian_sigma` says.
        payload: What asked for it.
        client: The client.
        features_ND: Its embeddings, [N, D].
        labels_N: Their labels, [N].
    """
    taken = privacy.clip_rows(features_ND, config.clip) if config.clip else features_ND
    found = class_statistics(taken, labels_N, client.num_classes)
    found = ClassStatistics(*(part.cpu() for part in found.parts))
    if config.release == "moments":
        tree = statistics_tree(found, config.min_count, WIRES[config.wire])
        if guide := payload.trees["guide"]:
            tree = {label: row for label, row in tree.items() if client.id in guide[label].tolist()}
    else:
        tree = sums_tree(found, config.min_count)
    trees: dict[str, Tree] = {"statistics": tree}
    if config.domains:
        domains = client.train_data.domains
        trees["prototypes"] = domain_means(taken.cpu(), client.train_data.labels, domains, config.min_count)
    if not config.epsilon:
        return Reply(trees, {}, client.num_examples)
    sigma = sigma / math.sqrt(payload.numbers["clients"] if config.noise == "distributed" else 1.0)
    source = None if config.secret_noise else client.rng("privacy")
    noised = privacy.add_noise(tree["sums"], sigma, config.unit or config.clip, source)
    numbers = {"epsilon": config.epsilon, "delta": config.delta, "sigma": sigma}
    return Reply({"statistics": {"sums": noised}}, numbers, 1)  # not num_examples: it would be exact


def pooled_geometry(config: Config, sigma: float, tree: Tree, num_classes: int) -> Geometry:
    """Return the geometry of each class out of what all clients released.

    Args:
        config: What was released.
        sigma: Deviation of the noise on the sum.
        tree: The folded tree `statistics`.
        num_classes: C.
    """
    sums = config.release == "sums"
    pooled = from_sums(tree["sums"], least=3 * sigma) if sums else from_tree(tree, num_classes)
    found = geometry(pooled, config.rank or None)
    if config.epsilon:
        found = denoise(found, sigma, config.unit or config.clip)
    return inflate_smallest(found) if config.legacy_small_eig_scale else found


def gaussian_sigma(config: Config) -> float:
    """Return the deviation of the noise that makes one release of sums (epsilon, delta)-private; 0 without.

    In the unit of the embeddings that `config` chooses; the sensitivity is that of B in the same unit.
    """
    if not config.epsilon:
        return 0.0
    bound = config.clip / (config.unit or config.clip)
    return privacy.sensitivity(bound) * privacy.noise_multiplier(config.epsilon, config.delta)


def guided(folded: Folded, share: float) -> dict[str, Any]:
    """Return the State's `guide` and `counts` out of the counts [C] that each client sent."""
    replies = collected(folded.trees["counts"])
    counts_KC = torch.stack([tree["count"] for _, _, tree in replies]).to(torch.int64)
    numbers = torch.tensor([client for client, _, _ in replies])
    needed = covering_clients(counts_KC, share)
    guide = {str(label): numbers[needed[:, label]] for label in range(counts_KC.shape[1])}
    return {"guide": guide, "counts": tuple(float(count) for count in counts_KC.sum(0).tolist())}
