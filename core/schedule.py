"""When a sequence of tasks moves on, and at what a run ends before its last round: a metric, or what it has cost."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass

from umbel.core.refusal import Refusal

KEY = "run.until"
BUDGET = "run.budget"
COSTS = ("steps", "examples", "flops", "bytes", "seconds")
_FORM = re.compile(r"\s*([^\s<>=]+)\s*(>=|<=)\s*(\S+)\s*")
_SIDES = ("validation/", "clients/validation/")


@dataclass(frozen=True)
class Schedule:
    """Tasks one after the other, each for the same number of rounds; the last goes on for as long as there are any.

    Attributes:
        num_tasks: T; 1 where there is no sequence.
        rounds_per_task: Rounds of each task; 0 trains on all tasks at once.
    """

    num_tasks: int = 1
    rounds_per_task: int = 0

    @property
    def is_sequence(self) -> bool:
        """Whether there is more than one task, one after the other."""
        return self.num_tasks > 1 and self.rounds_per_task > 0

    def task(self, round_: int) -> int:
        """Return the task of a round, from 0; rounds are counted from 1. Always 0 without a sequence."""
        if not self.is_sequence:
            return 0
        return min(max(round_ - 1, 0) // self.rounds_per_task, self.num_tasks - 1)

    def ends_task(self, round_: int) -> bool:
        """Say whether a round is the last of its task (of the last task: its last planned round)."""
        return (
            self.is_sequence
            and round_ > 0
            and round_ % self.rounds_per_task == 0
            and round_ <= self.num_tasks * self.rounds_per_task
        )

    def hands_over(self, round_: int) -> bool:
        """Say whether a round is the last of a task that another follows."""
        return self.ends_task(round_) and self.task(round_) < self.num_tasks - 1


@dataclass(frozen=True)
class Until:
    """A bound on a metric.

    Attributes:
        metric: Its name in the evaluation's results.
        is_above: Whether it should be at least the bound; else at most.
        bound: The bound.
    """

    metric: str
    is_above: bool
    bound: float

    def is_met(self, metrics: Mapping[str, float]) -> bool:
        """Say whether an evaluation meets the bound; one that has no such metric does not."""
        if self.metric not in metrics:
            return False
        return bool((operator.ge if self.is_above else operator.le)(metrics[self.metric], self.bound))

    def check(self, metrics: Mapping[str, float], *, is_first: bool) -> None:
        """Refuse a name that no evaluation will have.

        Args:
            metrics: What was measured. Clients may all have failed this time, or a metric have no value.
            is_first: Whether nothing was measured before.

        Raises:
            Refusal: The first evaluation of that side has no such metric.
        """
        side = next(start for start in _SIDES if self.metric.startswith(start))
        known = sorted(name for name in metrics if name.startswith(side))
        if is_first and known and self.metric not in metrics:
            raise Refusal(
                f"{KEY}: the evaluation has no {self.metric!r}.", key=KEY, remedy=f"Name one of {', '.join(known)}."
            )


def parse_until(text: str) -> Until:
    """Read `validation/accuracy>=0.9`.

    Raises:
        Refusal: It is not of that form, or a metric of test data, by which nothing may be chosen.
    """
    form = _FORM.fullmatch(text)
    try:
        bound = float(form[3]) if form else math.nan
    except ValueError:
        bound = math.nan
    if form is None or not math.isfinite(bound):
        raise Refusal(
            f"{KEY}={text} should be a metric and a bound.", key=KEY, remedy="Write it as validation/accuracy>=0.9."
        )
    if not form[1].startswith(_SIDES):
        raise Refusal(
            f"{KEY}={text}: a run ends by validation data only; an end that test data choose flatters it.",
            key=KEY,
            remedy=f"Name a metric that begins with {' or '.join(_SIDES)}.",
        )
    return Until(form[1], form[2] == ">=", bound)


@dataclass(frozen=True)
class Budget:
    """What a run may cost.

    Attributes:
        cost: Which of `COSTS`.
        most: How much of it: steps, examples, floating-point operations, bytes, or seconds.
    """

    cost: str
    most: float

    def is_spent(self, cost: float, num_rounds: int) -> bool:
        """Say whether no later round would come nearer, if the next costs what the rounds before did on average.

        Args:
            cost: What the run has cost of it.
            num_rounds: How many rounds that was.
        """
        return cost > 0 and cost + cost / num_rounds / 2 >= self.most


def parse_budget(text: str) -> Budget:
    """Read `steps=2000`.

    Raises:
        Refusal: It is not of that form, or no number above 0.
    """
    cost, _, number = (part.strip() for part in text.partition("="))
    try:
        most = float(number)
    except ValueError:
        most = math.nan
    if cost not in COSTS or not 0 < most < math.inf:
        raise Refusal(
            f"{BUDGET}={text} should be one of {', '.join(COSTS)}, and how much of it, above 0.",
            key=BUDGET,
            remedy="Write it as steps=2000.",
        )
    return Budget(cost, most)
