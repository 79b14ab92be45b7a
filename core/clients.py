"""Numbers of clients as people write them: "0-24,30"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from umbel.core.refusal import Refusal

_PART = re.compile(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?")


def parse(text: str, key: str) -> tuple[range, ...]:
    """Return the numbers that a text like "0-24,30" names, as ranges in ascending order.

    Args:
        text: The text; "" names none.
        key: What it is the value of, for refusals.

    Raises:
        Refusal: It is of another form, or names a client twice.
    """
    ranges: list[range] = []
    for part in text.split(",") if text.strip() else ():
        match = _PART.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise Refusal(
                f"{key}: {part.strip()[:40]!r} names no clients.", key=key, remedy='Write them as in "0-24,30".'
            )
        ranges.append(range(first, last + 1))
    ranges.sort(key=lambda each: each.start)
    for left, right in pairwise(ranges):
        if right.start < left.stop:
            raise Refusal(f"{key} names client {right.start} twice.", key=key, remedy="Name it once.")
    return tuple(ranges)


def common(left: Sequence[range], right: Sequence[range]) -> list[int]:
    """Return the ends of what two texts both name: the first and the last number of each stretch, or nothing."""
    ends: list[int] = []
    for one in left:
        for other in right:
            first, stop = max(one.start, other.start), min(one.stop, other.stop)
            if first < stop:
                ends += [first, stop - 1]
    return ends


def written(clients: Iterable[int]) -> str:
    """Write numbers as ranges: "0-3, 7"."""
    text: list[str] = []
    start = last = None
    for client in [*sorted(clients), None]:
        if last is not None and client is not None and client == last + 1:
            last = client
            continue
        if start is not None:
            text.append(str(start) if start == last else f"{start}-{last}")
        start = last = client
    return ", ".join(text)
