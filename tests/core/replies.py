"""Replies and partial sums by hand, for the tests of folds."""

from __future__ import annotations

import torch

from tests.helpers import tree as T
from umbel.core import moments
from umbel.core.folds import WeightedMean, product
from umbel.core.records import Payload, Reply

PAYLOAD = Payload({"model": T(w=[0.0, 0.0])})


def reply(values, num_examples=1, **numbers):
    return Reply({"delta": T(w=values)}, numbers, num_examples)


def fold_all(fold, replies):
    accumulator = fold.zero()
    for client, each in enumerate(replies):
        fold.check(each, PAYLOAD)
        accumulator = fold.add(accumulator, client, each)
    return fold.finish(accumulator)


def moments_reply(rows_by_class):
    """The moments of rows [n, D] by class."""
    packed = {}
    for c, rows in rows_by_class.items():
        centred = rows - rows.mean(0)
        count = torch.tensor(float(len(rows)), dtype=rows.dtype)
        packed[str(c)] = moments.pack(count, rows.mean(0), centred.T @ centred / len(rows))
    return Reply({"delta": packed}, {}, sum(map(len, rows_by_class.values())))


FOLD = product({"delta": WeightedMean("model")}, ["loss"])
GOOD = reply([1.0, 2.0], 3, loss=0.5)


def partial(fold=FOLD, replies=(GOOD, GOOD)):
    """The partial sum of clients 4, 5, ..."""
    accumulator = fold.zero()
    for client, each in enumerate(replies):
        accumulator = fold.add(accumulator, client + 4, each)
    return accumulator
