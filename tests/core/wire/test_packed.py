"""An answer that goes from one process of a machine to another: all of it arrives, in memory of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from umbel.core.folds import Partial
from umbel.core.records import Reply
from umbel.core.spent import Passes, Spent
from umbel.core.stored import File
from umbel.core.wire.packed import Packed
from umbel.core.wire.work import Outcome


def outcome():
    sums = {"delta": {"w": torch.tensor([1.0, 2.0]).double(), "#weight": torch.tensor(3.0).double()}, "none": {}}
    return Outcome(
        nodes=[(1, 0, Partial(sums, {"loss": 0.5}, 3, 2)), (2, 1, Partial())],
        singles={7: Reply({"delta": {"w": torch.tensor([5.0])}, "none": {}}, {"loss": 1.0}, 4)},
        failures={3: "burnt"},
        seconds={3: 0.1, 7: 0.2},
        remembered=[7],
        bytes_up=12,
        framing_up=5,
        spent=Spent(3, 11, {"a model": Passes(11, 8, 3)}),
    )


def in_a_file(trees, outline, tell):
    file = File.new()
    file.write(trees, outline)
    return file


def test_what_is_told_where_an_answer_is_laid_down_is_a_notice_of_it():
    def full(trees, outline, tell):
        tell("no room")
        return in_a_file(trees, outline, tell)

    asked = replace(outcome(), notices=["before"])
    assert Packed.of(asked, full).unpacked().notices == ["before", "no room"] and asked.notices == ["before"]


@pytest.mark.parametrize("lay", [None, in_a_file])
def test_all_of_an_answer_arrives(lay):
    packed = Packed.of(outcome(), lay)
    if lay is None:
        packed.memory.setflags(write=False)  # as what is mapped from another process
    back, expected = packed.unpacked(), outcome()
    for (level, index, partial), (*place, other) in zip(back.nodes, expected.nodes, strict=True):
        assert [level, index] == place and partial.trees.keys() == other.trees.keys()
        assert (partial.numbers, partial.num_examples, partial.num_replies) == (
            other.numbers,
            other.num_examples,
            other.num_replies,
        )
    assert back.nodes[0][2].trees["delta"]["w"].tolist() == [1.0, 2.0]
    assert back.nodes[0][2].trees["delta"]["#weight"].item() == 3.0
    reply = back.singles[7]
    assert reply.trees["delta"]["w"].tolist() == [5.0] and not reply.trees["none"]
    assert (reply.numbers, reply.num_examples) == ({"loss": 1.0}, 4)
    for name in ("failures", "seconds", "remembered", "bytes_up", "framing_up", "spent"):
        assert getattr(back, name) == getattr(expected, name)


def test_what_arrives_may_be_added_to():
    packed = Packed.of(outcome())
    packed.unpacked().nodes[0][2].trees["delta"]["w"].add_(1)
    assert packed.unpacked().nodes[0][2].trees["delta"]["w"].tolist() == [1.0, 2.0]
