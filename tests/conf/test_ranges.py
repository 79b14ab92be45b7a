"""Ranges of values: in words, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen

from umbel.conf.check import SECTIONS
from umbel.conf.schema import Experiment
from umbel.core.ranges import MayBeInfinite, OneOf, check_ranges, describe, limits_of
from umbel.core.refusal import Refusal
from umbel.strategies import registry


@dataclass(frozen=True)
class Values:
    count: Annotated[int, Ge(1)] = 1
    rate: Annotated[float, Gt(0)] = 1.0
    share: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    part: Annotated[float, Le(1), Lt(2)] = 0.0
    kind: Annotated[str, OneOf("plain", "other")] = "plain"
    power: Annotated[int, OneOf(1, 2)] = 1
    names: Annotated[list[str], MinLen(1)] = field(default_factory=lambda: ["a"])
    patience: Annotated[float, Gt(0), MayBeInfinite()] = math.inf
    seed: Annotated[int | None, Ge(0)] = None
    free: float = 0.0
    weights: list[float] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


WRONG = [
    ("count", 0, "here.count should be at least 1, found 0."),
    ("count", "many", "here.count should be a number, at least 1, found 'many'."),
    ("rate", 0.0, "here.rate should be above 0, found 0.0."),
    ("rate", math.nan, "here.rate should be above 0 and finite, found nan."),
    ("rate", math.inf, "here.rate should be above 0 and finite, found inf."),
    ("share", 1.0, "here.share should be at least 0 and below 1, found 1.0."),
    ("share", -0.1, "here.share should be at least 0 and below 1, found -0.1."),
    ("part", 1.5, "here.part should be at most 1 and below 2, found 1.5."),
    ("kind", "pain", "here.kind should be one of plain, other, found 'pain'. Did you mean 'plain'?"),
    ("power", 3, "here.power should be one of 1, 2, found 3."),
    ("names", [], "here.names should have at least one entry, found []."),
    ("patience", math.nan, "here.patience should be above 0 and no NaN, found nan."),
    ("patience", 0.0, "here.patience should be above 0, found 0.0."),
    ("seed", -1, "here.seed should be at least 0, found -1."),
    ("free", math.nan, "here.free should be finite, found nan."),
    ("free", -math.inf, "here.free should be finite, found -inf."),
    ("weights", [1.0, math.nan], "here.weights should be finite, found [1.0, nan]."),
]


@pytest.mark.parametrize(("name", "value", "text"), WRONG, ids=[f"{name}={value}" for name, value, _ in WRONG])
def test_a_value_out_of_its_range_is_refused_with_its_key(name, value, text):
    with pytest.raises(Refusal) as caught:
        check_ranges(Values(**{name: value}), "here")
    assert str(caught.value) == text and caught.value.key == f"here.{name}"


def test_what_is_in_its_range_is_not():
    check_ranges(Values(), "here")
    check_ranges(Values(seed=0, share=0.999, power=2, kind="other", free=-1e300, rate=1e-300), "here")


def test_limits_in_words():
    words = {name: describe(limits) for name, limits in limits_of(Values).items()}
    assert words["share"] == "at least 0 and below 1" and words["kind"] == "one of plain, other"
    assert words["names"] == words["free"] == ""


@pytest.mark.parametrize("section", SECTIONS)
def test_every_default_is_in_its_range(section):
    check_ranges(getattr(Experiment(), section), section)


@pytest.mark.parametrize("name", registry.names())
def test_every_number_of_a_strategy_has_a_range(name):
    kind = registry.find(name).config_class
    check_ranges(kind(), "strategy")
    numbers = [key for key, default in registry.options(name).items() if type(default) in (int, float)]
    assert all(describe(limits_of(kind)[key]) for key in numbers)
