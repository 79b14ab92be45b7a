"""Whatever is written: an experiment that is read back to the same, or one refusal."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings

from tests.conf import texts
from umbel import run
from umbel.conf.load import as_yaml, known_keys, load, portable_hash
from umbel.conf.schema import Experiment
from umbel.core.refusal import Refusal
from umbel.server.errors import RunStoppedError

BOUNDED = settings(
    derandomize=True, database=None, deadline=None, max_examples=1000, suppress_health_check=list(HealthCheck)
)


def composed(*arguments, **named) -> Experiment | None:
    """What is composed, or nothing where it is refused in words."""
    try:
        made = load(*arguments, **named)
    except Refusal as refusal:
        assert refusal.reason and str(refusal).strip() and len(str(refusal)) < 6000
        return None
    again = load("again", (), as_yaml(made))
    assert again == made and portable_hash(again) == portable_hash(made)
    return made


@BOUNDED
@given(texts.overrides, texts.strategies)
def test_overrides_compose_or_are_refused(overrides, strategy):
    composed("x", overrides, "data: {name: digits}\nmodel: {name: linear}\n", strategy=strategy)


@settings(BOUNDED, max_examples=100)
@given(texts.yaml_texts)
def test_yaml_composes_or_is_refused(text):
    composed("x", (), text)


@settings(BOUNDED, max_examples=30)
@given(texts.experiments, texts.overrides)
def test_shipped_experiments_with_overrides_compose_or_are_refused(name, overrides):
    composed(name, overrides)


SMALL = (
    *("data.num_clients=3", "data.max_train=120", "data.max_test=30", "data.partition=iid", "data.encoder=pixels"),
    *("model.name=linear", "run.rounds=1", "client.max_steps=2", "engine.name=inline", "client.device=cpu"),
)


def accepted(strategy: str, count: int) -> list[str]:
    """Overrides that the loader takes, drawn by a fixed seed, at values that few would choose."""
    draws = random.Random(strategy)
    set_already = {override.partition("=")[0] for override in (*SMALL, "run.results", "run.name")}
    keys = [key for key in known_keys(strategy) if key.startswith(("client.", "strategy.", "run.", "evaluate."))]
    taken: list[str] = []
    while len(taken) < count:
        override = f"{draws.choice(sorted(set(keys) - set_already))}={draws.choice(texts.NUMBERS)}"
        if composed("digits", [*SMALL, f"strategy.name={strategy}", override]):
            taken.append(override)
    return taken


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fedprox", "fedopt", "ggeur", "scaffold"])
def test_what_is_taken_runs_a_round_or_says_why_not(strategy, tmp_path):
    for number, override in enumerate(accepted(strategy, 3)):
        place = f"run.results={tmp_path / str(number)}"
        try:
            result = run("digits", *SMALL, f"strategy.name={strategy}", override, place)
        except Refusal:
            assert not list((tmp_path / str(number)).glob("*")), override
        except RunStoppedError as stopped:  # no client had a good reply, and each says why
            assert "client 0" in str(stopped), override
        else:
            assert result.summary["rounds"] == 1 and len(result.summary["weights_sha256"]) == 64, override
