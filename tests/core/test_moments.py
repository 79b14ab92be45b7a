"""Moments of classes: those of the pooled rows, whatever the grouping, and what cannot be moments."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.core.replies import PAYLOAD, fold_all, moments_reply
from umbel.core import moments
from umbel.core.collecting import Moments
from umbel.core.folds import product
from umbel.core.records import BadReplyError


def rows_of_clients():
    """Four clients: unequal classes, one of them with a single example, a large mean."""
    random = torch.Generator().manual_seed(2)

    def rows(n):
        return 1000 + torch.randn(n, 3, generator=random, dtype=torch.float64)

    return [{0: rows(5), 2: rows(1)}, {2: rows(7)}, {7: rows(2), 0: rows(3)}, {2: rows(1)}]


def pooled(clients):
    return {c: torch.cat([each[c] for each in clients if c in each]) for c in (0, 2, 7)}


def test_moments_are_those_of_the_pooled_rows():
    clients = rows_of_clients()
    merged = fold_all(product({"delta": Moments()}), [moments_reply(each) for each in clients]).trees["delta"]
    assert list(merged) == ["0", "2", "7"]
    for c, rows in pooled(clients).items():
        count, mean, covariance = moments.unpack(merged[str(c)])
        assert count == len(rows)
        np.testing.assert_allclose(mean, rows.numpy().mean(0), rtol=0, atol=1e-10)
        np.testing.assert_allclose(covariance, np.cov(rows.numpy().T, bias=True), rtol=0, atol=1e-9)


def test_moments_do_not_depend_on_the_grouping():
    clients = [moments_reply(each) for each in rows_of_clients()]
    fold = product({"delta": Moments()})
    whole = fold_all(fold, [moments_reply(pooled(rows_of_clients()))]).trees["delta"]
    for order in itertools.permutations(range(4)):
        a, b, c, d = (fold.lift(client, clients[client]) for client in order)
        merged = fold.finish(fold.merge(fold.merge(a, b), fold.merge(c, d))).trees["delta"]
        assert list(merged) == list(whole)
        for name in whole:
            assert torch.allclose(merged[name], whole[name], rtol=0, atol=1e-9), name


def test_moments_by_hand():
    first = moments_reply({5: torch.full((1, 1), 8.0).double(), 0: torch.zeros(2, 1).double()})
    other = moments_reply({5: torch.full((1, 1), 4.0).double()})
    merged = fold_all(product({"delta": Moments()}), [first, other]).trees["delta"]
    assert list(merged) == ["0", "5"]
    assert merged["0"].tolist() == [2, 0, 0] and merged["5"].tolist() == [2, 6, 4]  # (2^2 + 2^2) / 2
    within = fold_all(product({"delta": Moments(within_only=True)}), [first, other]).trees["delta"]
    assert within["5"].tolist() == [2, 6, 0]


def test_packing():
    covariance = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]])
    packed = moments.pack(torch.tensor(9.0), torch.tensor([7.0, 8.0, 9.0]), covariance)
    assert packed.tolist() == [9, 7, 8, 9, 1, 2, 3, 4, 5, 6] and len(packed) == moments.packed_size(3)
    assert torch.equal(moments.unpack(packed)[2], covariance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1": torch.ones(4)}, "numbers, found shape"),
        ({"1": torch.ones(2, 6)}, "expected packed moments"),
        ({"1": torch.tensor(1.0)}, "expected packed moments"),
        ({"1": torch.ones(6).long()}, "expected packed moments"),
        ({"one": torch.ones(6)}, "expected packed moments"),
        ({"1": torch.tensor([0.0, 1, 1, 1, 1, 1])}, "not at least 1"),
        ({"2": torch.tensor([-1.0, 1, 1, 1, 1, 1])}, "not at least 1"),
        ({"2": torch.tensor([1.0, 1, 1, 1, torch.nan, 1])}, "NaN"),
    ],
)
def test_moments_that_cannot_be(change, message):
    good = moments_reply({1: torch.randn(3, 2), 2: torch.randn(2, 2)})
    fold = product({"delta": Moments()})
    fold.check(good, PAYLOAD)
    with pytest.raises(BadReplyError, match=message):
        fold.check(replace(good, trees={"delta": {**good.trees["delta"], **change}}), PAYLOAD)


def test_moments_of_different_width():
    fold = product({"delta": Moments()})
    narrow, wide = (fold.lift(0, moments_reply({1: torch.randn(3, width)})) for width in (2, 3))
    with pytest.raises(BadReplyError, match="class 1 that do not go together"):
        fold.merge(narrow, wide)
