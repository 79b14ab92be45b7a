"""What can be said in numbers about how an experiment cuts its data into clients.

Shapes: K clients, C classes, D domains, N examples, F features, G groups (clients or domains).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from umbel.conf.federation import federation
from umbel.conf.own_data import is_own
from umbel.conf.schema import Experiment
from umbel.core.rng import generator
from umbel.data.federation import Federation
from umbel.data.sets import registry

Counts = NDArray[np.int64]

_MAX_EXAMPLES = 5000
_MAX_CLIENTS = 20
_MAX_FEATURES = 32
_MAX_SIDE = 32  # larger pictures are made smaller before they are compared
# Few examples have no deviation worth the name.
_MIN_EXAMPLES = 2


def build(experiment: Experiment) -> Federation:
    """Load an experiment's data and cut them; texts that no encoder has seen may be cut and looked at as well.

    Raises:
        DataError: The data are missing, or cannot be cut as asked.
    """
    config, seed = experiment.data, experiment.data_seed
    if is_own(experiment):
        return federation(experiment)
    if config.encoder:
        return Federation.build(config, seed)
    return Federation.cut(registry.load(config, seed), config, seed)


def class_counts(federation: Federation) -> Counts:
    """Return the examples of each client and class, [K, C]."""
    return federation.partition.counts(federation.pool.labels, federation.num_classes).numpy()


def domain_counts(federation: Federation) -> Counts | None:
    """Return the examples of each client and domain, [K, D]; None where there are no domains."""
    domains = federation.pool.domains
    if domains is None:
        return None
    return federation.partition.counts(domains, len(federation.domain_names)).numpy()


def title(experiment: Experiment) -> str:
    """Return a heat map's title."""
    data_, keys = experiment.data, {"dirichlet": "alpha", "long_tail": "alpha", "domain_label": "alpha"}
    keys |= {"quantity_skew": "alpha", "pathological": "classes_per_client", "shards": "shards_per_client"}
    key = keys.get(data_.partition)
    value = f" ({key.replace('_', ' ')} {getattr(data_, key):g})" if key else ""
    cut = "each site its own" if is_own(experiment) else f"{data_.partition}{value}"
    return f"{data_.name}: {cut}, {data_.num_clients:,} clients, seed {experiment.data_seed}"


def statistics(counts: Counts) -> dict[str, Any]:
    """Describe a partition.

    Args:
        counts: [K, C] examples.

    Returns:
        Numbers of clients, classes, examples; smallest, median, largest of examples and of classes a client;
        mean and largest Jensen-Shannon divergence of the clients' classes to the whole, in bits; the imbalance
        factor (largest over smallest class that has examples) of the whole, and the mean of the clients'.
    """
    sizes, classes = counts.sum(axis=1), (counts > 0).sum(axis=1)
    shares = counts / np.maximum(sizes, 1)[:, None]
    whole = counts.sum(axis=0) / max(int(counts.sum()), 1)
    middle = (shares + whole) / 2

    def relative(p: Any) -> Any:
        ratio = np.divide(p, middle, out=np.ones_like(middle), where=(p > 0) & (middle > 0))
        return (p * np.log2(ratio)).sum(axis=1)

    divergence = np.maximum((relative(shares) + relative(np.broadcast_to(whole, shares.shape))) / 2, 0.0)

    def spread(values: Any) -> dict[str, float]:
        return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}

    return {
        "num_clients": int(counts.shape[0]),
        "num_classes": int(counts.shape[1]),
        "num_examples": int(counts.sum()),
        "examples_per_client": spread(sizes),
        "classes_per_client": spread(classes),
        "divergence_mean": float(divergence.mean()),
        "divergence_max": float(divergence.max()),
        "imbalance": float(imbalance(counts.sum(axis=0)[None])[0]),
        "imbalance_mean_of_clients": float(imbalance(counts).mean()),
    }


def imbalance(counts: Counts) -> NDArray[np.float64]:
    """Return the largest over the smallest class that has examples, [K]; 1 for a client without any.

    Args:
        counts: [K, C] examples.
    """
    present = np.where(counts > 0, counts, np.iinfo(np.int64).max).min(axis=1)
    return np.where(counts.sum(axis=1) > 0, counts.max(axis=1) / present, 1.0)


@dataclass(frozen=True)
class Distances:
    """How far apart groups of examples lie among the features.

    Attributes:
        names: Of the G groups.
        to_rest: [G], each group to all other examples.
        between: [G, G], symmetric, each group to each other; zeros on the diagonal.
        by_chance: Mean of `to_rest` after the examples were dealt to the groups at random, sizes kept: what
            small groups come to by their size alone.
    """

    names: tuple[str, ...]
    to_rest: NDArray[np.float64]
    between: NDArray[np.float64]
    by_chance: float

    def plain(self) -> dict[str, Any]:
        """Return nested dicts fit for JSON."""
        return {
            "names": list(self.names),
            "mean": float(self.to_rest.mean()),
            "max": float(self.to_rest.max()),
            "by_chance": self.by_chance,
            "to_rest": self.to_rest.tolist(),
            "between": self.between.tolist(),
        }


def distances(federation: Federation) -> dict[str, Distances]:
    """Compare the features of clients, and of domains where there are some.

    The distance is Fréchet's, squared, between Gaussians with diagonal covariances, over the total variance of the
    features: |m_1 - m_2|^2 + |s_1 - s_2|^2, divided by the sum of all features' variances. So it has no unit, and
    4 is two tight groups at the two ends. Features are the set's embeddings, or its pixels, either in the
    coordinates of at most 32 principal components, of at most 5,000 examples of the clients, drawn by the data's
    seed. Of more than 20 clients, 20 evenly spaced ones are compared.

    Returns:
        Under `clients` and `domains` what could be compared; nothing for texts without an encoder, and a kind of
        group is left out when fewer than two groups have two examples among those drawn.
    """
    if not federation.pool.images.shape[1]:
        return {}
    random = generator(int(federation.meta["seed"]), purpose="distances")
    partition = federation.partition
    shown = torch.tensor(spaced(partition.num_clients, _MAX_CLIENTS))
    # Half of the sample is for the clients that are compared, an equal part for each, half for all.
    each = max(1, _MAX_EXAMPLES // 2 // len(shown))
    chosen = [_some(partition.client(int(client)), each, random) for client in shown]
    chosen.append(_some(partition.indices, _MAX_EXAMPLES - sum(map(len, chosen)), random))
    sample = torch.unique(torch.cat(chosen))
    if len(sample) <= _MIN_EXAMPLES:
        return {}
    features = principal(federation.pool.images[sample], random)
    owner = torch.full((len(federation.pool),), -1, dtype=torch.int64)
    owner[partition.indices] = partition.owners()
    group = torch.full((partition.num_clients + 1,), -1, dtype=torch.int64)
    group[shown] = torch.arange(len(shown))  # the last place is nobody's
    by_kind = {
        "clients": compare(features, group[owner[sample]], [f"client {int(client)}" for client in shown], random)
    }
    if federation.pool.domains is not None:
        by_kind["domains"] = compare(features, federation.pool.domains[sample], federation.domain_names, random)
    return {kind: one for kind, one in by_kind.items() if one is not None}


def principal(images: Tensor, random: torch.Generator) -> Tensor:
    """Return images or embeddings in the coordinates of their principal components, [N, F] float64, F at most 32.

    Args:
        images: [N, C, H, W], uint8 or floating point, or [N, D]; N at least 2.
        random: For the randomised range finder.
    """
    if images.ndim == 4 and images.shape[-1] > _MAX_SIDE:
        images = F.interpolate(images.to(torch.float32), size=(_MAX_SIDE, _MAX_SIDE), mode="area")
    flat = images.flatten(1).to(torch.float32)
    flat = flat - flat.mean(0)
    count = min(_MAX_FEATURES, *flat.shape)
    # Halko, Martinsson, Tropp (2011), algorithm 5.1 with two power iterations; torch's own draws from its global
    # generator.
    wide = min(count + 8, *flat.shape)
    basis = torch.linalg.qr(flat @ torch.randn(flat.shape[1], wide, generator=random)).Q
    for _ in range(2):
        basis = torch.linalg.qr(flat @ torch.linalg.qr(flat.mT @ basis).Q).Q
    _, _, directions = torch.linalg.svd(basis.mT @ flat, full_matrices=False)
    projected: Tensor = flat @ directions[:count].mT
    return projected.double()


def compare(features: Tensor, groups: Tensor, names: Sequence[str], random: torch.Generator) -> Distances | None:
    """Compare groups of examples; see `distances`.

    Args:
        features: [N, F] float64.
        groups: [N] int64, the group of each example; -1 belongs to the rest only.
        names: Of the groups.
        random: For the comparison with chance.

    Returns:
        None when fewer than two groups have two examples each; smaller groups are left out.
    """
    sizes = torch.bincount(groups[groups >= 0], minlength=len(names))
    kept = (sizes >= _MIN_EXAMPLES).nonzero().flatten()
    enough = len(features) - sizes[kept] >= _MIN_EXAMPLES
    kept = kept[enough]
    scale = float(features.var(dim=0, correction=0).sum())
    if len(kept) < 2 or scale <= 0:
        return None
    to_rest, mean, deviation = _to_rest(features, groups, kept, len(names))
    between = (mean[:, None] - mean).square().sum(2) + (deviation[:, None] - deviation).square().sum(2)
    dealt, _, _ = _to_rest(features, groups[torch.randperm(len(groups), generator=random)], kept, len(names))
    return Distances(
        tuple(names[int(group)] for group in kept),
        (to_rest / scale).numpy(),
        (between / scale).numpy(),
        float((dealt / scale).mean()),
    )


def _to_rest(features: Tensor, groups: Tensor, kept: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return squared distances to the rest [G], and mean and deviation of each kept group, both [G, F]."""
    inside = groups >= 0
    sums = torch.zeros(num_groups, 1 + 2 * features.shape[1], dtype=torch.float64)
    rows = torch.cat([torch.ones(len(features), 1, dtype=torch.float64), features, features.square()], dim=1)
    sums.index_add_(0, groups[inside], rows[inside])
    own = sums[kept]
    mean, deviation = _moments(own)
    rest_mean, rest_deviation = _moments(rows.sum(0) - own)
    distance = (mean - rest_mean).square().sum(1) + (deviation - rest_deviation).square().sum(1)
    return distance, mean, deviation


def _moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and deviations of rows of (count, sums, sums of squares), each [G, F]."""
    first, second = (sums[:, 1:] / sums[:, :1]).chunk(2, dim=1)
    return first, (second - first.square()).clamp_min(0).sqrt()


def spaced(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers 0..count-1, evenly spaced, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]


def _some(numbers: Tensor, most: int, random: torch.Generator) -> Tensor:
    return numbers[torch.randperm(len(numbers), generator=random)[:most]] if len(numbers) > most else numbers
