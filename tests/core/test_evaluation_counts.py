"""Counts of an evaluation, as clients send them: what cannot be summarised, and what lies."""

from __future__ import annotations

import pytest
import torch

from tests.core.replies import PAYLOAD, partial
from tests.helpers import tree as T
from umbel.core.evaluation import evaluation_fold
from umbel.core.records import BadReplyError, Reply


@pytest.mark.parametrize(
    "tree",
    [
        T(**{"test/model": [[1.0], [2.0]]}),  # no loss
        T(**{"test/model/loss": 1.0}),
        T(**{"test/model": [1.0, 2.0], "test/model/loss": 1.0}),
        T(**{"test/model": [[1.0], [2.0], [3.0]], "test/model/loss": 1.0}),
        T(**{"test/model": [[1.0], [2.0]], "test/model/loss": [1.0]}),
        T(**{"model": [[1.0], [2.0]], "model/loss": 1.0}),
    ],
    ids=str,
)
def test_evaluation_that_cannot_be_summarised(tree):
    good = Reply({"counts": T(**{"test/model": [[1.0], [2.0]], "test/model/loss": 1.0})})
    fold = evaluation_fold(1)
    fold.check(good, PAYLOAD)
    with pytest.raises(BadReplyError, match="counts"):
        fold.check(Reply({"counts": tree}), PAYLOAD)


def counts_of(name, right, asked, loss=1.0):
    return T(**{name: [right, asked], f"{name}/loss": loss})


ROUND = [[3.0, 6, 6, 2, 3, 3], [6.0, 6, 6, 3, 3, 3]]  # of retrieval: six images, three texts


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (counts_of("test/model", [1.0] * 5, [2.0] * 5), "C=4"),
        (counts_of("test/model", *ROUND), "C=4"),
        (counts_of("test/retrieval", [1.0] * 5, [2.0] * 5), "6 of retrieval"),
        (counts_of("test/retrieval", [1.0] * 4, [2.0] * 4), "6 of retrieval"),
        (counts_of("train/model", [1.0] * 4, [2.0] * 4), "<split>/<predictor>"),
        (counts_of("test/", [1.0] * 4, [2.0] * 4), "<split>/<predictor>"),
        (counts_of("test/\x1b[2J", [1.0] * 4, [2.0] * 4), "<split>/<predictor>"),
        (counts_of("test/model\u202e", [1.0] * 4, [2.0] * 4), "<split>/<predictor>"),
        (counts_of("test/" + "x" * 65, [1.0] * 4, [2.0] * 4), "<split>/<predictor>"),
        (counts_of("test/model", [0.0] * 4, [1e17] * 4), "at most as many right"),
        (counts_of("test/model", [3.0, 0, 0, 0], [2.0] * 4), "at most as many right"),
        (counts_of("test/model", [-1.0, 0, 0, 0], [2.0] * 4), "at most as many right"),
        (counts_of("test/model", [0.0] * 4, [0.0] * 4), "some examples"),
        (counts_of("test/model", [0.0] * 4, [1e308] * 4), "cannot be combined"),
        (counts_of("test/model", [0.0] * 4, [float("inf")] * 4), "NaN or infinity"),
        (counts_of("test/model", [0.0] * 4, [2.0] * 4, -1.0), "loss"),
        (counts_of("test/model", [0.0] * 4, [2.0] * 4, 1e308), "loss"),
        (counts_of("test/retrieval", [0.0] * 6, [0.0] * 6), "some examples"),
        (counts_of("test/retrieval", [0.0] * 6, [2.0, 2, 3, 2, 2, 2]), "same queries"),
        (counts_of("test/retrieval", [0.0] * 6, [2.0, 2, 2, 3, 3, 3]), "same queries"),
        ({name: each.float() for name, each in counts_of("test/model", [0.0] * 4, [2.0] * 4).items()}, "float64"),
        ({name: each.to(torch.complex128) for name, each in counts_of("test/model", [0.0] * 4, [2.0] * 4).items()},
         "float64"),
    ],
    ids=str,
)  # fmt: skip
def test_evaluation_that_lies(tree, message):
    fold = evaluation_fold(4)
    good = counts_of("test/model", [1.0] * 4, [2.0, 1, 1, 1]) | counts_of("validation/retrieval", *ROUND, 0.0)
    fold.check(Reply({"counts": good}), PAYLOAD)
    fold.check(Reply({"counts": {}}), PAYLOAD)  # somebody without examples
    with pytest.raises(BadReplyError, match=message):
        fold.check(Reply({"counts": tree}), PAYLOAD)
    fold.check_partial(partial(fold, [Reply({"counts": good}), Reply({"counts": {}})]), PAYLOAD, [4, 5])
    with pytest.raises(BadReplyError):
        fold.check_partial(fold.lift(5, Reply({"counts": tree})), PAYLOAD, [5])


def test_only_so_many_predictors_are_read():
    fold, many = evaluation_fold(1), {}
    for number in range(64):
        many |= counts_of(f"test/head {number}", [1.0], [2.0]) | counts_of(f"validation/head {number}", [1.0], [2.0])
    fold.check(Reply({"counts": many}), PAYLOAD)
    with pytest.raises(BadReplyError, match="129 counts, of which at most 128 are read"):
        fold.check(Reply({"counts": many | counts_of("test/model", [1.0], [2.0])}), PAYLOAD)


@pytest.mark.parametrize(
    ("tree", "count"),
    [(counts_of("test/model", [1.0] * 4, [2.0, 1, 1, 1]), 5), (counts_of("validation/retrieval", *ROUND, 0.0), 6)],
    ids=["classes", "pairs"],
)
def test_a_client_is_evaluated_on_no_more_than_it_has(tree, count):
    fold, reply = evaluation_fold(4), Reply({"counts": tree})
    fold.check(reply, PAYLOAD, count)
    both = partial(fold, [reply, reply])
    fold.check_partial(both, PAYLOAD, [4, 5], {4: count, 5: count}.__getitem__)
    with pytest.raises(BadReplyError, match=f"counts {count} examples, at most {count - 1} can be"):
        fold.check(reply, PAYLOAD, count - 1)
    with pytest.raises(BadReplyError, match=f"client 5: .* counts {count} examples, at most {count - 1} can be"):
        fold.check_partial(both, PAYLOAD, [4, 5], {4: count, 5: count - 1}.__getitem__)
