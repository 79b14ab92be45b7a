"""Values of a JSON head that came from anybody: each is of the kind that it should be, or refused.

A whole number is one, and not a text or a number with a point that could be read as one; true and false are none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from umbel.core.wire.limits import Limits

_SHOWN = 40  # letters of a value in a message


class FormError(ValueError):
    """A value is not of the kind that it should be."""


def whole(entry: Mapping[str, Any], name: str) -> int:
    """Return a whole number of an entry."""
    return as_whole(entry.get(name), name)


def numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the named numbers of an entry."""
    named = entry.get("numbers")
    if type(named) is not dict:
        raise FormError(f"numbers should be a mapping, found {_shown(named)}")
    return {name: as_real(value, f"the number {name!r}") for name, value in named.items()}


def names(entry: Mapping[str, Any]) -> list[str]:
    """Return the names of an entry's trees."""
    trees = entry.get("trees")
    if type(trees) is not list or not all(type(name) is str for name in trees):
        raise FormError(f"trees should be a list of names, found {_shown(trees)}")
    return trees


def items(head: Mapping[str, Any], name: str, limits: Limits) -> list[Any]:
    """Return a list of a head that is not too long."""
    listed = head.get(name)
    if type(listed) is not list:
        raise FormError(f"{name!r} should be a list, found {_shown(listed)}")
    if len(listed) > limits.num_entries:
        raise FormError(f"{name!r} has {len(listed):,} entries, of which at most {limits.num_entries:,} are read")
    return listed


def entries(head: Mapping[str, Any], name: str, limits: Limits) -> list[dict[str, Any]]:
    """Return a list of mappings of a head."""
    listed = items(head, name, limits)
    if not all(type(entry) is dict for entry in listed):
        raise FormError(f"{name!r} should be a list of mappings")
    return listed


def pairs(head: Mapping[str, Any], name: str, limits: Limits) -> Iterator[tuple[int, Any]]:
    """Yield clients and what a list of a head says of each."""
    for pair in items(head, name, limits):
        if type(pair) is not list or len(pair) != 2:
            raise FormError(f"{name!r} should be pairs of a client and what is said of it, found {_shown(pair)}")
        yield as_whole(pair[0], "a client"), pair[1]


def rows(head: Mapping[str, Any], name: str, width: int, limits: Limits) -> Iterator[list[Any]]:
    """Yield the members of a list, each a list of so many values."""
    for row in items(head, name, limits):
        if type(row) is not list or len(row) != width:
            raise FormError(f"{name!r} should be {width} values each, found {_shown(row)}")
        yield row


def as_whole(value: object, name: str) -> int:
    """Return a whole number."""
    if type(value) is not int:
        raise FormError(f"{name} should be a whole number of at most 19 digits, found {_shown(value)}")
    return value


def as_real(value: object, name: str) -> float:
    """Return a number, which may be infinite or none."""
    if type(value) is not float and type(value) is not int:
        raise FormError(f"{name} should be a number, found {_shown(value)}")
    return float(value)


def as_text(value: object, name: str) -> str:
    """Return a text."""
    if type(value) is not str:
        raise FormError(f"{name} should be a text, found {_shown(value)}")
    return value


def _shown(value: object) -> str:
    """Show a value in a few letters."""
    return f"{str(value)[:_SHOWN]!r} ({type(value).__name__})"
