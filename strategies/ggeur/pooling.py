"""Counts, means and covariances of each class: taken by clients, pooled exactly, as moments or as plain sums.

On the server, replies are pooled as they come by the fold `umbel.core.collecting.Moments` (or `Sum`); `pool_statistics`
pools statistics that are all at hand. Both merge by `umbel.core.moments.merge`.

Legend: N examples, D features, C classes, Z = 1 + D + D (D + 1) / 2 packed numbers, K clients.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from umbel.core import moments
from umbel.core.folds import WEIGHT, Sum
from umbel.core.records import BadReplyError, Payload
from umbel.core.tree import Tree


@dataclass(frozen=True)
class ClassStatistics:
    """Counts, means and covariances of each class.

    Attributes:
        count_C: [C], examples of each class; 0 for one that is absent.
        mean_CD: [C, D], 0 for an absent class.
        covariance_CDD: [C, D, D], biased: divided by the count, not by one less.
    """

    count_C: Tensor
    mean_CD: Tensor
    covariance_CDD: Tensor

    @property
    def parts(self) -> moments.ClassMoments:
        """The three as a tuple."""
        return self.count_C, self.mean_CD, self.covariance_CDD


def class_statistics(features_ND: Tensor, labels_N: Tensor, num_classes: int) -> ClassStatistics:
    """Return the statistics of each class, in float64.

    Args:
        features_ND: [N, D], floating point.
        labels_N: [N] int64 in 0..C-1.
        num_classes: C.

    Raises:
        ValueError: Shapes or labels do not fit.
    """
    if features_ND.ndim != 2 or labels_N.shape != features_ND.shape[:1]:
        raise ValueError(
            f"Expected features [N, D] and labels [N], found {list(features_ND.shape)} and {list(labels_N.shape)}."
        )
    if len(labels_N) and not 0 <= int(labels_N.min()) <= int(labels_N.max()) < num_classes:
        raise ValueError(
            f"Expected labels in 0..{num_classes - 1}, found {int(labels_N.min())}..{int(labels_N.max())}."
        )
    width, device = features_ND.shape[1], features_ND.device
    count = torch.bincount(labels_N, minlength=num_classes).to(torch.float64)
    mean = torch.zeros(num_classes, width, dtype=torch.float64, device=device)
    covariance = torch.zeros(num_classes, width, width, dtype=torch.float64, device=device)
    for label in count.nonzero().flatten().tolist():
        rows = features_ND[labels_N == label].to(torch.float64)
        mean[label] = rows.mean(0)
        rows = rows - mean[label]
        covariance[label] = rows.T @ rows / len(rows)
    return ClassStatistics(count, mean, covariance)


def pool_statistics(statistics: Iterable[ClassStatistics], within_only: bool = False) -> ClassStatistics:
    """Return the statistics of all examples together, exactly, in float64.

    Merged one by one after Chan, Golub and LeVeque (1983), so that any number of clients is pooled in the memory
    of two, in any grouping.

    Args:
        statistics: Of each client, or of groups of them; at least one.
        within_only: Leave out how far the clients' means are apart, so that only the mean covariance inside a
            client remains; such results do not pool again into `within_only=False` ones.

    Raises:
        ValueError: There is nothing to pool, or shapes differ.
    """
    pooled: ClassStatistics | None = None
    for each in statistics:
        if pooled is None:
            pooled = ClassStatistics(*(part.to(torch.float64).clone() for part in each.parts))
        else:
            pooled = ClassStatistics(*moments.merge(pooled.parts, each.parts, within_only))
    if pooled is None:
        raise ValueError("Expected the statistics of at least one client, found none.")
    return pooled


def statistics_tree(
    statistics: ClassStatistics, min_count: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Return packed moments [Z] of each class of which there are enough examples, by the class's number."""
    packed = moments.pack(*statistics.parts).to(dtype)
    held = (statistics.count_C >= max(min_count, 1)).nonzero().flatten().tolist()
    return {str(label): packed[label] for label in held}


def from_tree(tree: Tree, num_classes: int) -> ClassStatistics:
    """Return the statistics of all classes out of packed moments by class; those that are not there are zero.

    Raises:
        BadReplyError: There are none, or of a class that does not exist.
    """
    if any(int(label) >= num_classes for label in tree):
        raise BadReplyError(f"a client sent statistics of class {max(map(int, tree))}; there are {num_classes}")
    if not tree:
        raise BadReplyError("no client holds strategy.min_count examples of any class")
    packed = torch.zeros(num_classes, len(next(iter(tree.values()))), dtype=torch.float64)
    for label, row in tree.items():
        packed[int(label)] = row
    return ClassStatistics(*moments.unpack(packed))


def sums_tree(statistics: ClassStatistics, min_count: int) -> dict[str, Tensor]:
    """Return (n, sum f, sum f f') of each class, packed, in float64: plain sums over clients pool them."""
    count, mean, covariance = statistics.parts
    count = torch.where(count >= min_count, count, torch.zeros_like(count))
    second = covariance + mean[:, :, None] * mean[:, None, :]
    return {"sums": moments.pack(count, count[:, None] * mean, count[:, None, None] * second)}


def from_sums(packed_CZ: Tensor, least: float = 0.0) -> ClassStatistics:
    """Return the pooled statistics out of sums over all clients.

    Args:
        packed_CZ: [C, Z], from `sums_tree`.
        least: A count up to this is taken for an absent class, for sums that hold noise.
    """
    count, total, second = moments.unpack(packed_CZ.to(torch.float64))
    present = count > least
    divisor = torch.where(present, count, torch.ones_like(count))
    mean = torch.where(present[:, None], total / divisor[:, None], 0.0)
    covariance = second / divisor[:, None, None] - mean[:, :, None] * mean[:, None, :]
    return ClassStatistics(torch.where(present, count, 0.0), mean, torch.where(present[:, None, None], covariance, 0.0))


def domain_means(features_ND: Tensor, labels_N: Tensor, domains_N: Tensor | None, min_count: int) -> dict[str, Tensor]:
    """Return for each domain and class that occur `<domain>/<class>`: count and sum of features, [1 + D] float32."""
    domains = torch.zeros_like(labels_N) if domains_N is None else domains_N
    prototypes = {}
    for domain, label in torch.unique(torch.stack([domains, labels_N]), dim=1).T.tolist():
        rows = features_ND[((domains == domain) & (labels_N == label)).to(features_ND.device)]
        if len(rows) >= min_count:
            count = torch.tensor([float(len(rows))], dtype=torch.float32)
            prototypes[f"{domain}/{label}"] = torch.cat([count, rows.float().sum(0).cpu()])
    return prototypes


def covering_clients(counts_KC: Tensor, share: float) -> Tensor:
    """Return who is needed to cover a share of each class, the clients with the most examples first.

    Args:
        counts_KC: [K, C], examples of each class that each client has.
        share: Of the examples of a class, in (0, 1].

    Returns:
        [K, C] bool. Of clients with as many examples the first one goes first; nobody is needed for an absent class.
    """
    order = torch.argsort(counts_KC, dim=0, descending=True, stable=True)
    ordered = counts_KC.gather(0, order).to(torch.float64)
    before = ordered.cumsum(0) - ordered
    needed = (before < share * ordered.sum(0)) & (ordered > 0)
    return torch.zeros_like(counts_KC, dtype=torch.bool).scatter(0, order, needed)


def sizes(payload: Payload) -> tuple[int, int]:
    """Return the numbers of classes C and of features D that the server asks for."""
    return int(payload.numbers["classes"]), int(payload.numbers["features"])


def counts_like(payload: Payload) -> dict[str, Tensor]:
    """Return a client's counts of each class, without content."""
    return {"count": torch.empty(sizes(payload)[0], device="meta")}


def sums_like(payload: Payload) -> dict[str, Tensor]:
    """Return what `sums_tree` returns, without content."""
    num_classes, width = sizes(payload)
    return {"sums": torch.empty(num_classes, moments.packed_size(width), device="meta")}


_PROTOTYPE = re.compile(r"(0|[1-9][0-9]{0,3})/(0|[1-9][0-9]*)")  # so that every name is a number's only one


_LARGEST_SUM = 1e30  # over any number of clients, and divided by a count, it is still float32
_ROUNDED = 1 + 1e-6  # counts travel as float32


class Prototypes(Sum):
    """Counts and sums of features by domain (0 to 9999) and class; a client sends those that it has."""

    def check(self, what: str, tree: Tree, payload: Payload) -> None:
        super().check(what, tree, payload)
        num_classes, width = sizes(payload)
        for name, row in tree.items():
            named = _PROTOTYPE.fullmatch(name)
            if named is None or int(named[2]) >= num_classes or row.shape != (1 + width,) or not float(row[0]) >= 1:
                raise BadReplyError(
                    f"{what}: expected <domain>/<class> with a count and {width} sums, found {name!r} of shape "
                    f"{list(row.shape)}"
                )
            if float(row.abs().max()) > _LARGEST_SUM:
                raise BadReplyError(f"{what}: {name!r} holds sums above {_LARGEST_SUM:g}, which cannot be combined")

    def check_examples(self, what: str, tree: Tree, most: float) -> None:
        count = sum(float(row[0]) for row in tree.values())
        if count > most * _ROUNDED:
            raise BadReplyError(f"{what}: they are of {count:g} examples, at most {most:g} can be")

    def check_weights(self, what: str, accumulator: Tree, num_examples: int, most: Mapping[int, float]) -> None:
        super().check_weights(what, accumulator, num_examples, most)
        self.check_examples(
            what, {name: row for name, row in accumulator.items() if name != WEIGHT}, sum(most.values())
        )

    def check_accumulator(self, what: str, accumulator: Tree, payload: Payload, clients: Sequence[int]) -> None:
        super().check_accumulator(what, accumulator, payload, clients)
        self.check(what, {name: row for name, row in accumulator.items() if name != WEIGHT}, payload)

    def merge(self, left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, tensor in right.items():
            if name in left and left[name].shape != tensor.shape:
                raise BadReplyError(f"two clients sent prototypes {name} of different size")
            left[name] = left[name] + tensor if name in left else tensor
        return left
