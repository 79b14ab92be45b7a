"""What a comparison asks, and what it can tell, in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tests.helpers import compared
from umbel.simulations.compare.comparison import Comparison
from umbel.simulations.compare.verdict import question, verdict

NOISE = (0.0, 0.011, -0.007, 0.004, -0.002, 0.009, -0.013, 0.006)


def of(**values: Sequence[float]) -> Comparison:
    """Strategies with these test accuracies, a seed each."""
    return compared({label: [{"test_last": each} for each in own] for label, own in values.items()})


def around(mean: float, num: int = 8, turned: int = 1) -> list[float]:
    return [mean + turned * each for each in NOISE[:num]]


def test_a_best_is_named_with_its_numbers_and_the_next() -> None:
    found = verdict(of(fedavg=around(0.5), moon=around(0.7, turned=-1), fedrep=around(0.6)))
    assert found == (
        "moon is better than all 2 others: 0.6990, and the next, fedrep, 0.6010 (p below .05 against each, corrected)."
    )
    assert verdict(of(a=around(0.5), b=around(0.7))).startswith("b is better than the other: 0.7010")


def test_who_is_told_from_the_first_alone_is_said_so() -> None:
    found = verdict(
        of(fedavg=around(0.5), moon=around(0.7), same=around(0.7, turned=-1), near=around(0.501, turned=-1))
    )
    assert "moon is better than fedavg by 0.2000" in found and "same is better than fedavg" in found
    assert "of near no difference to it can be told" in found and found.endswith(
        "pairs, nobody is told from every other."
    )
    worse = verdict(of(fedavg=around(0.7), moon=around(0.5), other=around(0.7, turned=-1)))
    assert "moon is worse than fedavg by 0.2000" in worse


def test_without_a_difference_that_is_told_nothing_is_claimed() -> None:
    found = verdict(of(fedavg=around(0.5), moon=around(0.5, turned=-1)))
    assert found.startswith("No difference to fedavg can be told from chance. The largest is moon's, -0.0020 ±")
    assert "seeds cannot" not in found


def test_too_few_seeds_are_named_whatever_the_difference() -> None:
    found = verdict(of(fedavg=around(0.1, 3), moon=around(0.9, 3)))
    assert found.startswith("No difference to fedavg can be told") and "3 seeds cannot give a p below 0.25" in found
    assert "one seed says nothing" in verdict(of(fedavg=[0.1], moon=[0.9]))


def test_a_verdict_marks_chance_as_seldom_as_its_tests_do() -> None:
    """Of 200 comparisons between equals, no more claims than the level and its spread allow."""
    source, claims = np.random.default_rng(7), 0
    for _ in range(200):
        draws = source.normal(size=(3, 8)).tolist()
        found = verdict(of(**dict(zip("abc", draws, strict=True))))
        claims += not found.startswith("No difference")
    assert claims <= 200 * 0.05 + 3 * (200 * 0.05 * 0.95) ** 0.5


def test_what_cannot_be_judged_has_no_verdict() -> None:
    assert "no verdict" in verdict(compared({"a": [{"acc": 0.1}], "b": [{"rsum_last": 3.0}]}))
    assert "nobody to compare" in verdict(of(fedavg=[0.5, 0.6]))


def test_unequal_costs_are_a_part_of_it() -> None:
    own = [{"test_last": each, "steps": 10.0} for each in around(0.5)]
    more = [{"test_last": each, "steps": 30.0} for each in around(0.7)]
    assert verdict(compared({"a": own, "b": more})).endswith("They did not cost the same, as the table's note says.")
    assert "did not cost" not in verdict(compared({"a": own, "b": own}))


def test_the_question_says_what_is_compared() -> None:
    both = of(fedavg=[0.5, 0.5], moon=[0.6, 0.6])
    assert question(both).startswith("Which of fedavg and moon has the highest test accuracy on ")
    assert question(both).endswith(" with equal rounds, 2 seeds?")
    assert "with equal flops" in question(dataclasses.replace(both, budget="flops"))
    assert question(of(fedavg=[0.5])).startswith("Which test accuracy has fedavg on ")
