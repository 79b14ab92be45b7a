"""What clients of GGEUR release of their embeddings, and the geometry of each class that it pools to.

Legend: N examples, D features, C classes, K clients.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from umbel.core.collecting import replies_in
from umbel.core.folds import Folded
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

_CHUNK = 512  # images whose features are computed at once
WIRES = {"float32": torch.float32, "float64": torch.float64}


def features_of(config: Config, payload: Payload, client: ClientContext) -> tuple[Tensor, Tensor]:
    """Return features [N, D] and labels [N] of a client's examples: its embeddings, or those of the global model."""
    images, labels = client.prepare(client.train_data)
    if not config.refresh:
        return images.flatten(1), labels
    model = client.model(payload.trees["model"]).eval()
    with torch.no_grad():
        return torch.cat([model.features(chunk) for chunk in torch.split(images, _CHUNK)]), labels


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
    statistics = class_statistics(taken, labels_N, client.num_classes)
    statistics = ClassStatistics(*(part.cpu() for part in statistics.parts))
    if config.release == "moments":
        tree = statistics_tree(statistics, config.min_count, WIRES[config.wire])
        if guide := payload.trees["guide"]:
            tree = {label: row for label, row in tree.items() if client.id in guide[label].tolist()}
    else:
        tree = sums_tree(statistics, config.min_count)
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
    shape = geometry(pooled, config.rank or None)
    if config.epsilon:
        shape = denoise(shape, sigma, config.unit or config.clip)
    return inflate_smallest(shape) if config.legacy_small_eig_scale else shape


def shaped(
    config: Config, sigma: float, folded: Folded, num_classes: int, num_clients: int, counts: tuple[float, ...]
) -> dict[str, Any]:
    """Return the State's `geometry`, `means`, `counts` and `prototypes` out of what all clients released.

    Args:
        config: What was released.
        sigma: Deviation of a client's noise.
        folded: The releases, pooled.
        num_classes: C.
        num_clients: K.
        counts: Examples of each class over all clients, where there is a guided set.
    """
    replies = folded.num_replies / (num_clients if config.noise == "distributed" else 1)
    shape = pooled_geometry(config, sigma * math.sqrt(replies), folded.trees["statistics"], num_classes)
    described = tuple(shape.count_C.tolist())
    if config.guide:  # of everyone, unless nobody of the guided set could say what the class looks like
        described = tuple(every if guiding else 0.0 for every, guiding in zip(counts, described, strict=True))
    prototypes = folded.trees.get("prototypes", {})
    return {
        "geometry": {"eigenvalues": shape.eigenvalues_CR.float(), "eigenvectors": shape.eigenvectors_CDR.float()},
        "means": {"mean": shape.mean_CD.float()} if config.complete == "all" else {},
        "counts": described,
        "prototypes": {name: (packed[1:] / packed[0]).float() for name, packed in prototypes.items()},
    }


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
    replies = replies_in(folded.trees["counts"])
    counts_KC = torch.stack([tree["count"] for _, _, tree in replies]).to(torch.int64)
    numbers = torch.tensor([client for client, _, _ in replies])
    needed = covering_clients(counts_KC, share)
    guide = {str(label): numbers[needed[:, label]] for label in range(counts_KC.shape[1])}
    return {"guide": guide, "counts": tuple(float(count) for count in counts_KC.sum(0).tolist())}
