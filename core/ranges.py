"""Ranges of configuration values: said by the annotations of a dataclass's fields, checked in one place.

    mu: Annotated[float, Ge(0)] = 0.01
    weighting: Annotated[str, OneOf("examples", "uniform")] = "examples"

Bounds are those of annotated-types. Everywhere, also within lists and mappings, NaN is refused, infinity and numbers
beyond float32 where a field does not say `MayBeInfinite()`, and integers beyond 64 bits, which no table holds.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MinLen

from umbel.core.names import nearest
from umbel.core.refusal import Refusal

_WIDEST = 1 << 63
_LARGEST = 3.4e38  # about what float32 holds


class OneOf:
    """A closed set of values.

    Args:
        *allowed: The values.

    Attributes:
        allowed: As given.
    """

    def __init__(self, *allowed: str | int) -> None:
        self.allowed = allowed


@dataclasses.dataclass(frozen=True)
class OrWord:
    """A word stands for a value that is found out; bounds are for numbers.

    Attributes:
        word: The word.
    """

    word: str


@dataclasses.dataclass(frozen=True)
class MayBeInfinite:
    """Infinity is a value, too."""


Limit = Gt | Ge | Lt | Le | MinLen | OneOf | OrWord | MayBeInfinite


def check_ranges(config: Any, section: str) -> None:
    """Refuse a value out of its range.

    Args:
        config: An instance of a dataclass; fields that are None are not looked at.
        section: What stands before the fields' names in keys, such as `strategy`.

    Raises:
        Refusal: A value is out of its range, with its key.
    """
    kind: Any = type(config)
    for name, limits in limits_of(kind).items():
        value = getattr(config, name)
        if value is not None:
            _check(f"{section}.{name}", value, limits)


@cache
def limits_of(kind: type) -> Mapping[str, tuple[Limit, ...]]:
    """Return what the annotations of each field of a dataclass allow; no limits where they say nothing."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: tuple(_limits(hints[field.name])) for field in dataclasses.fields(kind)}


def describe(limits: tuple[Limit, ...]) -> str:
    """Return limits in words, such as `at least 0 and below 1`; empty where there are none."""
    parts = []
    for limit in limits:
        match limit:
            case Gt():
                parts.append(f"above {limit.gt}")
            case Ge():
                parts.append(f"at least {limit.ge}")
            case Lt():
                parts.append(f"below {limit.lt}")
            case Le():
                parts.append(f"at most {limit.le}")
            case OneOf():
                parts.append(f"one of {', '.join(map(str, limit.allowed))}")
    words = "".join(f", or {limit.word}" for limit in limits if isinstance(limit, OrWord))
    return " and ".join(parts) + words


def _limits(hint: Any) -> Iterator[Limit]:
    for each in getattr(hint, "__metadata__", ()):
        parts: Iterable[Any] = each if isinstance(each, GroupedMetadata) else (each,)
        yield from (part for part in parts if isinstance(part, Limit))


def _check(key: str, value: Any, limits: tuple[Limit, ...]) -> None:
    words = tuple(limit for limit in limits if isinstance(limit, OrWord))
    if any(value == limit.word for limit in words):
        return
    for limit in limits:
        if isinstance(limit, OneOf) and value not in limit.allowed:
            guesses = nearest(str(value), map(str, limit.allowed))
            hint = f"Did you mean {' or '.join(map(repr, guesses))}?" if guesses else ""
            raise Refusal(f"{key} should be {describe((limit,))}, found {value!r}.", key=key, remedy=hint)
        if isinstance(limit, MinLen) and len(value) < limit.min_length:
            entries = "one entry" if limit.min_length == 1 else f"{limit.min_length} entries"
            raise Refusal(f"{key} should have at least {entries}, found {value!r}.", key=key)
    bounds = tuple(limit for limit in limits if isinstance(limit, Gt | Ge | Lt | Le))
    if bounds and not isinstance(value, int | float):
        raise Refusal(f"{key} should be a number, {describe((*bounds, *words))}, found {value!r}.", key=key)
    unbounded = any(isinstance(limit, MayBeInfinite) for limit in limits)
    odd = next(filter(None, (_oddity(number, unbounded) for number in _numbers(value))), "")
    if odd or not all(_within(value, bound) for bound in bounds):
        wanted = " and ".join(filter(None, [describe((*bounds, *words)), odd]))
        raise Refusal(f"{key} should be {wanted}, found {value!r}.", key=key)


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, Mapping | list | tuple | set | frozenset):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(each)


def _oddity(number: int | float, unbounded: bool) -> str:
    """Say what a number should be that it is not anywhere."""
    if isinstance(number, int):
        return "" if -_WIDEST <= number < _WIDEST else "of 64 bits"
    if math.isnan(number) or not (unbounded or math.isfinite(number)):
        return "no NaN" if unbounded else "finite"
    return "" if unbounded or abs(number) <= _LARGEST else f"within {_LARGEST}"


def _within(value: Any, bound: Gt | Ge | Lt | Le) -> bool:
    match bound:
        case Gt():
            return bool(value > bound.gt)
        case Ge():
            return bool(value >= bound.ge)
        case Lt():
            return bool(value < bound.lt)
    return bool(value <= bound.le)
