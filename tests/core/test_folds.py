"""Folds: closed forms, the laws of a commutative monoid, and what they refuse."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.helpers import tree as T
from umbel.core import moments
from umbel.core.collecting import Collect, Moments, replies_in
from umbel.core.evaluation import evaluation_fold
from umbel.core.folds import Partial, Sum, UniformMean, WeightedMean, product
from umbel.core.records import BadReplyError, Payload, Reply

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
    packed = {}
    for c, rows in rows_by_class.items():
        centred = rows - rows.mean(0)
        count = torch.tensor(float(len(rows)), dtype=rows.dtype)
        packed[str(c)] = moments.pack(count, rows.mean(0), centred.T @ centred / len(rows))
    return Reply({"delta": packed}, {}, sum(map(len, rows_by_class.values())))


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
    assert list(found) == ["0", "2", "7"]
    for c, rows in pooled(clients).items():
        count, mean, covariance = moments.unpack(found[str(c)])
        assert count == len(rows)
        np.testing.assert_allclose(mean, rows.numpy().mean(0), rtol=0, atol=1e-10)
        np.testing.assert_allclose(covariance, np.cov(rows.numpy().T, bias=True), rtol=0, atol=1e-9)


def test_moments_do_not_depend_on_the_grouping():
    clients = [moments_reply(each) for each in rows_of_clients()]
    fold = product({"delta": Moments()})
    whole = fold_all(fold, [moments_reply(pooled(rows_of_clients()))]).trees["delta"]
    for order in itertools.permutations(range(4)):
        a, b, c, d = (fold.lift(client, clients[client]) for client in order)
        found = fold.finish(fold.merge(fold.merge(a, b), fold.merge(c, d))).trees["delta"]
        assert list(found) == list(whole)
        for name in whole:
            assert torch.allclose(found[name], whole[name], rtol=0, atol=1e-9), name


def test_moments_by_hand():
    first = moments_reply({5: torch.full((1, 1), 8.0).double(), 0: torch.zeros(2, 1).double()})
    other = moments_reply({5: torch.full((1, 1), 4.0).double()})
    found = fold_all(product({"delta": Moments()}), [first, other]).trees["delta"]
    assert list(found) == ["0", "5"]
    assert found["0"].tolist() == [2, 0, 0] and found["5"].tolist() == [2, 6, 4]  # (2^2 + 2^2) / 2
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


# Collect ------------------------------------------------------------------------------------------------------


def test_collect_keeps_every_reply_in_the_cohorts_order():
    found = fold_all(product({"delta": Collect("model")}), [reply([9.0, 0.0], 5), reply([1.0, 2.0], 7)])
    rows = replies_in(found.trees["delta"])
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


def lied(fold, replies, **lie):
    good = partial(fold, replies)
    fold.check_partial(good, PAYLOAD, [4, 5])
    with pytest.raises(BadReplyError) as found:
        fold.check_partial(replace(good, trees={"r": {**good.trees["r"], **lie}}), PAYLOAD, [4, 5])
    return str(found.value)


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
        (counts_of("test/model", [3.0, 0, 0, 0], [2.0] * 4), "at most as many right"),
        (counts_of("test/model", [-1.0, 0, 0, 0], [2.0] * 4), "at most as many right"),
        (counts_of("test/model", [0.0] * 4, [0.0] * 4), "some examples"),
        (counts_of("test/model", [0.0] * 4, [1e308] * 4), "some examples"),
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
