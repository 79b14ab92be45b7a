"""JSON of anybody: numbers that mean something stay what they are, and what only costs is refused."""

from __future__ import annotations

import json
import math

import pytest

from umbel.core.wire.text import MOST_DEPTH, TextError, read_json


@pytest.mark.parametrize(
    "value",
    [
        *({"a": [1, -2.5, True, None, "x", {"b": {}}]}, 2**63 - 1, -(2**62), 0.1, 5e-324, 1.7976931348623157e308),
        *('["\\"[', {"text": "[" * 10_000}, [[]] * 1000),
    ],
    ids=range(9),
)
def test_what_was_written_comes_back(value):
    assert read_json(json.dumps(value), 10**6) == value


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (nested(MOST_DEPTH + 1), "nested more than 32 deep"),
        ("[" * 200_000, "nested more than 32 deep"),
        ('{"a":' * 50_000, "nested more than 32 deep"),
        ('{"a": 1, "a": 1}', "names something twice"),
        ('[{"a": {"b": 1, "b": 2}}]', "names something twice"),
        ("9" * 5000, "a number of 5,000 letters"),
        ("0." + "9" * 5000, "a number of 5,002 letters"),
        ("[1,", "Expecting value"),
        ('"' + "x" * 10**6, "at most 1,000,000 are read"),
        ('["' + '\\"' * 10**5, "Unterminated string"),
        ("", "Expecting value"),
    ],
    ids=range(11),
)
def test_what_is_refused(text, reason):
    assert read_json(nested(MOST_DEPTH), 10**6)
    with pytest.raises(TextError, match=reason):
        read_json(text, 10**6)


def test_whole_numbers_beyond_64_bits_are_no_whole_numbers():
    for digits, value in (("1" + "0" * 20, 1e20), ("9" * 400, math.inf), ("-" + "9" * 400, -math.inf)):
        number = read_json(digits, 10**6)
        assert type(number) is float and number == value
    assert read_json("1e999", 10) == math.inf and math.isnan(read_json("NaN", 10))
