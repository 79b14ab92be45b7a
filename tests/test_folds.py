"""Folds: closed forms, the laws of a commutative monoid, and what they refuse."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.evaluation import EVALUATION_FOLD
from core.folds import Partial, Sum, UniformMean, WeightedMean, product
from core.gathered import Collect, Moments, collected
from core.records import BadReplyError, Payload, Reply
from tests.helpers import tree as T

PAYLOAD = Payload({"model": T(w=[0.0, 0.0])})


def reply(values, num_examples=1, **numbers):
    return Reply({"delta": T(w=values)}, numbers, num_examples)


def fold_all(fold, replies):
    accumulator = fold.zero()
    for client, each in enumerate(replies):
        fold.check(each, PAYLOAD)
        accumulator = fold.add(accumulator, client, each)
    return fold.finish(accumulator)


# Closed forms -------------------------------------------------------------------------------------------------

REPLIES = [reply([1.0, 2.0], 1, loss=8.0), reply([5.0, 6.0], 3, loss=4.0)]


@pytest.mark.parametrize(
    ("fold", "expected"),
    [
        (WeightedMean("model"), [4.0, 5.0]),  # (1 + 3 * 5) / 4, (2 + 3 * 6) / 4
        (UniformMean("model"), [3.0, 4.0]),
        (Sum("model"), [6.0, 8.0]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_linear_folds(fold, expected):
    found = fold_all(product({"delta": fold}, ["loss"]), REPLIES)
    assert found.trees["delta"]["w"].tolist() == expected
    assert found.trees["delta"]["w"].dtype == torch.float64
    assert found.numbers == {"loss": 5.0}  # (8 + 3 * 4) / 4: numbers are always by examples
    assert (found.num_examples, found.num_replies) == (4, 2)
    assert REPLIES[0].trees["delta"]["w"].tolist() == [1.0, 2.0]  # what was given is as it was


def test_accumulators_are_float64():
    # In float32 2^24 + 1 is 2^24: 2 + 2^-23 * ... a mean of 2^24, 1 and 1 would lose both ones.
    trees = [{"w": torch.tensor([value])} for value in (2.0**24, 1.0, 1.0)]
    fold = product({"t": Sum()})
    found = fold_all(fold, [Reply({"t": tree}) for tree in trees])
    assert found.trees["t"]["w"].item() == 2**24 + 2


def test_products_combine_each_tree_in_its_own_way():
    fold = product({"a": WeightedMean(), "b": UniformMean(), "c": Sum()})
    replies = [Reply({"a": T(x=v), "b": T(y=v), "c": T(z=v)}, {}, n) for v, n in ((2.0, 1), (6.0, 3))]
    found = fold_all(fold, replies).trees
    assert (found["a"]["x"].item(), found["b"]["y"].item(), found["c"]["z"].item()) == (5.0, 4.0, 8.0)


# The laws -----------------------------------------------------------------------------------------------------


def moments_reply(rows_by_class):
    """The moments of rows [n, D] by class."""
    ids = sorted(rows_by_class)
    groups = [rows_by_class[c] for c in ids]
    means = [rows.mean(0) for rows in groups]
    centred = [rows - mean for rows, mean in zip(groups, means, strict=True)]
    statistics = {
        "class_ids": torch.tensor(ids),
        "count": torch.tensor([float(len(rows)) for rows in groups], dtype=torch.float64),
        "mean": torch.stack(means),
        "scatter": torch.stack([rows.T @ rows for rows in centred]),
    }
    return Reply({"delta": statistics}, {}, sum(map(len, groups)))


def dyadic_moments():
    # Counts are powers of two at every level of ((a b) (c d)), so that no division rounds.
    random = torch.Generator().manual_seed(1)
    for _ in range(4):
        rows = torch.randint(-8, 8, (4, 2), generator=random).double()
        yield moments_reply({3: rows[:2], 1: rows[2:]})


def dyadic_trees():
    random = torch.Generator().manual_seed(0)
    for n in (1, 2, 4, 5):
        yield Reply({"delta": {"w": torch.randint(-999, 999, (3,), generator=random).double() / 64}}, {}, n)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("kind", [WeightedMean, UniformMean, Sum, Collect, Moments])
def test_a_fold_is_a_monoid(kind):
    replies = list(dyadic_moments() if kind is Moments else dyadic_trees())
    fold = product({"delta": kind()})

    def lifted(*clients):
        return [fold.lift(client, replies[client]) for client in clients]

    def result(accumulator):
        return fold.finish(accumulator).trees["delta"]

    a, b, c, d = lifted(0, 1, 2, 3)
    left = result(fold.merge(fold.merge(fold.merge(a, b), c), d))
    a, b, c, d = lifted(0, 1, 2, 3)
    balanced = result(fold.merge(fold.merge(a, b), fold.merge(c, d)))
    if kind is Moments:  # thirds appear in the left-leaning order
        assert all(torch.allclose(left[name], balanced[name], rtol=0, atol=1e-12) for name in left)
    else:
        assert same(left, balanced)
    (a,), (b,) = lifted(0), lifted(0)
    neutral = result(b)
    assert same(result(fold.merge(fold.zero(), a)), neutral)
    (a,) = lifted(0)
    assert same(result(fold.merge(a, fold.zero())), neutral)
    if kind is not Collect:
        a, b, c, d = lifted(3, 2, 1, 0)
        swapped = result(fold.merge(fold.merge(a, b), fold.merge(c, d)))
        assert all(torch.allclose(swapped[name], balanced[name], rtol=0, atol=1e-12) for name in swapped)


def test_the_right_accumulator_is_not_changed():
    fold = product({"delta": WeightedMean()})
    left, right = fold.lift(0, REPLIES[0]), fold.lift(1, REPLIES[1])
    before = right.trees["delta"]["w"].clone()
    fold.merge(left, right)
    assert torch.equal(right.trees["delta"]["w"], before)


def test_no_reply_has_no_result():
    fold = product({"delta": Sum()})
    with pytest.raises(ValueError, match="no reply"):
        fold.finish(fold.zero())


# Moments ------------------------------------------------------------------------------------------------------


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
    found = fold_all(product({"delta": Moments()}), [moments_reply(each) for each in clients]).trees["delta"]
    assert found["class_ids"].tolist() == [0, 2, 7]
    for row, (_, rows) in enumerate(sorted(pooled(clients).items())):
        assert found["count"][row] == len(rows)
        np.testing.assert_allclose(found["mean"][row], rows.numpy().mean(0), rtol=0, atol=1e-10)
        covariance = found["scatter"][row] / found["count"][row]
        np.testing.assert_allclose(covariance, np.cov(rows.numpy().T, bias=True), rtol=0, atol=1e-10)


def test_moments_do_not_depend_on_the_grouping():
    clients = [moments_reply(each) for each in rows_of_clients()]
    fold = product({"delta": Moments()})
    whole = fold_all(fold, [moments_reply(pooled(rows_of_clients()))]).trees["delta"]
    for order in itertools.permutations(range(4)):
        a, b, c, d = (fold.lift(client, clients[client]) for client in order)
        found = fold.finish(fold.merge(fold.merge(a, b), fold.merge(c, d))).trees["delta"]
        for name in whole:
            assert torch.allclose(found[name].double(), whole[name].double(), rtol=0, atol=1e-9), name


def test_moments_of_a_single_example():
    rows = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    found = fold_all(product({"delta": Moments()}), [moments_reply({4: rows})]).trees["delta"]
    assert found["mean"].tolist() == [[3.0, -1.0]] and found["scatter"].tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


def test_moments_sort_classes_that_come_in_any_order():
    first = moments_reply({0: torch.zeros(2, 1).double(), 5: torch.full((1, 1), 8.0).double()})
    flipped = Reply({"delta": {name: t.flip(0) for name, t in first.trees["delta"].items()}}, {}, 3)
    other = moments_reply({5: torch.full((1, 1), 4.0).double()})
    found = fold_all(product({"delta": Moments()}), [flipped, other]).trees["delta"]
    assert found["class_ids"].tolist() == [0, 5] and found["count"].tolist() == [2, 2]
    assert found["mean"].tolist() == [[0.0], [6.0]]
    assert found["scatter"].tolist() == [[[0.0]], [[8.0]]]  # 2^2 + 2^2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": torch.ones(3)}, r"expected class_ids \[C\]"),
        ({"scatter": torch.ones(2, 3)}, r"expected class_ids \[C\]"),
        ({"mean": torch.tensor(1.0)}, r"expected class_ids \[C\]"),
        ({"class_ids": torch.tensor([1, 1])}, "each once"),
        ({"class_ids": torch.tensor([1.0, 2.0])}, "each once"),
        ({"count": torch.tensor([0.0, 2.0])}, "count of at least 1"),
        ({"count": torch.tensor([-1.0, 2.0])}, "count of at least 1"),
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
    with pytest.raises(BadReplyError, match="2 and 3 features"):
        fold.merge(narrow, wide)


# Collect ------------------------------------------------------------------------------------------------------


def test_collect_keeps_every_reply_in_the_cohorts_order():
    found = fold_all(product({"delta": Collect("model")}), [reply([9.0, 0.0], 5), reply([1.0, 2.0], 7)])
    rows = collected(found.trees["delta"])
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
    rows = collected(fold_all(fold, replies).trees["r"])
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
    rows = collected(fold_all(fold, [Reply({"r": T(b=1.0)}), Reply({"r": T(a=2.0)})]).trees["r"])
    assert [client for client, *_ in rows] == [0, 1]
    merged = fold.merge(fold.lift(1, Reply({"r": T(a=2.0)})), fold.lift(2, Reply({"r": T(b=1.0, a=3.0)})))
    first = fold.lift(0, Reply({"r": T(b=1.0)}))
    assert [c for c, *_ in collected(fold.finish(fold.merge(merged, first)).trees["r"])] == [0, 1, 2]


def test_collected_replies_of_different_shapes():
    fold = product({"r": Collect()})
    with pytest.raises(BadReplyError, match="'a' in different shapes"):
        fold_all(fold, [Reply({"r": T(a=[1.0])}), Reply({"r": T(a=[1.0, 2.0])})])


# What is refused ----------------------------------------------------------------------------------------------

FOLD = product({"delta": WeightedMean("model")}, ["loss"])
GOOD = reply([1.0, 2.0], 3, loss=0.5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (reply([float("nan"), 0.0], loss=0.0), "delta: 'w' holds NaN or infinity"),
        (reply([float("inf"), 0.0], loss=0.0), "delta: 'w' holds NaN or infinity"),
        (reply([1.0], loss=0.0), r"delta: 'w' should have shape \(2,\), found \(1,\)"),
        (replace(GOOD, trees={"delta": T(v=[0.0, 0.0])}), r"missing \['w'\], unexpected \['v'\]"),
        (replace(GOOD, trees={"delta": T(w=[0.0, 0.0], v=1.0)}), r"unexpected \['v'\]"),
        (replace(GOOD, trees={"delta": {"w": torch.tensor([1, 2])}}), "'w' is torch.int64"),
        (replace(GOOD, trees={}), r"expected the trees \['delta'\], found \[\]"),
        (replace(GOOD, trees={**GOOD.trees, "more": {}}), r"found \['delta', 'more'\]"),
        (replace(GOOD, numbers={}), r"expected the numbers \['loss'\], found \[\]"),
        (replace(GOOD, numbers={"loss": 0.0, "x": 1.0}), r"found \['loss', 'x'\]"),
        (replace(GOOD, numbers={"loss": float("nan")}), "the number 'loss' is nan"),
        (replace(GOOD, num_examples=0), "num_examples should be at least 1, found 0"),
        (replace(GOOD, num_examples=-5), "num_examples should be at least 1, found -5"),
    ],
)
def test_bad_replies(bad, message):
    FOLD.check(GOOD, PAYLOAD)
    with pytest.raises(BadReplyError, match=message):
        FOLD.check(bad, PAYLOAD)


def partial(fold=FOLD, replies=(GOOD, GOOD)):
    accumulator = fold.zero()
    for client, each in enumerate(replies):
        accumulator = fold.add(accumulator, client + 4, each)
    return accumulator


def changed(**tensors):
    found = partial()
    return replace(found, trees={"delta": {**found.trees["delta"], **tensors}})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(partial(), num_replies=3), "a partial sum of 2 replies says it holds 3"),
        (replace(partial(), num_examples=1), "numbers that cannot be"),
        (replace(partial(), numbers={"loss": float("inf")}), "numbers that cannot be"),
        (replace(partial(), numbers={}), "a partial sum should have"),
        (replace(partial(), trees={}), r"a partial sum should have \['delta'\], found \[\]"),
        (changed(w=torch.tensor([1.0, float("nan")]).double()), "the partial sum of 'w' holds NaN"),
        (changed(w=torch.zeros(3).double()), r"'w' should have shape \(2,\)"),
        (changed(v=torch.zeros(3).double()), r"unexpected \['v'\]"),
        (changed(w=torch.zeros(2)), "should be float64"),
        (changed(**{"#weight": torch.tensor(0.0).double()}), "no weight above 0"),
        (changed(**{"#weight": torch.tensor(-2.0).double()}), "no weight above 0"),
        (changed(**{"#weight": torch.ones(2).double()}), "no weight above 0"),
        (Partial({"delta": T(w=[0.0, 0.0])}, {"loss": 0.0}, 6, 2), "no weight above 0"),
    ],
)
def test_bad_partial_sums(bad, message):
    FOLD.check_partial(partial(), PAYLOAD, [4, 5])
    with pytest.raises(BadReplyError, match=message):
        FOLD.check_partial(bad, PAYLOAD, [4, 5])


def test_an_empty_partial_sum_is_good_where_everybody_failed():
    FOLD.check_partial(FOLD.zero(), PAYLOAD, [])
    with pytest.raises(BadReplyError, match="of 1 replies says it holds 0"):
        FOLD.check_partial(FOLD.zero(), PAYLOAD, [4])


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
    EVALUATION_FOLD.check(good, PAYLOAD)
    with pytest.raises(BadReplyError, match="counts"):
        EVALUATION_FOLD.check(Reply({"counts": tree}), PAYLOAD)
