"""Replies of anybody in plain values, and what was raised in a few words."""

from __future__ import annotations

from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from umbel.core.names import shortened
from umbel.core.records import BadReplyError, Reply, plain, reason


def reply(**changes: Any) -> Reply:
    return Reply(**{"trees": {"delta": {"w": torch.ones(2)}}, "numbers": {"loss": 0.5}, "num_examples": 5, **changes})


@pytest.mark.parametrize("value", [5, np.int64(5), np.uint8(5), torch.tensor(5), np.array(5)[()]])
def test_a_whole_number_is_one_of_whatever_class(value: Any) -> None:
    num_examples = plain(reply(num_examples=value)).num_examples
    assert num_examples == 5 and type(num_examples) is int


@pytest.mark.parametrize(
    "value", [0.25, np.float32(0.25), torch.tensor(0.25), torch.tensor([0.25], requires_grad=True), Fraction(1, 4)]
)
def test_a_number_is_one_of_whatever_class(value: Any) -> None:
    loss = plain(reply(numbers={"loss": value})).numbers["loss"]
    assert loss == 0.25 and type(loss) is float


@pytest.mark.parametrize(
    "value",
    [nn.Parameter(torch.ones(2)), torch.ones(2, requires_grad=True) * 1, torch.ones(1).expand(2), torch.ones(4)[::2]],
)
def test_a_tensor_comes_without_its_gradient(value: torch.Tensor) -> None:
    tensor = plain(reply(trees=MappingProxyType({"delta": {"w": value}}))).trees["delta"]["w"]
    assert type(tensor) is torch.Tensor and not tensor.requires_grad and torch.equal(tensor, torch.ones(2))


def test_an_owned_reply_is_nobody_elses() -> None:
    mine = torch.ones(2)
    owned = plain(reply(trees={"delta": {"w": mine}})).owned()
    mine.zero_()
    assert torch.equal(owned.trees["delta"]["w"], torch.ones(2))


class _LargeError(Exception):
    def __init__(self) -> None:
        self.args = ("y" * 10**6,)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "expected a Reply, found NoneType"),
        (reply(num_examples=2.5), r"whole number, found 2\.5 \(float\)"),
        (reply(num_examples=1e300), "whole number, found 1e\\+300"),
        (reply(num_examples="x" * 10**6), r"found 'x{59}\.\.\. \(str\)"),
        (reply(numbers={"loss": 10**400}), "too large to convert"),
        (reply(numbers={"loss": "0.5"}), r"should be a number, found '0\.5'"),
        (reply(numbers={"loss": torch.ones(2)}), "should be a number"),
        (reply(numbers=[0.5]), "numbers: expected a mapping of names, found list"),
        (reply(trees={"delta": torch.ones(2)}), "delta: expected a mapping of names, found Tensor"),
        (reply(trees={"delta": {"w": np.ones(2)}}), "'w' should be a tensor, found ndarray"),
        (reply(trees={"delta": {"w": torch.ones(2).to_sparse()}}), "sparse_coo tensor of torch.float32 on cpu"),
        (reply(trees={"delta": {"w": torch.ones(2, device="meta")}}), "strided tensor of torch.float32 on meta"),
        (reply(trees={"delta": {"w": torch.ones(2, dtype=torch.complex64)}}), "torch.complex64"),
        (reply(trees={"delta": {"#weight": torch.ones(2)}}), "expected a name, found '#weight'"),
        (reply(trees={"delta": {"\ud800": torch.ones(2)}}), "expected a name"),
        (reply(trees={1: {}}), r"expected a name, found 1 \(int\)"),
    ],
    ids=range(16),
)
def test_what_is_no_reply(wrong: Any, message: str) -> None:
    with pytest.raises(BadReplyError, match=message) as caught:
        plain(wrong)
    assert len(str(caught.value)) < 300


class _SpeechlessError(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)


def test_what_was_raised_in_a_few_words() -> None:
    assert reason(KeyError("w")) == "KeyError: 'w'"
    assert reason(_SpeechlessError()) == "_SpeechlessError, whose text raises SystemExit"
    assert reason(_LargeError()) == f"_LargeError: {'y' * 457}... (1,000,013 letters in all)"
    assert shortened("a\n b\x1b[2J\ud800\0é") == "a b\\x1b[2J\\ud800\\x00é"


@pytest.mark.parametrize(
    "strange",
    [
        *("\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069"),  # direction
        *("\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad"),  # without width
        *("\x07", "\x08", "\x1b", "\x7f", "\x9b", "\0", "\ud800", "\U000e0041"),
    ],
    ids=ascii,
)
def test_what_a_terminal_makes_something_of_is_written_as_its_escape(strange: str) -> None:
    assert shortened(f"a{strange}b") == f"a{ascii(strange)[1:-1]}b"


@pytest.mark.parametrize("text", ["\x1b" * 10**6, "\u202e" * 400, "word\n" * 200, "x" * 501, "é" * 10**6])
def test_a_reason_is_a_line_of_five_hundred_letters_at_most(text: str) -> None:
    line = shortened(text)
    assert len(line) <= 500 and line.isprintable() and line.endswith(f"({len(text):,} letters in all)")
    assert shortened("x" * 500) == "x" * 500
