"""What a client may do in place of its part: answer, raise, or answer and do something besides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from umbel.core.records import Payload, Reply
from umbel.strategies.base import ClientContext

Honest = Callable[[], Reply]
Act = Callable[[Payload, ClientContext, Honest], Any]


def replying(**changes: Callable[[Any], Any]) -> Act:
    """Answer honestly but for fields of the reply."""

    def act(payload: Payload, client: ClientContext, honest: Honest) -> Reply:
        reply = honest()
        return replace(reply, **{name: change(getattr(reply, name)) for name, change in changes.items()})

    return act


def delta(change: Callable[[Tensor], Any]) -> Act:
    """Answer honestly but for each tensor of the change."""
    return replying(trees=lambda trees: {"delta": {name: change(tensor) for name, tensor in trees["delta"].items()}})


def named(change: Callable[[dict[str, Tensor]], Any]) -> Act:
    """Answer honestly but for the tree of the change."""
    return replying(trees=lambda trees: {"delta": change(dict(trees["delta"]))})


def loss(value: Any) -> Act:
    return replying(numbers=lambda numbers: {"loss": value})


def examples(value: Any) -> Act:
    return replying(num_examples=lambda number: value)


def returning(value: Any) -> Act:
    return lambda payload, client, honest: value


def raising(make: Callable[[], BaseException]) -> Act:
    def act(payload: Payload, client: ClientContext, honest: Honest) -> Reply:
        raise make()

    return act


def after(change: Callable[..., object]) -> Act:
    """Answer honestly, and do something besides; what it does is given the payload and the client if it asks."""

    def act(payload: Payload, client: ClientContext, honest: Honest) -> Reply:
        reply = honest()
        change(*((payload, client)[: change.__code__.co_argcount] if hasattr(change, "__code__") else ()))
        return reply

    return act
