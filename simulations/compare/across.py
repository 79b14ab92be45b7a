"""What several settings together can tell: ranks, Friedman's test, Nemenyi's critical difference, profiles.

Legend: N settings, k strategies. A strategy's score in a setting is its mean over seeds; the best has rank 1, equal
ones share the mean of their ranks, and who has no score (a run of theirs failed) shares the last ranks. Sources:
Friedman 1937; Nemenyi 1963, as Demsar 2006 (JMLR 7) has them for learners on data sets; profiles: Dolan and More 2002,
with differences in place of ratios.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from umbel.simulations.compare.statistics import LEVEL

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of strategies over settings, and what they can tell.

    Attributes:
        mean_ranks: By strategy, in the order given; 1 is best.
        num_settings: N.
        statistic: Friedman's chi-squared, corrected for ties; of two in how many settings the first is ahead.
        p: Its p by k - 1 degrees of freedom; of two strategies that of the exact sign test; 1 where all are equal.
        critical_difference: Nemenyi's at `LEVEL`; NaN of two strategies.
        pairs: Nemenyi's p of each two, in the order given; of two strategies that of the sign test.
    """

    mean_ranks: dict[str, float]
    num_settings: int
    statistic: float
    p: float
    critical_difference: float
    pairs: dict[tuple[str, str], float]

    @property
    def is_told(self) -> bool:
        """Whether Friedman's test tells that not all are equal."""
        return self.p < LEVEL

    @property
    def ordered(self) -> list[str]:
        """The strategies from the best mean rank to the worst."""
        return sorted(self.mean_ranks, key=self.mean_ranks.__getitem__)

    def is_apart(self, first: str, second: str) -> bool:
        """Say whether two are told apart: Friedman's test tells that some are, and Nemenyi's that these are."""
        p = self.pairs[first, second] if (first, second) in self.pairs else self.pairs[second, first]
        return self.is_told and p < LEVEL

    @property
    def best(self) -> str | None:
        """The strategy of the best mean rank, where it is told apart from every other; else None."""
        first, *others = self.ordered
        return first if others and all(self.is_apart(first, other) for other in others) else None

    @property
    def groups(self) -> list[list[str]]:
        """The longest runs of the order in which nobody is told apart; of one strategy alone there is none."""
        ordered, found = self.ordered, list[list[str]]()
        for start in range(len(ordered)):
            end = start
            while end + 1 < len(ordered) and not self.is_apart(ordered[start], ordered[end + 1]):
                end += 1
            group = ordered[start : end + 1]
            if len(group) > 1 and not any(set(group) <= set(other) for other in found):
                found.append(group)
        return found


def ranks(scores: Mapping[str, Sequence[float]], aim: int = 1) -> Values:
    """Return the rank of each strategy in each setting [N, k].

    Args:
        scores: By strategy one score a setting, NaN for none.
        aim: 1 where more is better, -1 where less is.

    Raises:
        ValueError: There is no strategy or setting, or they have not equally many.
    """
    if not scores or not all(scores.values()) or len({len(each) for each in scores.values()}) != 1:
        raise ValueError(f"Ranks need a score of each strategy in each setting, found {dict(scores)}.")
    table_Nk = np.array([list(each) for each in scores.values()], dtype=np.float64).T
    return np.asarray(stats.rankdata(np.where(np.isnan(table_Nk), np.inf, -aim * table_Nk), axis=1), dtype=np.float64)


def ranking(scores: Mapping[str, Sequence[float]], aim: int = 1) -> Ranking:
    """Rank strategies over settings, and test whether the ranks are more than chance.

    Args:
        scores: By strategy one score a setting, NaN for none.
        aim: 1 where more is better, -1 where less is.

    Raises:
        ValueError: As `ranks`, or there is one strategy only.
    """
    ranks_Nk = ranks(scores, aim)
    num_settings, num_strategies = ranks_Nk.shape
    if num_strategies < 2:
        raise ValueError("One strategy has no rank among others.")
    labels = list(scores)
    means = dict(zip(labels, ranks_Nk.mean(0).tolist(), strict=True))
    if num_strategies == 2:
        ahead, behind = int((ranks_Nk[:, 0] < 1.5).sum()), int((ranks_Nk[:, 0] > 1.5).sum())
        p = float(stats.binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0
        return Ranking(means, num_settings, float(ahead), p, math.nan, {(labels[0], labels[1]): p})
    statistic, p = 0.0, 1.0
    if (np.ptp(ranks_Nk, axis=1) > 0).any():
        tested = stats.friedmanchisquare(*ranks_Nk.T)
        statistic, p = float(tested.statistic), float(tested.pvalue)
    error = _error(num_settings, num_strategies)
    pairs = {
        (first, second): float(
            stats.studentized_range.sf(abs(means[first] - means[second]) / error, num_strategies, np.inf)
        )
        for first, second in itertools.combinations(labels, 2)
    }
    return Ranking(means, num_settings, statistic, p, critical_difference(num_settings, num_strategies), pairs)


def critical_difference(num_settings: int, num_strategies: int) -> float:
    """Return by how much mean ranks of so many must differ at `LEVEL` (Nemenyi; infinitely many degrees of freedom)."""
    return _range(num_strategies) * _error(num_settings, num_strategies)


def settings_needed(num_strategies: int) -> int:
    """Return how many settings are needed before any two can be told apart, were the order the same in all of them."""
    if num_strategies == 2:
        return next(n for n in itertools.count(1) if 2.0 ** (1 - n) < LEVEL)
    largest = num_strategies - 1
    return next(
        n
        for n in itertools.count(2)
        if critical_difference(n, num_strategies) < largest and stats.chi2.sf(n * largest, largest) < LEVEL
    )


def profiles(regrets: Mapping[str, Sequence[float]]) -> dict[str, tuple[Values, Values]]:
    """Return the performance profile of each strategy: how often it comes within so much of the best.

    Args:
        regrets: By strategy, for each setting and seed, how far it is behind the best there, 0 for the best itself;
            infinity for a run that failed, which is never near.

    Returns:
        By strategy the differences [n] in ascending order, from 0 on, and the share of settings and seeds [n] in which
        it is no further behind.
    """
    found = {}
    for label, values in regrets.items():
        behind = np.asarray(values, dtype=np.float64)
        steps = np.unique(np.concatenate([[0.0], behind[np.isfinite(behind)]]))
        found[label] = (steps, np.asarray([(behind <= step).mean() for step in steps]))
    return found


def _error(num_settings: int, num_strategies: int) -> float:
    """Return the standard error of a mean rank among equals: the unit of the studentised range."""
    return math.sqrt(num_strategies * (num_strategies + 1) / (12 * num_settings))


@cache
def _range(num_strategies: int) -> float:
    """Return the studentised range that so many equals exceed with probability `LEVEL`."""
    return float(stats.studentized_range.ppf(1 - LEVEL, num_strategies, np.inf))
