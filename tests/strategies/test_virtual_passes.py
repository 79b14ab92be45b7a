"""What clients take in virtual time is what they go through, for every strategy that there is.

With one client, of which an example takes a second and bytes nothing, the seconds of a run are its examples: as often
as one went through a model on the client, whether that learned from it or not (docs/virtual-time.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers import small_run
from umbel.strategies import registry

ROUNDS = 4
ONE = (
    *("data.num_clients=1", "data.partition=iid", "data.max_train=60", f"run.rounds={ROUNDS}"),
    *("client.epochs=2", "client.batch_size=8", "evaluate.every=0", "simulation.devices.speed=1"),
)
TASKS = ("data.partition=permuted_tasks", "data.num_tasks=2", "data.rounds_per_task=2")
CLASSES = ("data.partition=split_tasks", "data.num_tasks=2", "data.rounds_per_task=2")
PARTIES = ("data.public=0.2", "strategy.models=[cnn]", "strategy.sizes={cnn: {width: 2, hidden: 8}}")
PAIRS = (
    *("data.name=synthetic", "data.public=0.3", "data.text_encoder=bpe", "data.vocabulary=80", "data.text_length=10"),
    "data.options={num_examples: 120, num_test: 20, num_classes: 4, image_size: 8, attributes: 5}",
    *("strategy.num_both=1", "strategy.dimension=8", "strategy.image_models=[mlp]", "strategy.text_models=[gru]"),
    *("strategy.image_sizes={mlp: {hidden: 8, depth: 1}}", "strategy.text_sizes={gru: {width: 8}}"),
    "strategy.server_text_sizes={width: 16, depth: 1, heads: 2}",
)
# What a strategy cannot do without. One that is not here is asked as it is.
NEEDS: dict[str, tuple[str, ...]] = {
    "fot": TASKS,
    "ewc": (*TASKS, "strategy.strength=10"),
    "lwf": TASKS,
    "replay": (*TASKS, "strategy.memory=5"),
    "fedbuff": ("strategy.buffer_size=1",),
    "creamfl": PAIRS,
    "fedmd": PARTIES,
    "fedgems": PARTIES,
    "fedet": PARTIES,
    "ggeur": ("data.encoder=pca:8", "model.name=linear", "model.sizes={}", "strategy.target=20"),
}
# Other ways through a strategy.
WAYS: dict[str, tuple[str, ...]] = {
    "scaffold option I": ("strategy.option=I",),
    "apfl fixed": ("strategy.adaptive=false",),
    "fedavg steps": ("client.epochs=0", "client.max_steps=11"),
    "fedavg classes": CLASSES,
    "lwf classes": CLASSES,
    "ccvr over moon": ("strategy.base=moon", "strategy.every=2"),
    "ccvr over scaffold": ("strategy.base=scaffold", "strategy.base_options={option: I}"),
    "creamfl some": ("strategy.public_per_round=10", "client.max_steps=9"),
    "creamfl apart": ("strategy.contrast=0",),
    "creamfl steps": ("client.epochs=0", "client.max_steps=40"),
    "fedmd some": ("strategy.public_per_round=7", "strategy.digest_epochs=3", "strategy.transfer_epochs=2"),
    "fedgems more": ("strategy.digest_epochs=2",),
    # One client of three in each round, so that some come for the first time when others come again.
    "moon of three": ("data.num_clients=3", "run.clients_per_round=1"),
    "fedmd of three": ("data.num_clients=3", "run.clients_per_round=1"),
}


def seconds_and_passes(tmp_path: Path, name: str, *options: str) -> tuple[float, int]:
    """Return a run's virtual seconds, and the images that went through models on its client."""
    needs = (*ONE, *NEEDS.get(name, ()), f"strategy.name={name}", *options)
    summary: dict[str, Any] = small_run(tmp_path, *needs).summary
    return summary["virtual_seconds"], sum(each["forward"] for each in summary["passes"]["clients"].values())


@pytest.mark.parametrize("name", [name for name in registry.names() if name != "ggeur"])
def test_every_strategy_takes_the_time_of_all_that_it_goes_through(tmp_path: Path, name: str) -> None:
    seconds, passes = seconds_and_passes(tmp_path, name)
    assert seconds == passes > 0


@pytest.mark.parametrize("way", WAYS)
def test_so_it_is_whichever_way_it_goes(tmp_path: Path, way: str) -> None:
    seconds, passes = seconds_and_passes(tmp_path, way.split()[0], *WAYS[way])
    assert seconds == passes > 0


def test_ggeur_takes_the_most_that_its_replies_may_count(tmp_path: Path) -> None:
    # Its statistics are of features that are made before the run, and no model is asked for them.
    seconds, passes = seconds_and_passes(tmp_path, "ggeur")
    own = seconds_and_passes(tmp_path, "fedavg", "data.encoder=pca:8", "model.name=linear", "model.sizes={}")[0]
    statistics, own = own / ROUNDS / 2, own / ROUNDS / 2
    assert seconds == statistics + ROUNDS * 2 * (own + 10 * 20)
    assert passes <= seconds - statistics
