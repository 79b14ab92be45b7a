"""What the data are, that they are the same each time, and one round on them."""

from pathlib import Path

import torch

import umbel
from umbel.data import DataConfig
from umbel.simulations.commands.templates.data import load


def test_classes_and_shapes() -> None:
    """240 pictures, each in one of the splits."""
    data = load(DataConfig(), seed=0)
    assert data.class_names == ("across", "upright")
    assert len(data.train) + len(data.test) == 240
    assert data.train.images.shape[1:] == data.test.images.shape[1:] == (1, 8, 8)
    assert data.train.images.dtype == torch.uint8


def test_they_are_the_same_each_time() -> None:
    """Server and clients load them on their own."""
    first, second = load(DataConfig(), seed=0), load(DataConfig(), seed=0)
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.train.labels, second.train.labels)


def test_a_round(tmp_path: Path) -> None:
    """Every client trains on its part."""
    result = umbel.run(
        "digits",
        "data.name=umbel.simulations.commands.templates.data:load",
        "data.num_clients=4",
        "model.name=cnn",
        "run.rounds=1",
        f"run.results={tmp_path}",
    )
    assert result.summary["num_failures"] == 0
