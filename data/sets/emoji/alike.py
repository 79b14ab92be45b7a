"""Emoji that look alike, so that a split can keep them together.

A man, a woman and a person who surf are one picture with another haircut; some vendors draw all families alike; a
territory flies the flag of its country; in black and white all hearts are one. Were they divided between training and
test, the test would hold pictures that were trained on.
"""

from __future__ import annotations

from collections.abc import Mapping

_JOINER = "200d"
_DROPPED = {"2640", "2642", "27a1"}  # female, male, and "facing right", which is the mirror image
_NEUTRAL = {"1f468": "1f9d1", "1f469": "1f9d1", "1f466": "1f9d2", "1f467": "1f9d2"}  # man, woman, boy, girl

# Drawn by one style of `umbel.data.sets.emoji.drawing` or another as the very same picture, pixel for pixel, at 64
# pixels; found by comparing all of them, sexes already neutral.
_SAME_PICTURE = (
    "1f46a 1f9d1-200d-1f9d1-200d-1f9d2",
    "1f1e6-1f1fa 1f1ed-1f1f2",
    "1f1e7-1f1fb 1f1f3-1f1f4 1f1f8-1f1ef",
    "1f1e8-1f1f5 1f1eb-1f1f7 1f1f2-1f1eb 1f1fc-1f1eb",
    "1f1e8-1f1f6 1f1f8-1f1e6",
    "1f1e9-1f1ec 1f1ee-1f1f4",
    "1f1ea-1f1e6 1f1ea-1f1f8",
    "1f1fa-1f1f2 1f1fa-1f1f8",
    "1f431 1f63a",
    "1f48f 1f9d1-200d-2764-200d-1f48b-200d-1f9d1",
    "1f1ee-1f1e9 1f1f2-1f1e8",
    "1f1f7-1f1f4 1f1f9-1f1e9",
    "1f601 1f604",
    "1f497 1f499 1f49a 1f49b 1f5a4 1f90d",
    "1f49c 1f90e 1f9e1 2764",
    "1fa75 1fa76 1fa77",
    "1f471 1f9d1 1f9d1-200d-1f9b0 1f9d1-200d-1f9b3",
    "1f491 1f9d1-200d-2764-200d-1f9d1",
    "1f426 1f426-200d-2b1b",
    "1f694 1f696",
    "1f311 26ab",
    "1f315 1f534 1f535 1f7e0 1f7e1 1f7e2 1f7e3 1f7e4 26aa",
    "2753 2754",
    "2755 2757",
    "1f7e5 1f7e6 1f7e8 1f7e9 1f7ea 1f7eb",
    "1f1e8-1f1ed 1f1fb-1f1e6",
    "1f533 25fc",
)
_FIRST: Mapping[str, str] = {code: group.split()[0] for group in _SAME_PICTURE for code in group.split()}


def look_alike(code: str) -> str:
    """Return the code that stands for an emoji and for all that look (nearly) the same; often the emoji's own.

    Args:
        code: As `umbel.data.sets.emoji.concepts.code_of` writes it.
    """
    first, *others = code.split(f"-{_JOINER}-")
    parts = [first, *(part for part in others if part not in _DROPPED)]  # alone, they are signs themselves
    neutral = ["-".join(_NEUTRAL.get(point, point) for point in part.split("-")) for part in parts]
    joined = f"-{_JOINER}-".join(neutral)
    return _FIRST.get(joined, joined)
