"""Seeded splits of example numbers.

Shapes: N examples.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from umbel.core.rng import generator


def subset(num: int, limit: int, seed: int, purpose: str) -> Tensor:
    """Return `limit` of `num` example numbers, drawn by the seed, in ascending order; all when limit is 0."""
    if limit <= 0 or limit >= num:
        return torch.arange(num)
    return torch.randperm(num, generator=generator(seed, purpose=purpose))[:limit].sort().values


def stratified(groups: Tensor, fraction: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Split example numbers so that each group gives the same fraction.

    Each group gives round(fraction * its size), never its last example.

    Args:
        groups: [N] int64, the group of each example (its class, or its class and domain).
        fraction: Fraction to take, in [0, 1).
        seed: The seed of the data.
        purpose: What the split is for.

    Returns:
        The example numbers that are left and those that were taken, both ascending.
    """
    num = groups.shape[0]
    if num == 0 or fraction == 0:
        return torch.arange(num), torch.arange(0)
    order = torch.randperm(num, generator=generator(seed, purpose=purpose))
    order = order[groups[order].argsort(stable=True)]
    sizes = torch.bincount(groups)
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(num) - starts[groups[order]]
    quota = torch.minimum((sizes * fraction + 0.5).long(), (sizes - 1).clamp_min(0))
    taken = rank < quota[groups[order]]
    return order[~taken].sort().values, order[taken].sort().values


def stratified_concepts(
    concepts: Tensor, labels: Tensor, fraction: float, seed: int, purpose: str
) -> tuple[Tensor, Tensor]:
    """Split example numbers so that a concept is on one side with all its examples.

    Concepts are drawn as `stratified` draws examples; a concept counts for the class of its first example.

    Args:
        concepts: [N] int64.
        labels: [N] int64.
        fraction: Fraction of the concepts to take, in [0, 1).
        seed: The seed of the data.
        purpose: What the split is for.

    Returns:
        The example numbers that are left and those that were taken, both ascending.
    """
    distinct, member = torch.unique(concepts, return_inverse=True)
    first = torch.full((len(distinct),), len(concepts), dtype=torch.int64)
    first.scatter_reduce_(0, member, torch.arange(len(concepts)), "amin")
    _, taken = stratified(labels[first], fraction, seed, purpose)
    held = torch.zeros(len(distinct), dtype=torch.bool)
    held[taken] = True
    return (~held[member]).nonzero().flatten(), held[member].nonzero().flatten()


def hashed(key: str, fraction: float) -> bool:
    """Say whether `key` falls in the fraction that is taken; the same on every machine and for ever.

    Args:
        key: A text, or the name of a file, be it UTF-8 or not.
        fraction: In [0, 1].
    """
    return _number(key) < fraction * 2**64


def share(key: str) -> float:
    """Return where in [0, 1) `key` falls: alike all over, the same on every machine and for ever."""
    return (_number(key) >> 11) / 2**53


def _number(key: str) -> int:
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little")
