"""Statistics over settings: a published example, SciPy, and how often nothing is found where nothing is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from umbel.simulations.compare.across import critical_difference, profiles, ranking, ranks, settings_needed

# Demsar (2006), table 6: ranks of C4.5 as it is, with m tuned, with cf tuned, and with both, on 14 data sets.
DEMSAR = {
    "C4.5": [4, 1, 4, 4, 4, 1, 3, 2.5, 4, 2.5, 4, 3, 4, 3],
    "m": [3, 2, 1, 1, 2, 2.5, 2, 2.5, 3, 2.5, 2.5, 2, 1, 1],
    "cf": [2, 3, 2, 3, 3, 4, 4, 4, 2, 2.5, 1, 4, 2, 4],
    "m+cf": [1, 4, 3, 2, 1, 2.5, 1, 1, 1, 2.5, 2.5, 1, 3, 2],
}
SCORES = {
    "a": [0.61, 0.72, 0.55, 0.80, 0.67, 0.71],
    "b": [0.64, 0.75, 0.58, 0.79, 0.70, 0.74],
    "c": [0.60, 0.70, 0.58, 0.75, 0.66, 0.70],
}


def test_the_published_example() -> None:
    """Average ranks, Friedman's 9.28 and the critical difference 1.25, as the paper has them."""
    found = ranking(DEMSAR, aim=-1)
    assert [round(each, 3) for each in found.mean_ranks.values()] == [3.143, 2.0, 2.893, 1.964]
    N, k = 14, 4
    squares = sum(each**2 for each in found.mean_ranks.values())
    plain = 12 * N / (k * (k + 1)) * (squares - k * (k + 1) ** 2 / 4)
    assert round(plain, 2) == 9.28
    # The paper's is without the correction for ties, by which SciPy divides: 1 - sum(t^3 - t) / (N k (k^2 - 1)).
    ties = sum(t**3 - t for row in zip(*DEMSAR.values(), strict=True) for t in map(row.count, set(row)))
    assert found.statistic == pytest.approx(plain / (1 - ties / (N * k * (k**2 - 1))), abs=1e-12)
    assert round(found.critical_difference, 2) == 1.25
    assert found.is_told and found.best is None and found.groups == [["m+cf", "m", "cf", "C4.5"]]


def test_friedman_and_nemenyi_are_scipys() -> None:
    found = ranking(SCORES)
    by_scipy = stats.friedmanchisquare(*SCORES.values())
    assert found.statistic == pytest.approx(by_scipy.statistic, abs=1e-12)
    assert found.p == pytest.approx(by_scipy.pvalue, abs=1e-12)
    # Stored: 6 settings, ranks summing to 12, 7.5 and 16.5, one tie of two.
    assert found.mean_ranks == pytest.approx({"a": 12 / 6, "b": 7.5 / 6, "c": 16.5 / 6}, abs=1e-12)
    ties = 1 - (2**3 - 2) / (6 * 3 * (3**2 - 1))
    plain = 12 * 6 / (3 * 4) * ((12 / 6) ** 2 + (7.5 / 6) ** 2 + (16.5 / 6) ** 2 - 12)
    assert found.statistic == pytest.approx(plain / ties, abs=1e-12)
    error = math.sqrt(3 * 4 / (12 * 6))
    for (first, second), p in found.pairs.items():
        gap = abs(found.mean_ranks[first] - found.mean_ranks[second])
        assert p == pytest.approx(stats.studentized_range.sf(gap / error, 3, np.inf), abs=1e-12)
        assert (p < 0.05) == (gap > found.critical_difference)
    assert found.critical_difference == pytest.approx(3.314493 / math.sqrt(2) * math.sqrt(3 * 4 / (6 * 6)), abs=1e-5)
    assert found.best is None and found.groups == [["b", "a"], ["a", "c"]] and found.is_apart("c", "b")


def test_two_strategies_are_told_by_their_signs() -> None:
    two = {"a": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], "b": [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.7]}
    found = ranking(two)  # six ahead, one tie: 2 / 2^6
    assert found.p == pytest.approx(2 / 2**6) and found.best == "b" and found.statistic == 0
    assert ranking({label: values[:5] for label, values in two.items()}).best is None


def test_who_failed_has_the_last_rank() -> None:
    table = ranks({"a": [0.5, math.nan], "b": [0.4, math.nan], "c": [math.nan, 0.1]})
    assert table.tolist() == [[1, 2, 3], [2.5, 2.5, 1]]
    assert ranks({"a": [0.5], "b": [0.4]}, aim=-1).tolist() == [[2, 1]]


def test_equals_are_no_difference() -> None:
    found = ranking({label: [0.5] * 8 for label in "abc"})
    assert (found.statistic, found.p, found.best) == (0.0, 1.0, None) and found.groups == [["a", "b", "c"]]
    with pytest.raises(ValueError, match="One strategy"):
        ranking({"a": [0.5]})
    with pytest.raises(ValueError, match="score of each"):
        ranking({"a": [0.5], "b": []})


@pytest.mark.parametrize("num_strategies", [2, 3, 5])
def test_so_many_settings_are_needed_and_one_less_tells_nothing(num_strategies: int) -> None:
    needed = settings_needed(num_strategies)
    for num_settings, told in ((needed, True), (needed - 1, False)):
        same = {str(number): [float(number)] * num_settings for number in range(num_strategies)}
        found = ranking(same)
        pairs = itertools.combinations(same, 2)
        assert any(found.is_apart(first, second) for first, second in pairs) == told
    assert critical_difference(40, num_strategies) == pytest.approx(critical_difference(10, num_strategies) / 2)


def test_pairs_are_told_apart_no_more_often_than_they_say() -> None:
    """Between equals, of few settings, where Friedman's chi-squared alone errs more often than it says."""
    rng, trials = np.random.default_rng(0), 400
    wrong = 0
    for _ in range(trials):
        found = ranking(dict(zip("abc", rng.normal(size=(3, 4)).tolist(), strict=True)))
        wrong += any(found.is_apart(*pair) for pair in found.pairs)
    assert wrong / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_profiles_count_how_near_each_comes() -> None:
    curves = profiles({"a": [0.0, 0.0, 0.2], "b": [0.1, 0.1, 0.0], "c": [math.inf, 0.3, 0.3]})
    assert [each.tolist() for each in curves["a"]] == [[0, 0.2], [2 / 3, 1]]
    assert [each.tolist() for each in curves["b"]] == [[0, 0.1], [1 / 3, 1]]
    assert [each.tolist() for each in curves["c"]] == [[0, 0.3], [0, 2 / 3]]  # what failed is never near
