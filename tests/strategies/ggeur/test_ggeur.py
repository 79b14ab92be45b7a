"""GGEUR's mathematics: closed forms and invariants."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from umbel.core.rng import generator
from umbel.strategies.ggeur import method as ggeur
from umbel.strategies.ggeur.completion import sample
from umbel.strategies.ggeur.pooling import ClassStatistics, class_statistics, pool_statistics
from umbel.strategies.ggeur.shapes import geometry

D, C = 6, 4


def rows(num: int = 200, dtype=torch.float64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    source = generator(seed)
    mixing = torch.randn(D, D, generator=source, dtype=torch.float64)
    labels = torch.randint(0, C - 1, (num,), generator=source)  # the last class is absent
    features = torch.randn(num, D, generator=source, dtype=torch.float64) @ mixing + 5 + labels[:, None]
    return features.to(dtype), labels


def dense(statistics: ClassStatistics) -> tuple[torch.Tensor, ...]:
    return statistics.count_C, statistics.mean_CD, statistics.covariance_CDD


def close(one: ClassStatistics, other: ClassStatistics, tolerance: float) -> bool:
    pairs = zip(dense(one), dense(other), strict=True)
    return all(torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance) for a, b in pairs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_pooled_is_numpys_biased_covariance_of_the_pooled_rows(dtype, tolerance):
    features, labels = rows(dtype=dtype)
    parts = [class_statistics(features[k::5], labels[k::5], C) for k in range(5)]
    pooled = pool_statistics(parts)
    for label in range(C - 1):
        mine = features[labels == label].numpy().astype(np.float64)
        assert pooled.count_C[label] == len(mine)
        np.testing.assert_allclose(pooled.mean_CD[label], mine.mean(0), rtol=tolerance)
        np.testing.assert_allclose(
            pooled.covariance_CDD[label], np.cov(mine.T, bias=True), rtol=tolerance, atol=tolerance
        )
    assert pooled.count_C[C - 1] == 0 and not pooled.covariance_CDD[C - 1].any() and not pooled.mean_CD[C - 1].any()


def test_the_unbiased_form_would_be_caught():
    features, labels = rows(30)
    mine = features[labels == 0].numpy()
    covariance = class_statistics(features, labels, C).covariance_CDD[0].numpy()
    assert not np.allclose(covariance, np.cov(mine.T, bias=False), rtol=1e-3)


def test_one_example_has_no_spread_and_one_client_is_itself():
    statistics = class_statistics(torch.tensor([[1.0, 2.0]]), torch.tensor([1]), 3)
    assert statistics.count_C.tolist() == [0, 1, 0] and statistics.mean_CD[1].tolist() == [1, 2]
    assert not statistics.covariance_CDD.any()
    assert close(pool_statistics([statistics]), statistics, 0)


def test_two_singletons_by_hand():
    one = class_statistics(torch.tensor([[0.0, 0.0]]), torch.tensor([0]), 1)
    three = class_statistics(torch.tensor([[4.0, 8.0]] * 3), torch.tensor([0] * 3), 1)
    pooled = pool_statistics([one, three])
    # mean (3, 6); between: 1/4 (3, 6)(3, 6)' + 3/4 (1, 2)(1, 2)'
    assert pooled.mean_CD.tolist() == [[3, 6]]
    assert pooled.covariance_CDD.tolist() == [[[3, 6], [6, 12]]]
    assert not pool_statistics([one, three], within_only=True).covariance_CDD.any()


def test_order_and_grouping_do_not_matter():
    features, labels = rows()
    parts = [class_statistics(features[k::4], labels[k::4], C) for k in range(4)]
    whole = pool_statistics(parts)
    for order in itertools.permutations(parts):
        assert close(pool_statistics(order), whole, 1e-12)
    merged = pool_statistics([pool_statistics(parts[:2]), pool_statistics(parts[2:])])
    assert close(merged, whole, 1e-12)


def test_trace_is_within_plus_between():
    features, labels = rows()
    parts = [class_statistics(features[k::3] + k, labels[k::3], C) for k in range(3)]
    pooled, within = pool_statistics(parts), pool_statistics(parts, within_only=True)
    for label in range(C - 1):
        between = sum(p.count_C[label] * (p.mean_CD[label] - pooled.mean_CD[label]).square().sum() for p in parts)
        trace = pooled.covariance_CDD[label].trace()
        assert torch.isclose(trace, within.covariance_CDD[label].trace() + between / pooled.count_C[label])
        mean_within = sum(p.count_C[label] * p.covariance_CDD[label] for p in parts) / pooled.count_C[label]
        assert torch.allclose(within.covariance_CDD[label], mean_within)


def test_shift_scale_and_rotation():
    features, labels = rows()
    plain = class_statistics(features, labels, C)
    moved = class_statistics(features + 1000, labels, C)
    assert torch.allclose(moved.covariance_CDD, plain.covariance_CDD, atol=1e-9)
    assert torch.allclose(class_statistics(3 * features, labels, C).covariance_CDD, 9 * plain.covariance_CDD)
    q, _ = torch.linalg.qr(torch.randn(D, D, generator=generator(3), dtype=torch.float64))
    turned = class_statistics(features @ q.T, labels, C)
    assert torch.allclose(turned.covariance_CDD, q @ plain.covariance_CDD @ q.T, atol=1e-10)


def test_geometry_rebuilds_the_covariance_and_low_rank_is_optimal():
    features, labels = rows()
    statistics = class_statistics(features, labels, C)
    full = geometry(statistics)
    assert (full.eigenvalues_CR[:, :-1] >= full.eigenvalues_CR[:, 1:]).all() and (full.eigenvalues_CR >= 0).all()
    for label in range(C):
        values, vectors = full.eigenvalues_CR[label], full.eigenvectors_CDR[label]
        assert torch.allclose(vectors @ torch.diag(values) @ vectors.T, statistics.covariance_CDD[label], atol=1e-10)
        assert torch.allclose(vectors.T @ vectors, torch.eye(D, dtype=torch.float64), atol=1e-10)
    low = geometry(statistics, rank=2)
    assert low.eigenvectors_CDR.shape == (C, D, 2)
    values, vectors = low.eigenvalues_CR[0], low.eigenvectors_CDR[0]
    error = torch.linalg.norm(vectors @ torch.diag(values) @ vectors.T - statistics.covariance_CDD[0])
    assert torch.isclose(error, full.eigenvalues_CR[0, 2:].square().sum().sqrt())
    assert torch.equal(values, full.eigenvalues_CR[0, :2])
    for rank in (0, D + 1):
        with pytest.raises(ValueError, match=r"rank in 1\.\.6"):
            geometry(statistics, rank)


def test_negative_eigenvalues_are_clipped():
    statistics = ClassStatistics(torch.ones(1), torch.zeros(1, 2), torch.diag(torch.tensor([1.0, -1e-9]))[None])
    assert geometry(statistics).eigenvalues_CR.tolist() == [[1, 0]]


@pytest.mark.parametrize("scale", ggeur.SCALES)
def test_samples_have_the_anchor_as_mean_and_the_stated_covariance(scale):
    features, labels = rows()
    features[:, -1] = 7.0  # no variance at all
    statistics = class_statistics(features, labels, C)
    shape = geometry(statistics)
    anchors = torch.tensor([[0.0] * D, [100.0] * D], dtype=torch.float64)
    drawn = sample(shape, 1, anchors, 40_000, generator(5), scale)
    assert drawn.shape == (80_000, D)
    for anchor, mine in zip(anchors, drawn.split(40_000), strict=True):
        values = shape.eigenvalues_CR[1]
        spread = values if scale == "sqrt" else values.square()
        expected = shape.eigenvectors_CDR[1] @ torch.diag(spread) @ shape.eigenvectors_CDR[1].T
        covariance = torch.cov(mine.T, correction=0)
        assert torch.allclose(mine.mean(0), anchor, atol=5 * float(spread.max().sqrt()) / 200)
        assert torch.linalg.norm(covariance - expected) < 0.03 * torch.linalg.norm(expected)
        assert (mine[:, -1] - anchor[-1]).abs().max() < 1e-6  # null space


def test_sampling_is_the_generators_and_keeps_the_dtype():
    features, labels = rows()
    shape = geometry(class_statistics(features, labels, C))
    one = sample(shape, 0, features[:3].float(), 4, generator(1))
    assert one.dtype == torch.float32 and torch.equal(one, sample(shape, 0, features[:3].float(), 4, generator(1)))
    assert not torch.equal(one, sample(shape, 0, features[:3].float(), 4, generator(2)))
    with pytest.raises(ValueError, match="sqrt or eig"):
        sample(shape, 0, features[:1], 1, generator(1), "std")
    nothing = geometry(class_statistics(features[:1], labels[:1], C))
    assert torch.equal(sample(nothing, int(labels[0]), features[:1], 3, generator(1)), features[:1].repeat(3, 1))


def test_bad_input():
    with pytest.raises(ValueError, match=r"features \[N, D\] and labels \[N\]"):
        class_statistics(torch.zeros(3), torch.zeros(3).long(), 2)
    with pytest.raises(ValueError, match=r"labels in 0\.\.1, found 0\.\.2"):
        class_statistics(torch.zeros(3, 2), torch.tensor([0, 1, 2]), 2)
    with pytest.raises(ValueError, match="at least one client"):
        pool_statistics([])
    parts = [class_statistics(torch.zeros(1, width), torch.tensor([0]), 1) for width in (2, 3)]
    with pytest.raises(ValueError, match="Expected covariances of shape"):
        pool_statistics(parts)
