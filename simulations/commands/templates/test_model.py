"""The model's shapes and number of parameters, and one round with it."""

from pathlib import Path

import torch

import umbel
from umbel.simulations.commands.templates.model import NewModel


def test_shapes() -> None:
    """Logits are the head of the features."""
    model = NewModel(num_classes=5, image_size=12, in_channels=3, width=4).eval()
    images = torch.randn(2, 3, 12, 12)
    assert model.features(images).shape == (2, 4)
    assert torch.equal(model(images), model.head(model.features(images)))


def test_number_of_parameters() -> None:
    """Two convolutions and a linear layer, each with a bias."""
    model = NewModel(num_classes=5, in_channels=3, width=4)
    expected = (3 * 9 * 4 + 4) + (4 * 9 * 4 + 4) + (4 * 5 + 5)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_a_round(tmp_path: Path) -> None:
    """Every client trains it."""
    result = umbel.run(
        "digits",
        "model.name=umbel.simulations.commands.templates.model:NewModel",
        "model.sizes.width=8",
        "data.num_clients=4",
        "data.max_train=80",
        "run.rounds=1",
        f"run.results={tmp_path}",
    )
    assert result.summary["num_failures"] == 0
    assert result.summary["num_parameters"] == (9 * 8 + 8) + (8 * 9 * 8 + 8) + (8 * 10 + 10)
