"""JSON that came from anybody.

Numbers stay what they are as long as they mean something: a whole number of more digits than 64 bits have is read as
the floating-point number next to it, which is infinity beyond 308 digits, and whoever wants a whole number refuses it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

MOST_DEPTH = 32  # lists and mappings inside of each other; a head has four
_MOST_DIGITS = 19  # of a whole number: those of 2^63
_MOST_LETTERS = 1000  # of any number: 1e308 written out has 309
_TEXT = re.compile(
    r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL
)  # to the end where it is not closed, so that nothing is read twice
_PLAIN = re.compile(r"[^\[\]{}]++")


class TextError(ValueError):
    """A text that is no JSON, or is more than is read."""


def read_json(text: str, most_bytes: int) -> Any:
    """Return what a JSON text says.

    Args:
        text: The text.
        most_bytes: The most that is read.

    Raises:
        TextError: It is longer, nested too deeply, names something twice in one mapping, or is no JSON.
    """
    if len(text) > most_bytes:
        raise TextError(f"it has {len(text):,} letters, of which at most {most_bytes:,} are read")
    if _is_deep(text):
        raise TextError(f"it is nested more than {MOST_DEPTH} deep")
    try:
        return json.loads(text, parse_int=_whole, parse_float=_real, object_pairs_hook=_mapping)
    except TextError:
        raise
    except (ValueError, RecursionError) as error:
        raise TextError(str(error)) from error


def _is_deep(text: str) -> bool:
    """Say whether lists and mappings are nested too deeply."""
    brackets = _PLAIN.sub("", _TEXT.sub("", text))
    return max(accumulate(1 if each in "[{" else -1 for each in brackets), default=0) > MOST_DEPTH


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits.lstrip("-")) <= _MOST_DIGITS else _real(digits)


def _real(digits: str) -> float:
    if len(digits) > _MOST_LETTERS:
        raise TextError(f"it has a number of {len(digits):,} letters")
    return float(digits)


def _mapping(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise TextError("it names something twice in one mapping")
    return mapping
