"""Ten thousand answers with a change: no other client fails, and what is taken is within what its clients declared."""

from __future__ import annotations

import resource
from collections import Counter

import pytest

from tests.server.hostile.federation import Case, cases, run, wrong
from tests.server.hostile.mutations import KINDS


def check(chosen: list[Case]) -> Counter[str]:
    """Run cases; return how many of each kind cost their node a client."""
    failed: Counter[str] = Counter()
    for case in chosen:
        folded, report = run(case)
        assert not (problem := wrong(case, folded, report)), f"{case}: {problem}"
        failed[case.kind] += bool(report.failures)
    return failed


def test_a_sample_of_changes() -> None:
    failed = check(cases(SAMPLE))
    assert all(failed[kind] > SAMPLE / len(KINDS) / 2 for kind in KINDS)  # most changes are no honest answers


SAMPLE = 1000


@pytest.mark.slow
@pytest.mark.exhaustive  # a minute
def test_ten_thousand_changes_and_the_memory_that_they_take() -> None:
    check(cases(60, seed=1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check(cases(10_000, seed=1))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_without_a_change_nobody_fails() -> None:
    """What the others are compared with."""
    for name in ("mean", "uniform", "sum", "moments", "collect"):
        folded, report = run(Case(name, "nothing", 0))
        assert folded is not None and folded.num_replies == 9 and not report.failures
