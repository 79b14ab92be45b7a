"""Answers that cannot be used, and what is raised in place of one."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import torch
from torch import Tensor

from tests.end_to_end.faults.clients.acts import (
    Act,
    delta,
    examples,
    loss,
    named,
    raising,
    replying,
    returning,
)
from umbel.core.records import Reply
from umbel.server.errors import StopRequested


class Lying(Tensor):
    """A tensor that answers nothing."""

    @classmethod
    def __torch_function__(cls, *_: object, **__: object) -> object:
        raise LookupError("it does not say")


class Float:
    """What is no number."""

    def __float__(self) -> float:
        raise OSError("out of numbers")


class NoNumber(Fraction):
    """A number that does not say what it is."""

    def __float__(self) -> float:
        raise OSError("out of numbers")


class SpeechlessError(Exception):
    """An error whose text is one as well."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class _Nameless(type):
    @property
    def __name__(cls) -> str:
        raise RuntimeError("no name")


class NamelessError(Exception, metaclass=_Nameless):
    """An error whose class has no name."""


def recurse() -> None:
    recurse()


FORMS: dict[str, Act] = {
    "nothing": returning(None),
    "a mapping": returning({"delta": {}}),
    "a pair": returning((1, 2)),
    "a class": returning(Reply),
    "the payload": lambda payload, client, honest: payload,
    "no trees": replying(trees=lambda trees: None),
    "a list of trees": replying(trees=lambda trees: [trees]),
    "no tree": replying(trees=lambda trees: {}),
    "a tree too many": replying(trees=lambda trees: {**trees, "more": {}}),
    "a tree that is a tensor": replying(trees=lambda trees: {"delta": torch.zeros(3)}),
    "a tree called 1": replying(trees=lambda trees: {1: trees["delta"]}),
    "a key is missing": named(lambda tree: dict(list(tree.items())[1:])),
    "a key too many": named(lambda tree: {**tree, "more": torch.zeros(1)}),
    "a key of the fold's": named(lambda tree: {**tree, "#weight": torch.tensor(1.0)}),
    "a key that is no text": named(lambda tree: {**tree, "\ud800": torch.zeros(1)}),
    "another shape": delta(lambda t: t.reshape(-1)[:1]),
    "one number": delta(lambda t: t.sum()),
    "no values": delta(lambda t: t[..., :0]),
    "NaN": delta(lambda t: t * float("nan")),
    "infinity": delta(lambda t: t + float("inf")),
    "minus infinity": delta(lambda t: t - float("inf")),
    "1e308": delta(lambda t: torch.full_like(t, 1e308, dtype=torch.float64)),
    "-1e308": delta(lambda t: torch.full_like(t, -1e308, dtype=torch.float64)),
    "beyond float32": delta(lambda t: torch.full_like(t, 1e39, dtype=torch.float64)),
    "whole numbers": delta(lambda t: t.to(torch.int64)),
    "truth values": delta(lambda t: t > 0),
    "complex numbers": delta(lambda t: t.to(torch.complex64)),
    "sparse": delta(lambda t: t.to_sparse()),
    "of no device": delta(lambda t: t.to("meta")),
    "arrays": delta(lambda t: t.numpy()),
    "lists": delta(lambda t: t.tolist()),
    "tensors of another class": delta(lambda t: t.as_subclass(Lying)),
}
NUMBERS: dict[str, Act] = {
    "no number": replying(numbers=lambda numbers: {}),
    "a number too many": replying(numbers=lambda numbers: {**numbers, "more": 1.0}),
    "a list of numbers": replying(numbers=lambda numbers: [1.0]),
    "loss NaN": loss(float("nan")),
    "loss infinity": loss(float("inf")),
    "loss 1e308": loss(1e308),
    "loss 10**400": loss(10**400),
    "loss of text": loss("0.5"),
    "loss None": loss(None),
    "loss complex": loss(1j),
    "loss of two": loss(torch.zeros(2)),
    "loss of no number": loss(Float()),
    "loss that raises": loss(NoNumber(1)),
    "0 examples": examples(0),
    "-5 examples": examples(-5),
    "NaN examples": examples(float("nan")),
    "infinitely many examples": examples(float("inf")),
    "2.5 examples": examples(2.5),
    "1e300 examples": examples(1e300),
    "10**400 examples": examples(10**400),
    "2**60 examples": examples(2**60),
    "examples of text": examples("7"),
    "no examples": examples(None),
    "examples of two": examples(torch.ones(2, dtype=torch.int64)),
}
RAISED: dict[str, Act] = {
    "an error": raising(lambda: ValueError("out of data")),
    "an error without words": raising(SpeechlessError),
    "an error without a name": raising(NamelessError),
    "50 MB of text": raising(lambda: ValueError("x" * 50_000_000)),
    "text that is none": raising(lambda: ValueError("\ud800 \x1b[2J \0")),
    "sys.exit(0)": raising(lambda: SystemExit(0)),
    "sys.exit with text": raising(lambda: SystemExit("bye")),
    "KeyboardInterrupt": raising(KeyboardInterrupt),
    "GeneratorExit": raising(GeneratorExit),
    "StopIteration": raising(StopIteration),
    "BaseException": raising(BaseException),
    "a cancellation": raising(asyncio.CancelledError),
    "a request to stop": raising(StopRequested),
    "recursion": lambda payload, client, honest: recurse(),
    "memory": lambda payload, client, honest: torch.empty(2**60),
}
