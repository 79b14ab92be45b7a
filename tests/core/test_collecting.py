"""Collected replies: the cohort's order, optional keys, and rows that lie about whose they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.core.replies import PAYLOAD, fold_all, partial, reply
from tests.helpers import tree as T
from umbel.core.collecting import Collect, Moments, replies_in
from umbel.core.folds import Partial, WeightedMean, product
from umbel.core.records import BadReplyError, Payload, Reply


def test_collect_keeps_every_reply_in_the_cohorts_order():
    folded = fold_all(product({"delta": Collect("model")}), [reply([9.0, 0.0], 5), reply([1.0, 2.0], 7)])
    rows = replies_in(folded.trees["delta"])
    assert [(client, size, tree["w"].tolist()) for client, size, tree in rows] == [
        (0, 5, [9.0, 0.0]),
        (1, 7, [1.0, 2.0]),
    ]


def test_collect_takes_optional_keys():
    fold = product({"r": Collect(keys=["b"], optional=["a"])})
    replies = [
        Reply({"r": T(b=1.0)}, {}, 2),
        Reply({"r": T(a=[2.0], b=3.0)}, {}, 4),
        Reply({"r": T(b=5.0, a=[6.0])}, {}, 8),
    ]
    for each in replies:
        fold.check(each, PAYLOAD)
    rows = replies_in(fold_all(fold, replies).trees["r"])
    assert [(client, size, {k: t.tolist() for k, t in tree.items()}) for client, size, tree in rows] == [
        (0, 2, {"b": 1.0}),
        (1, 4, {"a": [2.0], "b": 3.0}),
        (2, 8, {"a": [6.0], "b": 5.0}),
    ]
    with pytest.raises(BadReplyError, match=r"r: expected the keys \['b'\], found \[\]"):
        fold.check(Reply({"r": T(a=[1.0])}), PAYLOAD)
    with pytest.raises(BadReplyError, match=r"found \['b', 'c'\]"):
        fold.check(Reply({"r": T(b=1.0, c=1.0)}), PAYLOAD)
    with pytest.raises(BadReplyError, match="'a' holds NaN"):
        fold.check(Reply({"r": T(b=1.0, a=[float("nan")])}), PAYLOAD)


def test_the_order_of_the_clients_does_not_depend_on_who_sent_which_key():
    fold = product({"r": Collect(optional=["a", "b"])})
    rows = replies_in(fold_all(fold, [Reply({"r": T(b=1.0)}), Reply({"r": T(a=2.0)})]).trees["r"])
    assert [client for client, *_ in rows] == [0, 1]
    merged = fold.merge(fold.lift(1, Reply({"r": T(a=2.0)})), fold.lift(2, Reply({"r": T(b=1.0, a=3.0)})))
    first = fold.lift(0, Reply({"r": T(b=1.0)}))
    assert [c for c, *_ in replies_in(fold.finish(fold.merge(merged, first)).trees["r"])] == [0, 1, 2]


def test_collected_replies_of_different_shapes():
    fold = product({"r": Collect()})
    with pytest.raises(BadReplyError, match="'a' in different shapes"):
        fold_all(fold, [Reply({"r": T(a=[1.0])}), Reply({"r": T(a=[1.0, 2.0])})])


# Rows of others -----------------------------------------------------------------------------------------------

COLLECT = product({"delta": Collect("model")}, ["loss"])


@pytest.mark.parametrize(
    "lie",
    [
        {"#client:w": torch.tensor([4, 9])},  # speaks for a client that is not its own
        {"#client:w": torch.tensor([4, 4])},
        {"#client:w": torch.tensor([5, 4])},  # another order, other bits
        {"#client:w": torch.tensor([4])},
        {"#client:w": torch.tensor(4)},
        {"#client:w": torch.tensor([4.0, 5.0])},
        {"#client:w": torch.tensor([[4], [5]])},
        {"#num_examples:w": torch.tensor([3])},
        {"w": torch.tensor(0.0)},
        {"w": torch.zeros(2)},
        {"w": torch.zeros(2, 3)},
        {"w": torch.zeros(3, 2)},
        {"w": torch.zeros(0, 2)},
        {"w": torch.full((2, 2), float("nan"))},
        {"v": torch.zeros(2, 2)},
        {"v": torch.zeros(2, 2), "#client:v": torch.tensor([4, 5]), "#num_examples:v": torch.tensor([1, 1])},
        {"#client:v": torch.tensor([4, 5])},
    ],
    ids=str,
)
def test_lying_rows(lie):
    good = partial(COLLECT)
    COLLECT.check_partial(good, PAYLOAD, [4, 5])
    bad = replace(good, trees={"delta": {**good.trees["delta"], **lie}})
    with pytest.raises(BadReplyError):
        COLLECT.check_partial(bad, PAYLOAD, [4, 5])


def test_rows_that_are_missing():
    good = partial(COLLECT)
    none = {name: tensor[:0] for name, tensor in good.trees["delta"].items()}
    for tree in ({}, none, {name: tensor[:1] for name, tensor in good.trees["delta"].items()}):
        with pytest.raises(BadReplyError):
            COLLECT.check_partial(replace(good, trees={"delta": tree}), PAYLOAD, [4, 5])


def lied(fold, replies, **lie):
    good = partial(fold, replies)
    fold.check_partial(good, PAYLOAD, [4, 5])
    with pytest.raises(BadReplyError) as refused:
        fold.check_partial(replace(good, trees={"r": {**good.trees["r"], **lie}}), PAYLOAD, [4, 5])
    return str(refused.value)


def rows_of(name, tensor, owners):
    sizes = torch.ones(len(owners), dtype=torch.int64)
    return {name: tensor, f"#client:{name}": torch.tensor(owners, dtype=torch.int64), f"#num_examples:{name}": sizes}


class Unit(Collect):
    """Optional vectors of length 1; everybody sends one."""

    def __init__(self):
        super().__init__(optional=["a", "b"])

    def check(self, what, tree, payload):
        super().check(what, tree, payload)
        if not tree or any(vector.shape != (1,) or abs(float(vector)) != 1 for vector in tree.values()):
            raise BadReplyError(f"{what}: no unit")


def test_every_row_is_checked_as_a_reply_is():
    fold, honest = product({"r": Unit()}), [Reply({"r": T(a=[1.0])}), Reply({"r": T(a=[-1.0])})]
    assert "r of client 5: no unit" in lied(fold, honest, a=torch.tensor([[1.0], [3.0]]))
    assert "no unit" in lied(fold, honest, **rows_of("b", torch.tensor([[1.0], [3.0]]), [4, 5]))
    assert "r of client 4: no unit" in lied(fold, honest, **rows_of("a", torch.tensor([[1.0]]), [5]))  # 4 sent nothing
    for strange in (torch.zeros(0, 1), torch.zeros(0, 3, 7)):
        assert "'b' are of other clients" in lied(fold, honest, **rows_of("b", strange, []))
    assert "how many examples" in lied(fold, honest, **{"#num_examples:a": torch.tensor([1, 0])})
    both = rows_of("b", torch.tensor([[1.0]]), [5]) | {"#num_examples:b": torch.tensor([2])}
    assert "how many examples" in lied(fold, honest, **both)


def test_required_keys_are_each_clients():
    fold = product({"r": Collect(keys=["b"], optional=["a"])})
    honest = [Reply({"r": T(b=1.0)}), Reply({"r": T(b=1.0, a=[2.0])})]
    assert "of client 4: expected the keys ['b']" in lied(fold, honest, **rows_of("b", torch.ones(1), [5]))


# What rows and moments may weigh -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "num_examples", "reason"),
    [
        ({4: 3, 5: 3}, 6, ""),
        ({4: 2, 5: 30}, 6, "delta of client 4: at most 2 examples, found 3"),
        ({4: 3, 5: 3}, 5, "the rows are of 6 examples, the partial sum of 5"),
        ({4: 9, 5: 9}, 7, "the rows are of 6 examples, the partial sum of 7"),
    ],
)
def test_rows_are_of_no_more_examples_than_their_clients_have(most, num_examples, reason):
    sent = replace(partial(COLLECT), num_examples=num_examples)
    if reason:
        with pytest.raises(BadReplyError, match=reason):
            COLLECT.check_partial(sent, PAYLOAD, [4, 5], most.__getitem__)
    else:
        COLLECT.check_partial(sent, PAYLOAD, [4, 5], most.__getitem__)


POOLED = product({"delta": Moments(bounds=lambda payload: (3, 2))})


def moments_of(count, mean=(0.5, 1.0), covariance=(1.0, 0.0, 1.0), dtype=torch.float32):
    return torch.tensor([count, *mean, *covariance], dtype=dtype)


@pytest.mark.parametrize(
    ("packed", "most", "reason"),
    [
        (moments_of(4.0), 4, ""),
        (moments_of(5.0), 4, "the counts of its classes come to 5 examples, at most 4 can be"),
        (moments_of(1e12), 4, "come to 1e"),
        (moments_of(4.0, mean=(1e16, 0.0)), 4, "a mean or covariance that cannot be pooled"),
        (moments_of(4.0, covariance=(1e31, 0.0, 1.0)), 4, "a mean or covariance that cannot be pooled"),
        (moments_of(1e17, dtype=torch.float64), float("inf"), "with a count of 1e"),
    ],
    ids=range(6),
)
def test_moments_are_of_no_more_examples_than_their_client_has(packed, most, reason):
    """Alone, and in the sum of a node."""
    reply_ = Reply({"delta": {"1": packed}}, {}, 4)
    lifted = POOLED.lift(4, reply_)
    checks = [
        lambda: POOLED.check(reply_, PAYLOAD, most),
        lambda: POOLED.check_partial(lifted, PAYLOAD, [4], lambda client: most),
    ]
    for check in checks:
        if reason:
            with pytest.raises(BadReplyError, match=reason):
                check()
        else:
            check()


def test_what_is_pooled_is_float64():
    with pytest.raises(BadReplyError, match="pooled moments should be float64"):
        POOLED.check_partial(Partial({"delta": {"1": moments_of(4.0)}}, {}, 4, 1), PAYLOAD, [4])


# How much of them there can be -----------------------------------------------------------------------------------


def test_the_most_that_replies_and_sums_come_to_holds_those_of_honest_nodes():
    for fold, replies in (
        (product({"delta": WeightedMean("model")}, ["loss"]), [reply([1.0, 2.0], 3, loss=0.5)] * 3),
        (product({"delta": Collect("model")}, ["loss"]), [reply([1.0, 2.0], 3, loss=0.5)] * 3),
        (POOLED, [Reply({"delta": {str(c): moments_of(4.0) for c in range(3)}}, {}, 12)] * 3),
    ):
        summed = partial(fold, replies)
        tensors = [tensor for tree in summed.trees.values() for tensor in tree.values()]
        most = fold.most(PAYLOAD, 3)
        assert (most.num_bytes, most.num_tensors) == (summed.num_bytes, len(tensors))
        assert replies[0].num_bytes <= fold.most(PAYLOAD).num_bytes


def test_where_the_payload_leaves_shapes_open_there_is_a_limit_too():
    large = Payload({"model": {"w": torch.empty(1 << 30, device="meta")}})
    for fold in (Collect(), Moments(), Collect("model", optional=["a"])):
        assert fold.most(PAYLOAD, 2).num_bytes == 2 << 28
        assert fold.most(large, 2).num_bytes == 2 * 16 * (4 << 30)
