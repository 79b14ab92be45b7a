"""Every strategy runs a round with every `_tiny32` model: hooks, memory, two heads, features, folds of its state."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from umbel import run
from umbel.models import names
from umbel.strategies import registry

TINY = tuple(name for name in names() if name.endswith("_tiny32"))
SET = "data.options={num_examples: 48, num_test: 6, num_classes: 3, image_size: 28, noise: 0.5, attributes: 4}"
SMALL = (
    *("data.name=synthetic", SET, "data.num_clients=2", "data.partition=iid", "data.client_test=0", "run.rounds=1"),
    *("client.epochs=0", "client.max_steps=1", "client.batch_size=4", "evaluate.clients=0", "checkpoint.every=0"),
)
TWO_TASKS = ("data.partition=permuted_tasks", "data.num_tasks=2", "data.rounds_per_task=1", "run.rounds=2")
OPTIONS = {
    "fedavg": (),
    "fedprox": ("strategy.mu=0.1",),
    "scaffold": (),
    "fedopt": ("strategy.momentum=0.9",),
    "fedbuff": ("strategy.buffer_size=1", "simulation.devices.speed=10"),
    "ggeur": ("strategy.refresh=1", "strategy.complete=all", "strategy.target=12"),
    "fot": TWO_TASKS,
    "fedloge": ("data.partition=long_tail", "data.imbalance=2"),
    "creamfl": (
        *("data.public=0.3", "data.text_encoder=bpe", "data.vocabulary=80", "data.text_length=6", "data.num_clients=3"),
        *("strategy.num_image=1", "strategy.num_text=1", "strategy.num_both=1", "strategy.dimension=8"),
        *("strategy.text_models=[gru]", "strategy.text_sizes={gru: {width: 8}}"),
        "strategy.server_text_sizes={width: 8, depth: 1, heads: 2}",
    ),
    "feddyn": (),
    "fednova": ("strategy.mu=0.1",),
    "moon": ("run.rounds=2",),
    "fedntd": (),
    "ditto": ("run.rounds=2",),
    "pfedme": ("strategy.inner_steps=2",),
    "apfl": ("run.rounds=2",),
    "fedrod": (),
    "creff": ("strategy.num_features=4", "strategy.match_steps=3", "strategy.retrain_steps=5"),
    "fedetf": (),
    "ccvr": ("strategy.num_virtual=4",),
    "fedper": (),
    "fedrep": ("strategy.head_epochs=1",),
    "lgfedavg": ("evaluate.clients=1",),
    "fedproto": ("run.rounds=2", "evaluate.clients=1"),
    "fedbabu": ("strategy.finetune_epochs=1", "evaluate.clients=1"),
    "ewc": TWO_TASKS,
    "lwf": TWO_TASKS,
    "replay": TWO_TASKS,
    "fedmd": ("data.public=0.3", "strategy.transfer_epochs=1"),
    "fedgems": ("data.public=0.3", "strategy.server_epochs=1"),
    "fedet": ("data.public=0.3", "strategy.server_epochs=1", "strategy.width=8"),
    "umbel.strategies.local:Local": (),
    "flwr:FedTrimmedAvg": ("strategy.beta=0.2",),
}


def test_the_list_of_strategies_is_whole():
    assert set(registry.names()) <= set(OPTIONS)


def go(tmp_path: Path, strategy: str, model: str, *options: str):
    parties = {"creamfl": "strategy.image_models", **dict.fromkeys(("fedmd", "fedgems", "fedet"), "strategy.models")}
    own = (f"{parties[strategy]}=[{model}]",) if strategy in parties else ()
    chosen = (f"model.name={model}", f"strategy={{name: {strategy}}}", *OPTIONS[strategy], *own, *options)
    return run("digits", *SMALL, *chosen, f"run.results={tmp_path}")


def pairs():
    """All pairs; `make test` has those in which a model meets its strategy in turn, so that each of both is there."""
    for i, model in enumerate(TINY):
        for j, strategy in enumerate(OPTIONS):
            yield pytest.param(model, strategy, marks=() if j == i % len(OPTIONS) else pytest.mark.exhaustive)


@pytest.mark.parametrize(("model", "strategy"), list(pairs()))
def test_a_round(model, strategy, tmp_path):
    result = go(tmp_path, strategy, model)
    assert result.summary["num_failures"] == 0
    metrics = result.summary["metrics"]
    asked = "test/rsum" if strategy == "creamfl" else "test/loss"
    assert math.isfinite(metrics[asked]) and 0 <= metrics[asked] < 1e3, metrics


def ruled():
    """Each model under each rule; `make test` has each model under one, so that each rule has many models."""
    rules = ("local", "group", "layer")
    for i, model in enumerate(TINY):
        for j, norm in enumerate(rules):
            yield pytest.param(model, norm, marks=() if j == i % len(rules) else pytest.mark.exhaustive)


@pytest.mark.parametrize(("model", "norm"), list(ruled()))
def test_norm_rules(model, norm, tmp_path):
    assert go(tmp_path, "fedavg", model, f"model.norm={norm}").summary["num_failures"] == 0
