"""What runs over seeds can tell: intervals, paired tests with a correction, effect sizes.

Legend: n seeds, shared by all strategies, so that values are paired. Nothing here is fitted: the tests are exact, or
name the seed of their resampling, so that a table is the same whenever it is made.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Pair = tuple[str, str]
Values = NDArray[np.float64]
LEVEL = 0.05  # a corrected p below it is a difference
_RESAMPLES = 9999
_ROUNDING = 1e-12  # what differences of equal size differ by is rounding
_EXACT = 13  # 2^13 signs are fewer than the resamples


@dataclass(frozen=True)
class Difference:
    """How one strategy differs from another, paired by seed.

    Attributes:
        mean: Mean of the differences.
        error: Standard error of that mean; NaN for one seed.
        p: Two-sided p of the paired permutation test, uncorrected.
        corrected: p after Holm's correction over the family that was asked about.
        effect: Mean over standard deviation of the differences (Cohen's d for pairs); NaN where that is 0 or n is 1.
        improvement: Probability of improvement: share of pairs of seeds in which the first is above, ties half.
    """

    mean: float
    error: float
    p: float
    corrected: float
    effect: float
    improvement: float

    @property
    def is_told(self) -> bool:
        """Whether the corrected p is below `LEVEL`."""
        return self.corrected < LEVEL


def smallest_p(num_seeds: int) -> float:
    """Return the smallest two-sided p that so many pairs can give: of 2^n ways to choose signs, two are extreme."""
    return 2.0 ** (1 - num_seeds) if num_seeds else 1.0


def seeds_needed(num_tests: int) -> int:
    """Return how many seeds a family of so many tests needs before any can fall below `LEVEL` after correction."""
    return next(n for n in itertools.count(1) if smallest_p(n) * num_tests < LEVEL)


def paired_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p of the paired permutation test of the mean difference.

    Under the null hypothesis the two are exchangeable within a seed, so that every choice of signs of the differences
    is as likely. All 2^n are tried up to 13 seeds, a fixed sample of 9,999 beyond.

    Raises:
        ValueError: The lengths differ, there is no pair, or a value is not finite.
    """
    differences = _differences(first, second)
    return _signs_p(tuple(differences.tolist()))


@lru_cache(maxsize=4096)
def _signs_p(values: tuple[float, ...]) -> float:
    """Return the p of some differences; a table asks for the same ones again and again."""
    differences = np.asarray(values)
    if len(differences) == 1 or not differences.any():
        return 1.0
    # Rounding must not decide whether another choice of signs is as extreme.
    scaled = np.round(differences / np.abs(differences).max(), 12)
    tested = stats.permutation_test(
        (scaled,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2 ** len(scaled) if len(scaled) <= _EXACT else _RESAMPLES,
        alternative="two-sided",
        rng=np.random.default_rng(0),
    )
    return float(tested.pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values after Holm's step-down correction (Holm 1979), in the order given.

    The smallest counts as many times as there are tests, the next one time less, and so on; none falls below one that
    was smaller before.
    """
    order = np.argsort(ps, kind="stable")
    stepped = np.maximum.accumulate(np.asarray(ps)[order] * np.arange(len(ps), 0, -1))
    corrected = np.empty(len(ps))
    corrected[order] = np.minimum(stepped, 1)
    return [float(p) for p in corrected]


def compared(
    pairs: Mapping[tuple[str, str], tuple[Sequence[float], Sequence[float]]],
) -> dict[tuple[str, str], Difference]:
    """Compare pairs of strategies, as one family of tests.

    Args:
        pairs: For each two names their values, one a seed, in the same order of seeds.

    Returns:
        The difference first minus second of each pair; p corrected by Holm's method over all of them.

    Raises:
        ValueError: As `paired_p`.
    """
    if not pairs:
        return {}
    ps = [paired_p(*values) for values in pairs.values()]
    corrected = holm(ps)
    return {
        names: _difference(first, second, p, after)
        for (names, (first, second)), p, after in zip(pairs.items(), ps, corrected, strict=True)
    }


def between_all(values: Mapping[str, Sequence[float]]) -> dict[Pair, Difference]:
    """Compare every two strategies, both ways round; each pair is tested once.

    Args:
        values: By strategy its values, one a seed, in the same order of seeds.

    Raises:
        ValueError: As `paired_p`.
    """
    once = compared({pair: (values[pair[0]], values[pair[1]]) for pair in itertools.combinations(values, 2)})
    turned = {
        (second, first): Difference(-each.mean, each.error, each.p, each.corrected, -each.effect, 1 - each.improvement)
        for (first, second), each in once.items()
    }
    return once | turned


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the bootstrap interval of the mean (bias-corrected and accelerated; Efron 1987) over seeds.

    With few seeds it is too narrow: below four it is not given, and both ends are NaN. Where all values are equal it is
    that value.

    Raises:
        ValueError: A value is not finite.
    """
    sample = _finite(values)
    if len(sample) < 4:
        return math.nan, math.nan
    if np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        ends = stats.bootstrap(
            (sample,),
            np.mean,
            confidence_level=confidence,
            n_resamples=_RESAMPLES,
            method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval
    return float(ends.low), float(ends.high)


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean of the middle half (Agarwal et al. 2021), NaN below four seeds, of which it would drop none.

    Raises:
        ValueError: A value is not finite.
    """
    sample = _finite(values)
    return float(stats.trim_mean(sample, 0.25)) if len(sample) >= 4 else math.nan


def _difference(first: Sequence[float], second: Sequence[float], p: float, corrected: float) -> Difference:
    differences = _differences(first, second)
    num_seeds, mean = len(differences), float(np.mean(differences))
    deviation = float(np.std(differences, ddof=1)) if num_seeds > 1 else math.nan
    above = stats.mannwhitneyu(first, second).statistic / num_seeds**2
    return Difference(
        mean,
        deviation / math.sqrt(num_seeds),
        p,
        corrected,
        mean / deviation if deviation > _ROUNDING * np.abs(differences).max() else math.nan,
        float(above),
    )


def _differences(first: Sequence[float], second: Sequence[float]) -> Values:
    ours, theirs = _finite(first), _finite(second)
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"Pairs need as many values of one as of the other, found {len(ours)} and {len(theirs)}.")
    return ours - theirs


def _finite(values: Sequence[float]) -> Values:
    sample = np.asarray(values, dtype=np.float64)
    if not np.isfinite(sample).all():
        raise ValueError(f"Statistics over seeds need finite values, found {list(values)}.")
    return sample
