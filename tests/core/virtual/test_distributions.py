"""What clients draw: by the seed alone, with the quantiles of the distribution that is named."""

from __future__ import annotations

import math
from statistics import median

import pytest

from umbel.core.refusal import Refusal
from umbel.core.virtual import distributions
from umbel.core.virtual.distributions import check, draw

LOGNORMAL = {"name": "lognormal", "median": 50.0, "sigma": 0.8}


@pytest.mark.parametrize(
    ("quantity", "at_a_quarter", "at_the_half", "at_three_quarters"),
    [
        ({"name": "uniform", "low": 2.0, "high": 6.0}, 3.0, 4.0, 5.0),
        # The quartiles of a standard normal are -+0.6745.
        (LOGNORMAL, 50 * math.exp(-0.8 * 0.67449), 50.0, 50 * math.exp(0.8 * 0.67449)),
        ({"name": "exponential", "mean": 3.0}, 3 * math.log(4 / 3), 3 * math.log(2), 3 * math.log(4)),
        ({"name": "choice", "values": [1.0, 7.0], "shares": [3, 2]}, 1.0, 1.0, 7.0),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_draws_have_the_quartiles_of_their_distribution(quantity, at_a_quarter, at_the_half, at_three_quarters):
    check(quantity, "speed")
    values = sorted(draw(quantity, 20_000, 3, "speed"))
    # An empirical quantile of 20,000 draws is off by a share of .0031 at most (one standard deviation).
    spread = values[int(0.765 * 20_000)] - values[int(0.735 * 20_000)]
    for share, expected in ((0.25, at_a_quarter), (0.5, at_the_half), (0.75, at_three_quarters)):
        assert abs(values[int(share * 20_000)] - expected) <= max(spread, 1e-12)


def test_draws_depend_on_seed_and_purpose_alone():
    drawn = draw(LOGNORMAL, 100, 3, "speed")
    assert drawn == draw(LOGNORMAL, 100, 3, "speed")
    assert drawn != draw(LOGNORMAL, 100, 4, "speed")
    assert drawn != draw(LOGNORMAL, 100, 3, "upload")
    assert abs(median(drawn) / 50 - 1) < 0.5


def test_numbers_are_everybodys_and_nothing_takes_no_time():
    assert draw(7, 3, 0, "speed") == (7.0, 7.0, 7.0)
    assert draw(None, 2, 0, "speed") == (math.inf, math.inf)


def test_no_draw_is_at_an_end_of_the_interval():
    drawn = distributions.shares(100_000, 0, "speed")
    assert 0 < min(drawn) < 1e-4 and 1 - 1e-4 < max(drawn) < 1


@pytest.mark.parametrize(
    ("quantity", "message"),
    [
        (0, "above 0, .* found 0"),
        (-3.0, r"above 0, .* found -3\.0"),
        (math.inf, "found inf"),
        (1e-300, "above 0, from 1e-09 to 1e"),
        ({"name": ["lognormal"], "median": 3, "sigma": 1}, "Unknown distribution"),
        ({"median": 3}, "a distribution with its name"),
        ({"name": "lognorml", "median": 3, "sigma": 1}, "Did you mean 'lognormal'"),
        ({"name": "lognormal", "median": 3}, "sigma is missing"),
        ({"name": "uniform", "low": 1, "high": 2, "mean": 2}, "mean is none of them"),
        ({"name": "lognormal", "median": -3, "sigma": 1}, r"speed\.median should be a number above 0"),
        ({"name": "lognormal", "median": 3, "sigma": -1}, r"speed\.sigma should be a number from 0 to 10"),
        ({"name": "uniform", "low": 3, "high": 2}, "low is above high"),
        ({"name": "exponential", "mean": "long"}, r"speed\.mean"),
        ({"name": "exponential", "mean": True}, r"speed\.mean"),
        ({"name": "choice", "values": []}, r"speed\.values is a list"),
        ({"name": "choice", "values": [1, 0]}, r"speed\.values should be a number above 0"),
        ({"name": "choice", "values": [1, 2], "shares": [1]}, "a share for each value"),
    ],
)
def test_what_is_no_distribution_is_refused(quantity, message):
    with pytest.raises(Refusal, match=message) as refused:
        check(quantity, "speed")
    assert refused.value.key.startswith("speed")
