"""Statistics over seeds: closed forms, other implementations, and how often they err."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tests.helpers import compared as comparison_of
from umbel.simulations.compare.statistics import (
    between_all,
    compared,
    holm,
    interquartile_mean,
    interval,
    paired_p,
    seeds_needed,
    smallest_p,
)

VALUES = {
    "a": [0.61, 0.64, 0.58, 0.66, 0.60, 0.63, 0.59],
    "b": [0.66, 0.65, 0.64, 0.69, 0.67, 0.62, 0.66],
    "c": [0.70, 0.72, 0.69, 0.75, 0.71, 0.74, 0.70],
}


def by_hand(first: list[float], second: list[float]) -> float:
    """All choices of signs, counted in whole hundredths."""
    differences = [round(100 * (x - y)) for x, y in zip(first, second, strict=True)]
    sums = [sum(sign * each for sign, each in zip(signs, differences, strict=True))
            for signs in itertools.product((-1, 1), repeat=len(differences))]  # fmt: skip
    return sum(abs(each) >= abs(sum(differences)) for each in sums) / len(sums)


@pytest.mark.parametrize("pair", list(itertools.permutations(VALUES, 2)))
def test_the_permutation_test_counts_signs(pair: tuple[str, str]) -> None:
    first, second = VALUES[pair[0]], VALUES[pair[1]]
    assert paired_p(first, second) == pytest.approx(by_hand(first, second), abs=1e-12)


def test_ties_that_only_rounding_breaks_are_ties() -> None:
    # 0.1 + 0.2 is not 0.3 in floating point; as differences they are equal, and each choice of two signs is as extreme.
    assert paired_p([0.3, 0.1 + 0.2], [0.0, 0.0]) == 0.5
    assert paired_p([0.7, 0.7], [0.7, 0.7]) == 1.0


@pytest.mark.parametrize("num_seeds", range(2, 9))
def test_the_smallest_p_is_that_of_a_difference_in_every_seed(num_seeds: int) -> None:
    assert paired_p([1.0] * num_seeds, [0.0] * num_seeds) == smallest_p(num_seeds) == 2 / 2**num_seeds


def test_how_many_seeds_a_family_needs() -> None:
    assert [seeds_needed(tests) for tests in (1, 2, 3, 6, 15)] == [6, 7, 7, 8, 10]
    for tests in (1, 3, 15):
        assert tests * smallest_p(seeds_needed(tests)) < 0.05 <= tests * smallest_p(seeds_needed(tests) - 1)


# What statsmodels 0.15 (`multipletests(..., method="holm")`) gives.
HOLM = [
    ([0.01, 0.02, 0.04], [0.03, 0.04, 0.04]),
    ([0.04, 0.01, 0.03, 0.005], [0.06, 0.03, 0.06, 0.02]),
    ([0.2, 0.015625, 0.015625, 0.9, 0.03125], [0.4, 0.078125, 0.078125, 0.9, 0.09375]),
    ([0.6, 0.5], [1.0, 1.0]),
    ([0.03], [0.03]),
]


@pytest.mark.parametrize(("ps", "corrected"), HOLM)
def test_holm_is_that_of_statsmodels(ps: list[float], corrected: list[float]) -> None:
    assert holm(ps) == pytest.approx(corrected, abs=1e-12)


def test_a_family_is_corrected_together() -> None:
    every = compared({pair: (VALUES[pair[0]], VALUES[pair[1]]) for pair in (("b", "a"), ("c", "a"), ("c", "b"))})
    assert [each.corrected for each in every.values()] == holm([each.p for each in every.values()])


def test_differences_by_their_formulas() -> None:
    each = between_all(VALUES)["b", "a"]
    differences = np.subtract(VALUES["b"], VALUES["a"])
    assert each.mean == pytest.approx(differences.mean(), abs=1e-12)
    assert each.error == pytest.approx(stats.sem(differences), abs=1e-12)
    assert each.effect == pytest.approx(differences.mean() / differences.std(ddof=1), abs=1e-12)
    above = [(x > y) + 0.5 * (x == y) for x in VALUES["b"] for y in VALUES["a"]]
    assert each.improvement == pytest.approx(np.mean(above), abs=1e-12)
    turned = between_all(VALUES)["a", "b"]
    assert (turned.mean, turned.effect, turned.p) == (-each.mean, -each.effect, each.p)
    assert turned.improvement == pytest.approx(1 - each.improvement, abs=1e-12)


def test_equal_differences_have_no_effect_size() -> None:
    each = compared({("a", "b"): ([0.9, 0.8, 0.7], [0.8, 0.7, 0.6])})["a", "b"]
    assert math.isnan(each.effect) and each.mean == pytest.approx(0.1)


def test_intervals_and_means() -> None:
    low, high = interval(VALUES["a"])
    assert low < np.mean(VALUES["a"]) < high
    assert interval(VALUES["a"]) == (low, high), "the same whenever it is made"
    halved = interval([value / 2 for value in VALUES["a"]])
    assert halved == pytest.approx((low / 2, high / 2), abs=1e-12)
    assert interval([0.5] * 4) == (0.5, 0.5)
    assert all(math.isnan(end) for end in interval([0.1, 0.2, 0.3]))
    assert interquartile_mean([0.0, 1.0, 3.0, 100.0]) == 2.0
    assert math.isnan(interquartile_mean([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("values", [([1.0], [1.0, 2.0]), ([], []), ([math.nan, 1.0], [1.0, 2.0])])
def test_what_has_no_pairs_is_refused(values: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match=r"Pairs need|finite"):
        paired_p(*values)


def marked(num_seeds: int, num_strategies: int, trials: int, gain: float = 0.0) -> float:
    """Return how often a comparison marks anything; the last strategy is above all others by `gain` deviations."""
    rng = np.random.default_rng(1000 * num_seeds + num_strategies)
    marks = 0
    for _ in range(trials):
        partition = rng.normal(0, 2, num_seeds)  # what a seed does to all strategies
        values = 0.5 + 0.01 * (partition + rng.normal(0, 1, (num_strategies, num_seeds)))
        values[-1] += 0.01 * gain
        runs = {str(number): [{"test_last": value} for value in each] for number, each in enumerate(values.tolist())}
        comparison = comparison_of(runs)
        told = any(each.is_told for each in comparison.differences("test_last").values())
        marks += told or comparison.best("test_last") is not None
    return marks / trials


@pytest.mark.parametrize("num_strategies", [2, 3, 6])
@pytest.mark.parametrize(
    ("num_seeds", "trials"),
    [(3, 5), (7, 8), *(pytest.param(n, 1000, marks=pytest.mark.exhaustive) for n in (2, 3, 5, 10))],
)
def test_nothing_is_marked_between_equals_more_often_than_it_says(
    num_seeds: int, trials: int, num_strategies: int
) -> None:
    # The star and the differences to the reference are two families of 5 %, of which the star needs all of its tests.
    bound = 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    rate = marked(num_seeds, num_strategies, trials)
    assert rate <= bound
    if num_seeds < 6:
        assert rate == 0


@pytest.mark.exhaustive
def test_a_difference_is_told_when_there_are_seeds_enough() -> None:
    rates = [marked(num_seeds, 2, 300, gain=1.0) for num_seeds in (5, 10, 20)]
    assert rates[0] == 0 and rates[0] < rates[1] < rates[2] and rates[2] > 0.75
