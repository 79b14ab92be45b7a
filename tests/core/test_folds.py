"""Folds: closed forms, the laws of a commutative monoid, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.core.replies import FOLD, GOOD, PAYLOAD, fold_all, moments_reply, partial, reply
from tests.helpers import tree as T
from umbel.core import fold as fold_module
from umbel.core import stored
from umbel.core.collecting import Collect, Moments
from umbel.core.folds import Partial, Sum, UniformMean, WeightedMean, product
from umbel.core.records import BadReplyError, Payload, Reply
from umbel.core.stored import Spill

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
    folded = fold_all(product({"delta": fold}, ["loss"]), REPLIES)
    assert folded.trees["delta"]["w"].tolist() == expected
    assert folded.trees["delta"]["w"].dtype == torch.float64
    assert folded.numbers == {"loss": 5.0}  # (8 + 3 * 4) / 4: numbers are always by examples
    assert (folded.num_examples, folded.num_replies) == (4, 2)
    assert REPLIES[0].trees["delta"]["w"].tolist() == [1.0, 2.0]  # what was given is as it was


def test_accumulators_are_float64():
    # In float32 2^24 + 1 is 2^24: 2 + 2^-23 * ... a mean of 2^24, 1 and 1 would lose both ones.
    trees = [{"w": torch.tensor([value])} for value in (2.0**24, 1.0, 1.0)]
    fold = product({"t": Sum()})
    folded = fold_all(fold, [Reply({"t": tree}) for tree in trees])
    assert folded.trees["t"]["w"].item() == 2**24 + 2


def test_products_combine_each_tree_in_its_own_way():
    fold = product({"a": WeightedMean(), "b": UniformMean(), "c": Sum()})
    replies = [Reply({"a": T(x=v), "b": T(y=v), "c": T(z=v)}, {}, n) for v, n in ((2.0, 1), (6.0, 3))]
    trees = fold_all(fold, replies).trees
    assert (trees["a"]["x"].item(), trees["b"]["y"].item(), trees["c"]["z"].item()) == (5.0, 4.0, 8.0)


# The laws -----------------------------------------------------------------------------------------------------


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


# What is refused ----------------------------------------------------------------------------------------------


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


def changed(**tensors):
    good = partial()
    return replace(good, trees={"delta": {**good.trees["delta"], **tensors}})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(partial(), num_replies=3), "a partial sum of 2 replies says it holds 3"),
        (replace(partial(), num_examples=1), "should be of 2 to 9,007,199,254,740,992 examples, found 1"),
        (replace(partial(), num_examples=2**54), "found 18,014,398,509,481,984"),
        (replace(partial(), num_examples=7), "a partial sum of 7 in weight says it has 6"),
        (replace(partial(), numbers={"loss": float("inf")}), "the sum of the numbers 'loss' is inf"),
        (replace(partial(), numbers={"loss": float("nan")}), "the sum of the numbers 'loss' is nan"),
        (replace(partial(), numbers={"loss": 7e100}), "the sum of the numbers 'loss' is 7e"),
        (replace(partial(), numbers={}), "a partial sum should have"),
        (replace(partial(), trees={}), r"a partial sum should have \['delta'\], found \[\]"),
        (changed(w=torch.tensor([1.0, float("nan")]).double()), "'w' holds NaN"),
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


class ByRoot(WeightedMean):
    """A mean with a weight of its own."""

    def weight(self, num_examples):
        return num_examples**0.5


def test_a_weight_of_ones_own_is_held_to_what_it_can_be():
    fold = product({"delta": ByRoot("model")}, ["loss"])
    lifted = [fold.lift(client, reply([1.0, 2.0], 9, loss=0.0)) for client in (0, 1)]
    both = fold.merge(*lifted)
    fold.check_partial(both, PAYLOAD, [0, 1], lambda client: 9)
    with pytest.raises(BadReplyError, match="at most 4 in weight says it has 6"):
        fold.check_partial(replace(both, num_examples=8), PAYLOAD, [0, 1], lambda client: 4)


@pytest.mark.parametrize(("kind", "weight"), [(WeightedMean, 6), (UniformMean, 2), (Sum, 2)])
def test_a_partial_sum_weighs_what_its_replies_do(kind, weight):
    fold = product({"delta": kind("model")}, ["loss"])
    both = partial(fold)
    fold.check_partial(both, PAYLOAD, [4, 5])
    for other in (weight - 1, weight + 1):
        wrong = replace(both, trees={"delta": {**both.trees["delta"], "#weight": torch.tensor(float(other)).double()}})
        with pytest.raises(BadReplyError, match=f"a partial sum of {weight} in weight says it has {other}"):
            fold.check_partial(wrong, PAYLOAD, [4, 5])


def test_the_bytes_of_a_reply_are_those_of_the_trees_that_it_is_like():
    payload = Payload({"model": T(w=[1.0, 2.0, 3.0]), "other": T(w=[1.0])})
    fold = product({"delta": WeightedMean("model"), "sum": Sum("other"), "open": Collect(keys=["x"])}, numbers=["loss"])
    assert fold.num_bytes(payload) == 24 + 8


def test_of_trees_of_which_a_client_takes_one_the_largest_counts():
    trees = {"a": T(w=[1.0, 2.0]), "b": T(w=[1.0, 2.0, 3.0]), "other": T(w=[1.0])}
    assert Payload(trees).num_bytes == 48
    assert Payload(trees, one_of=frozenset({"a", "b"})).num_bytes == 24 + 8


def test_a_sum_in_a_file_is_checked_piece_by_piece(monkeypatch):
    """It is twice as large as the model, next to which it would have to be in memory."""
    sizes, looked = [], fold_module.largest
    monkeypatch.setattr(stored, "PIECE", 4)
    monkeypatch.setattr(fold_module, "largest", lambda part: sizes.append(part.numel()) or looked(part))
    fold, payload = product({"delta": WeightedMean("model")}), Payload({"model": T(w=[0.0] * 10, v=[0.0])})

    def flaw(**changed):
        trees = {"delta": T(w=[1.0] * 10, v=[1.0], **{"#weight": 2.0})}
        trees["delta"] = {name: tensor.double() for name, tensor in trees["delta"].items()}
        trees["delta"]["#weight"] = trees["delta"]["#weight"].reshape(())
        for name, value in changed.items():
            trees["delta"][name][-1] = value
        sizes.clear()
        in_file = Partial(Spill()(trees).trees(), {}, 2, 1)
        for sum_ in (in_file, replace(in_file, trees=trees)):
            try:
                fold.check_partial(sum_, payload, [0])
            except BadReplyError as error:
                yield str(error)

    assert list(flaw()) == [] and sizes == [4, 4, 2, 1, 10, 1]
    assert list(flaw(w=float("nan"))) == ["delta: 'w' holds NaN or infinity"] * 2
    in_file, in_memory = flaw(v=1e105)
    assert in_file == in_memory and "values up to 1e+105" in in_file
    in_file, in_memory = flaw(w=-1e105)
    assert in_file == in_memory and "'w' holds values up to 1e+105" in in_file
