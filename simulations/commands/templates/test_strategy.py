"""The strategy's mathematics on small numbers, and one round of it."""

from pathlib import Path

import torch

import umbel
from umbel.simulations.commands.templates.strategy import moved


def test_the_step_is_taken_from_the_model() -> None:
    """1 + 0.5 * 4 = 3."""
    assert moved({"w": torch.tensor([1.0])}, {"w": torch.tensor([4.0])}, 0.5)["w"].item() == 3.0


def test_a_round(tmp_path: Path) -> None:
    """With a step of 1 it is federated averaging."""
    small = ("data.num_clients=4", "data.max_train=80", "model.name=cnn", "run.rounds=1", f"run.results={tmp_path}")
    own, other = (
        umbel.run("digits", *small, f"strategy.name={name}")
        for name in ("umbel.simulations.commands.templates.strategy:NewStrategy", "fedavg")
    )
    assert own.summary["num_failures"] == 0
    gained, expected = (result.summary["metrics"]["test/loss"] for result in (own, other))
    assert abs(gained - expected) < 1e-5
