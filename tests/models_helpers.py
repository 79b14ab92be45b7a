"""What the tests of models share: seeds, counts, models without storage, and a step forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.rng import generator
from umbel.models import Model, build


class Tied(Model):
    """Two linear layers of one weight, and a counter."""

    def __init__(self, num_classes: int, image_size: int = 2, in_channels: int = 1) -> None:
        super().__init__()
        self.num_features, self.image_size, self.in_channels = 4, image_size, in_channels
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, num_classes)

    def features(self, x: Tensor) -> Tensor:
        self.check_input(x)
        features: Tensor = self.norm(self.second(self.first(x.flatten(1))))
        return features


def seeded_with(seed: int) -> Callable[..., Iterator[None]]:
    """Return a fixture that each test of a file runs under, if the file gives it a name."""

    @pytest.fixture(autouse=True)
    def seeded() -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield

    return seeded


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers in float64."""
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count(model: nn.Module, kind: Any) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def on_meta(name: str, *arguments: int, **sizes: Any) -> Model:
    """Build a model that has shapes and no storage."""
    with torch.device("meta"):
        return build(name, *arguments, **sizes)


def randomise(module: nn.Module, std: float = 0.5) -> Any:
    """Give every parameter and running statistic a value that shows: norms, zeros and small tables too."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module


def perturbed(module: nn.Module) -> Any:
    """Return `module` in evaluation mode and float64 with random parameters and statistics."""
    return randomise(module).double().eval()


def check_forward(model: Model, *batches: int) -> None:
    """Run batches of these sizes forwards and backwards, in the mode that the model is in.

    Logits and gradients should be finite; in training every parameter should have one.
    """
    for batch in batches:
        logits = model(torch.randn(batch, model.in_channels, model.image_size, model.image_size))
        assert logits.shape == (batch, model.head.out_features)
        assert torch.isfinite(logits).all()
        model.zero_grad()
        F.cross_entropy(logits, torch.arange(batch) % logits.shape[1]).backward()
        without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
        assert not (model.training and without)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
