"""Wrong variants of GGEUR's mathematics are caught: each check holds for ours and fails for the mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from umbel.core.collecting import Moments
from umbel.core.rng import generator
from umbel.strategies.ggeur.completion import completion, sample
from umbel.strategies.ggeur.pooling import (
    ClassStatistics,
    class_statistics,
    covering_clients,
    from_sums,
    from_tree,
    pool_statistics,
    statistics_tree,
    sums_tree,
)
from umbel.strategies.ggeur.shapes import Geometry, geometry, inflate_smallest

D, C = 4, 4


def client(classes: list[int], seed: int, num: int = 30) -> tuple[Tensor, Tensor]:
    """Return features and labels of a client that holds some classes, each with a mean and spread of its own."""
    source = generator(seed)
    labels = torch.tensor(classes).repeat_interleave(torch.arange(num, num + len(classes)))
    features = torch.randn(len(labels), D, generator=source, dtype=torch.float64)
    stretch = 1 + torch.arange(D)[None, :] + labels[:, None]
    return features * stretch + 10 * labels[:, None] + seed, labels


# Nobody holds all classes, and what two clients send first is not of the same class.
CLIENTS = [client([0, 2], 1), client([1, 2, 3], 2), client([3], 3)]


def of_the_pool() -> ClassStatistics:
    """Return numpy's mean and biased covariance of all clients' examples."""
    features = torch.cat([f for f, _ in CLIENTS]).numpy()
    labels = torch.cat([y for _, y in CLIENTS]).numpy()
    rows = [features[labels == c] for c in range(C)]
    return ClassStatistics(
        torch.tensor([float(len(each)) for each in rows], dtype=torch.float64),
        torch.from_numpy(np.stack([each.mean(0) for each in rows])),
        torch.from_numpy(np.stack([np.cov(each.T, bias=True) for each in rows])),
    )


def same(statistics: ClassStatistics, expected: ClassStatistics) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-10, atol=1e-10) for a, b in zip(statistics.parts, expected.parts, strict=True)
    )


# ---- the client's statistics and their pooling ------------------------------------------------------------------


def ours() -> ClassStatistics:
    return pool_statistics(class_statistics(f, y, C) for f, y in CLIENTS)


def through_the_fold() -> ClassStatistics:
    fold, pooled = Moments(), {}
    for k, (f, y) in enumerate(CLIENTS):
        sent = fold.lift(statistics_tree(class_statistics(f, y, C), 1, torch.float64), len(y), k)
        pooled = fold.merge(pooled, sent)
    return from_tree(fold.finish(pooled), C)


def through_sums() -> ClassStatistics:
    return from_sums(sum(sums_tree(class_statistics(f, y, C), 1)["sums"] for f, y in CLIENTS))


@pytest.mark.parametrize("route", [ours, through_the_fold, through_sums])
def test_every_route_gives_the_covariance_of_the_pool(route):
    assert same(route(), of_the_pool())


def unbiased() -> ClassStatistics:
    """Covariances divided by n - 1."""
    parts = []
    for f, y in CLIENTS:
        each = class_statistics(f, y, C)
        divisor = (each.count_C / (each.count_C - 1).clamp_min(1))[:, None, None]
        parts.append(replace(each, covariance_CDD=each.covariance_CDD * divisor))
    return pool_statistics(parts)


def positional() -> ClassStatistics:
    """The first class of one client with the first class of another."""
    trees = [statistics_tree(class_statistics(f, y, C), 1, torch.float64) for f, y in CLIENTS]
    shifted = [{str(place): row for place, row in enumerate(tree.values())} for tree in trees]
    return pool_statistics(from_tree(tree, C) for tree in shifted)


def unweighted() -> ClassStatistics:
    """Every client the same, however many examples it has."""
    parts = [class_statistics(f, y, C) for f, y in CLIENTS]
    pooled = pool_statistics(replace(each, count_C=(each.count_C > 0).double()) for each in parts)
    return replace(pooled, count_C=ours().count_C)


def within_only() -> ClassStatistics:
    """Without the spread between the clients' means."""
    return pool_statistics((class_statistics(f, y, C) for f, y in CLIENTS), within_only=True)


def uncentred() -> ClassStatistics:
    """Second moments in place of covariances."""
    pooled = ours()
    means = pooled.mean_CD[:, :, None] * pooled.mean_CD[:, None, :]
    return replace(pooled, covariance_CDD=pooled.covariance_CDD + means)


@pytest.mark.parametrize("wrong", [unbiased, positional, unweighted, within_only, uncentred])
def test_a_wrong_pool_is_caught(wrong):
    assert not same(wrong(), of_the_pool())


# ---- sampling ---------------------------------------------------------------------------------------------------

Sampler = Callable[[Geometry, Tensor, int, torch.Generator], Tensor]


def skewed() -> ClassStatistics:
    """A covariance that is neither diagonal nor symmetric in its directions."""
    mixing = torch.tensor([[3.0, 0, 0, 0], [2, 1, 0, 0], [0, 1, 0.5, 0], [1, 0, 0, 0.2]], dtype=torch.float64)
    return ClassStatistics(
        torch.ones(1, dtype=torch.float64), torch.zeros(1, D, dtype=torch.float64), (mixing @ mixing.T)[None]
    )


def covers(sampler: Sampler) -> bool:
    """Whether the draws around an anchor have the anchor as mean and the class's covariance."""
    statistics = skewed()
    anchor = torch.tensor([[5.0, -3.0, 1.0, 0.0]], dtype=torch.float64)
    drawn = sampler(geometry(statistics), anchor, 100_000, generator(0))
    expected = statistics.covariance_CDD[0]
    apart = torch.linalg.norm(torch.cov(drawn.T, correction=0) - expected) / torch.linalg.norm(expected)
    return bool(apart < 0.03 and (drawn.mean(0) - anchor[0]).abs().max() < 0.05)


def test_our_draws_have_the_covariance():
    assert covers(lambda shape, anchors, num, source: sample(shape, 0, anchors, num, source))


def drawn_by(step: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Sampler:
    def sampler(shape: Geometry, anchors: Tensor, num: int, source: torch.Generator) -> Tensor:
        noise = torch.randn(num, D, generator=source, dtype=torch.float64)
        return anchors + step(noise, shape.eigenvalues_CR[0], shape.eigenvectors_CDR[0])

    return sampler


WRONG_STEPS = {
    "directions transposed": lambda z, values, vectors: z @ (vectors * values.sqrt()),
    "spread on the left side": lambda z, values, vectors: z @ (values.sqrt()[:, None] * vectors).T,
    "variance in place of deviation": lambda z, values, vectors: z @ (vectors * values).T,
    "no directions": lambda z, values, vectors: z * values.sqrt(),
    "one number for all directions": lambda z, values, vectors: z[:, :1] * (vectors * values.sqrt()).sum(1),
    "smallest directions first": lambda z, values, vectors: z @ (vectors * values.flip(0).sqrt()).T,
}


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_wrong_draws_are_caught(name):
    assert covers(drawn_by(lambda z, values, vectors: z @ (vectors * values.sqrt()).T))
    assert not covers(drawn_by(WRONG_STEPS[name]))


def test_low_rank_that_keeps_the_smallest_would_be_caught():
    statistics = skewed()
    ascending, vectors = torch.linalg.eigh(statistics.covariance_CDD[0])
    low = geometry(statistics, rank=2)
    assert torch.allclose(low.eigenvalues_CR[0], ascending.flip(0)[:2])
    assert not torch.allclose(low.eigenvalues_CR[0], ascending[:2])
    kept = low.eigenvectors_CDR[0] @ torch.diag(low.eigenvalues_CR[0]) @ low.eigenvectors_CDR[0].T
    error = torch.linalg.norm(kept - statistics.covariance_CDD[0])
    assert torch.isclose(error, ascending[:2].square().sum().sqrt())
    wrong = vectors[:, :2] @ torch.diag(ascending[:2]) @ vectors[:, :2].T
    assert torch.linalg.norm(wrong - statistics.covariance_CDD[0]) > 2 * error


def test_draws_of_another_class_would_be_caught():
    statistics = ours()
    shape = geometry(statistics)
    drawn = [sample(shape, c, torch.zeros(1, D, dtype=torch.float64), 50_000, generator(0)) for c in range(C)]
    for label in range(C):
        errors = [float(torch.linalg.norm(torch.cov(d.T) - statistics.covariance_CDD[label])) for d in drawn]
        assert min(range(C), key=errors.__getitem__) == label


# ---- completion and options -------------------------------------------------------------------------------------


def test_completion_draws_what_is_missing_not_the_target():
    shape = geometry(skewed())
    own = torch.randn(7, D, generator=generator(0), dtype=torch.float64)
    for target in (5, 7, 10, 50):
        assert len(completion(shape, 0, own, target, generator(0))) == max(target - 7, 0)


def test_the_authors_scaling_multiplies_the_smallest_variances():
    values = torch.arange(12.0, 0, -1)[None]
    shape = Geometry(values, torch.eye(12)[None], torch.zeros(1, 12), torch.ones(1))
    factors = inflate_smallest(shape).eigenvalues_CR / values
    # linspace(5, 1, 10) from the smallest up: the tenth smallest and the two largest stay as they are.
    expected = torch.cat([torch.ones(2), torch.linspace(1, 5, 10)])
    torch.testing.assert_close(factors[0], expected)
    assert torch.equal(shape.eigenvalues_CR, values)
    few = Geometry(values[:, :3], torch.eye(12)[None, :, :3], torch.zeros(1, 12), torch.ones(1))
    torch.testing.assert_close(inflate_smallest(few).eigenvalues_CR[0], torch.tensor([12.0 * 1, 11 * 3, 10 * 5]))


def test_who_covers_a_class():
    counts = torch.tensor([[10, 0, 5, 1], [70, 0, 5, 0], [20, 0, 0, 0]])
    needed = covering_clients(counts, 0.8)
    # 70 + 20 reach 80 of 100; nobody has class 1; 5 of 10 are not 8; one client has all of class 3.
    assert needed.T.tolist() == [[False, True, True], [False] * 3, [True, True, False], [True, False, False]]
    assert covering_clients(counts, 1.0).tolist() == (counts > 0).tolist()
    assert covering_clients(counts, 0.5).T.tolist()[2] == [True, False, False]  # of two alike the first one
