"""Ranges of values: in words, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen

from umbel.conf.check import SECTIONS
from umbel.conf.errors import ExperimentError
from umbel.conf.keys import known_keys
from umbel.conf.load import load
from umbel.conf.schema import Experiment
from umbel.conf.typed import hints_of
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
    whole: int = 0
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
    ("free", 1e39, "here.free should be within 3.4e+38, found 1e+39."),
    ("whole", 2**63, "here.whole should be of 64 bits, found 9223372036854775808."),
    ("whole", -(2**63) - 1, "here.whole should be of 64 bits, found -9223372036854775809."),
    ("options", {"a": [{"b": -math.inf}]}, "here.options should be finite, found {'a': [{'b': -inf}]}."),
    ("options", {"a": 2**64}, "here.options should be of 64 bits, found {'a': 18446744073709551616}."),
]


@pytest.mark.parametrize(("name", "value", "text"), WRONG, ids=[f"{name}={value}" for name, value, _ in WRONG])
def test_a_value_out_of_its_range_is_refused_with_its_key(name, value, text):
    with pytest.raises(Refusal) as caught:
        check_ranges(Values(**{name: value}), "here")
    assert str(caught.value) == text and caught.value.key == f"here.{name}"


def test_what_is_in_its_range_is_not():
    check_ranges(Values(), "here")
    check_ranges(Values(seed=0, share=0.999, power=2, kind="other", free=-1e30, whole=2**63 - 1, rate=1e-300), "here")


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


def numeric_keys() -> list[tuple[str, str]]:
    """Every key of every strategy that takes a number: (strategy, key)."""
    sections = hints_of(Experiment)
    shared = [
        (registry.DEFAULT, f"{section}.{name}")
        for section in SECTIONS
        for name, hint in hints_of(sections[section]).items()
        if hint in (int, float, int | None, float | None)
    ]
    return shared + [
        (strategy, f"strategy.{name}")
        for strategy in registry.names()
        for name, hint in hints_of(registry.find(strategy).config_class).items()
        if hint in (int, float, int | None, float | None)
    ]


NO_NUMBERS = (".nan", ".inf", "-.inf", "nan", "inf", "1e39", "-1e39", "1e400", "9" * 400)


@pytest.mark.parametrize(("strategy", "key"), numeric_keys(), ids=str)
def test_no_key_takes_what_no_table_holds(strategy, key):
    assert key in known_keys(strategy)
    for value in NO_NUMBERS:
        with pytest.raises(ExperimentError) as caught:
            load("x", [f"{key}={value}"], "data: {name: digits}", strategy=strategy)
        assert caught.value.key == key


EDGES = [
    ("evaluate.batch_size", "1", ("0", "-1")),
    ("run.threads", "1024", ("0", "1025", "100000")),
    ("run.seed", "9223372036854775807", ("9223372036854775808",)),
    ("run.seed", "-1", ("-9223372036854775809",)),
    ("data.seed", "9223372036854775807", ("9223372036854775808",)),
    ("engine.deadline_seconds", "31536000", ("0", "-1", "31536001", "1e30")),
    ("engine.client_seconds", "0.5", ("0", "-1", "31536001")),
    ("engine.node_timeout_seconds", "31536000", ("0", "-1", "31536001")),
    ("engine.gpus_per_worker", "1", ("-0.1", "1.5")),
    ("engine.workers", "4096", ("-1", "4097")),
    ("engine.nodes", "1024", ("0", "1025")),
    ("client.lr_decay", "0", ("-1",)),
    ("client.momentum", "0.9", ("-0.1",)),
    ("client.weight_decay", "0", ("-1e-9",)),
    ("data.text_length", "65536", ("0", "65537")),
    ("data.vocabulary", "1000000", ("0", "1000001")),
    ("data.encoder_size", "4096", ("-1", "4097")),
]


@pytest.mark.parametrize(("key", "taken", "refused"), EDGES, ids=[f"{key}={taken}" for key, taken, _ in EDGES])
def test_edges_of_ranges(key, taken, refused):
    load("x", [f"{key}={taken}"], "data: {name: digits}")
    for value in refused:
        with pytest.raises(ExperimentError, match=rf"{key}(:| should be)"):
            load("x", [f"{key}={value}"], "data: {name: digits}")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.sizes.width=.nan", "model.sizes"),
        ("model.operators={wconv: {density: [.inf]}}", "model.operators"),
        ("data.options.noise=-.inf", "data.options"),
        ("strategy.base_options={mu: .nan}", "strategy.base_options"),
    ],
)
def test_numbers_within_mappings_are_finite(override, key):
    with pytest.raises(ExperimentError, match="should be finite") as caught:
        load("x", [override], "data: {name: synthetic}\nstrategy: {name: ggeur}")
    assert caught.value.key == key


@pytest.mark.parametrize("option", ["eta=.nan", "eta=true", "eta=1e-3x", "eta=010", "tau=.inf", "eta=[1]"])
def test_options_of_flowers_strategies_are_checked(option):
    from umbel.server.flower.strategies import check

    with pytest.raises(ExperimentError, match=r"strategy\.(options|eta|tau)"):
        check(load("x", [f"strategy.{option}"], "strategy: {name: 'flwr:FedAdam'}"))
    check(load("x", ["strategy.eta=1e-3"], "strategy: {name: 'flwr:FedAdam'}"))
