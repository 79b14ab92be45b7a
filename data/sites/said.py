"""Values of what a node said, each of the kind that it should be, or refused."""

from __future__ import annotations

from typing import Any

from umbel.data.sites.description import LONGEST

_MOST_DIGITS = 40


def mapping(value: object) -> dict[str, Any]:
    """Return a mapping, or raise `ValueError`."""
    if not isinstance(value, dict):
        raise ValueError("it lacks a mapping")
    return value


def listed(value: object, length: int) -> list[Any]:
    """Return a list of a length, or raise `ValueError`."""
    if not isinstance(value, list) or len(value) != length:
        raise ValueError(f"it should have {length} sums")
    return value


def line(value: object, longest: int = LONGEST) -> str:
    """Return a text as a line that a terminal can show, cut to so many letters, or raise `ValueError`."""
    if not isinstance(value, str):
        raise ValueError("it lacks a text")
    return "".join(letter if letter.isprintable() else "?" for letter in value[:longest])


def whole(value: object) -> int:
    """Return a whole number that was written as text, or raise `ValueError`."""
    if not isinstance(value, str) or not value.isascii() or not value.isdecimal() or len(value) > _MOST_DIGITS:
        raise ValueError("it lacks a whole number")
    return int(value)
