"""A combined change is used up by the server's step, and whoever looks at it afterwards is told so."""

from __future__ import annotations

import pytest
import torch

from tests.core.test_fold_tree import Peak
from umbel.core.folds import WeightedMean, product
from umbel.core.once import Once, UsedUpError, keep_rest
from umbel.core.records import Payload, Reply
from umbel.strategies.steps import server_step

NAMES = [f"w{i}" for i in range(8)]


def change(seed=0, count=1 << 17):
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count // 8, generator=random, dtype=torch.float64) for name in NAMES}


def model(dtype=torch.float32):
    return {name: tensor.to(dtype) for name, tensor in change(1).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("lr", [1.0, 0.3])
def test_a_step_gives_the_same_bits_and_lets_go_of_what_is_given_once(dtype, lr):
    before, delta = model(dtype), change()
    expected = {name: torch.add(w, delta[name].to(dtype), alpha=lr) for name, w in before.items()}
    once = Once(change())
    for given in (delta, once):
        stepped = server_step(before, given, lr)
        assert all(torch.equal(stepped[name], tensor) for name, tensor in expected.items())
        assert all(stepped[name].dtype == dtype for name in NAMES)
    assert all(torch.equal(delta[name], tensor) for name, tensor in change().items())
    assert all(torch.equal(before[name], tensor) for name, tensor in model(dtype).items())
    for name in NAMES:
        with pytest.raises(UsedUpError):
            once[name]


def test_a_step_takes_no_more_than_what_it_was_given():
    """The mean change, in float64, goes as the next model, in float32, comes."""
    fold, before = product({"delta": WeightedMean("model")}), model()
    with Peak() as peak:
        partial = fold.lift(0, Reply({"delta": model()}, {}, 2))
        folded = fold.finish(partial)
        del partial
        lifted = peak.most
        server_step(before, folded.trees["delta"])
    assert lifted >= 8 * (1 << 17) and peak.most <= lifted + 3 * 4 * (1 << 17) // 8  # and what one tensor takes


def test_a_view_of_another_order_keeps_it():
    """As a model has it that was trained in channels-last order."""
    before = {"w": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)}
    stepped = server_step(before, {"w": torch.ones(2, 3, 4, 5, dtype=torch.float64)})
    assert torch.equal(stepped["w"], before["w"] + 1) and stepped["w"].stride() == (before["w"] + 1).stride()


def test_what_was_used_up_is_not_found_empty():
    once = Once(change())
    assert list(once) == list(once.keys()) == NAMES and len(list(once.values())) == len(once.items()) == 8
    assert set(dict(once)) == set({**once}) == set(NAMES)  # nothing was taken yet
    with pytest.raises(KeyError, match="other"):
        once["other"]
    first = once.take("w0")
    assert torch.equal(first, change()["w0"])
    ways = [lambda: once["w0"], lambda: once.take("w0"), lambda: dict(once), lambda: {**once}]
    ways += [lambda: list(once.items()), lambda: [*once.values()], lambda: once.get("w0"), lambda: once.pop("w0", None)]
    ways += [
        lambda: once == change(),
        lambda: once != change(),
        lambda: once.copy(),
        lambda: once | {},
        lambda: {} | once,
    ]
    for way in ways:
        with pytest.raises(UsedUpError, match="server_step"):
            way()
    assert torch.equal(once["w1"], change()["w1"])  # what is still there can be looked at
    assert (
        list(once) == list(once.keys()) == list(reversed([*reversed(once)])) == NAMES and len(once) == 8
    )  # so are names
    assert "w0" in once and "other" not in once and once.get("other", 1) == 1 and once.pop("other", 2) == 2
    with pytest.raises(KeyError, match="other"):  # was never there
        once.take("other")


def test_what_is_left_when_a_phase_is_over_stays():
    """A State may have kept it, which a stop or an evaluation reads again."""
    taken, kept, plain = Once(change()), Once(change()), change()
    taken.take("w0")
    keep_rest([taken, kept, plain])
    assert torch.equal(kept.take("w0"), kept.take("w0")) and torch.equal(taken.take("w1"), taken["w1"])
    with pytest.raises(UsedUpError):
        taken.take("w0")


def test_means_and_sums_are_given_once():
    fold = product({"delta": WeightedMean("model")})
    fold.check(Reply({"delta": model()}), Payload({"model": model()}))
    assert isinstance(fold.finish(fold.lift(0, Reply({"delta": model()}))).trees["delta"], Once)
