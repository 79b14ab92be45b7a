"""A bound on a metric at which a run has what it was for: `validation/accuracy>=0.9`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass

from umbel.core.refusal import Refusal

KEY = "run.until"
_FORM = re.compile(r"\s*([^\s<>=]+)\s*(>=|<=)\s*(\S+)\s*")
_SIDES = ("validation/", "clients/validation/")


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
        """Say whether an evaluation meets the bound.

        Raises:
            Refusal: It has no such metric.
        """
        if self.metric not in metrics:
            known = sorted(name for name in metrics if name.startswith(_SIDES))
            raise Refusal(
                f"{KEY}: the evaluation has no {self.metric!r}.",
                key=KEY,
                remedy=f"Name one of {', '.join(known)}." if known else "Evaluate on validation data.",
            )
        return bool((operator.ge if self.is_above else operator.le)(metrics[self.metric], self.bound))


def parse(text: str) -> Until:
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
