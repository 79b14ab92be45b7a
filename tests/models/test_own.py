"""Models of one's own: factories are tried before there are data, and what they give is checked when it is built."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.models_helpers import seeded_with
from umbel.core.refusal import Refusal
from umbel.models import Model, build
from umbel.models.registry import check

seeded = seeded_with(3)


class Net(Model):
    """One linear layer on pixels, and one more."""

    def __init__(self, num_classes: int, image_size: int = 8, in_channels: int = 1, *, width: int = 4) -> None:
        super().__init__()
        self.num_features, self.image_size, self.in_channels = width, image_size, in_channels
        self.first = nn.Linear(in_channels * image_size**2, width)
        self.head = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        features: Tensor = self.first(x.flatten(1))
        return features


def numpy_weights(num_classes: int, image_size: int = 8, in_channels: int = 1) -> Net:
    net = Net(num_classes, image_size, in_channels)
    net.head.weight.data = torch.from_numpy(np.random.default_rng().normal(size=net.head.weight.shape)).float()
    return net


KEPT = Net(10)


def kept(num_classes: int, image_size: int = 8, in_channels: int = 1) -> Net:
    return KEPT


def lazy(num_classes: int, image_size: int = 8, in_channels: int = 1) -> Net:
    net = Net(num_classes, image_size, in_channels)
    net.first = nn.LazyLinear(net.num_features)
    return net


def thousand(num_classes: int, image_size: int = 8, in_channels: int = 1) -> Net:
    return Net(1000, image_size, in_channels)


def wide(num_classes: int, image_size: int = 8, in_channels: int = 1) -> Net:
    net = Net(num_classes, image_size, in_channels)
    net.num_features = 5
    return net


CALLS: list[tuple[int, int, int]] = []


def counted(num_classes: int, image_size: int, in_channels: int) -> Net:
    CALLS.append((num_classes, image_size, in_channels))
    if image_size != 12:
        raise ValueError("made for 12 px")
    return Net(num_classes, image_size, in_channels)


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    here = types.ModuleType("own_models")
    for each in (Net, numpy_weights, kept, lazy, thousand, wide, counted):
        setattr(here, each.__name__, each)
    monkeypatch.setitem(sys.modules, "own_models", here)


@pytest.mark.parametrize(
    ("name", "sizes", "reason"),
    [
        ("numpy_weights", {}, r"other weights each time.*Draw them from torch's global generator"),
        ("kept", {}, r"the same weights whenever it is called.*Make the module inside of the factory"),
        ("lazy", {}, r"parameters without a shape, the first 'first\.weight'.*Say the sizes"),
        ("Net", {"widht": 3}, r"'widht' \(key model\.sizes\.widht\)\. Did you mean 'width'"),
    ],
)
def test_what_shows_before_there_are_data(name: str, sizes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refusal, match=reason) as caught:
        check(f"own_models:{name}", sizes)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("thousand", r"its head has 1000 logits, expected 7\. Make it for the num_classes"),
        ("wide", r"its head has 4 features, expected 5\. Set num_features"),
        ("lazy", r"parameters without a shape"),
    ],
)
def test_what_shows_when_it_is_built(name: str, reason: str) -> None:
    with pytest.raises(Refusal, match=reason) as caught:
        build(f"own_models:{name}", 7, 8, 1)
    assert caught.value.key == "model.name"


def test_the_trial_leaves_the_generator_alone_and_is_made_once() -> None:
    before = torch.get_rng_state()
    check("own_models:Net", {"width": 3})
    assert torch.equal(torch.get_rng_state(), before)
    CALLS.clear()
    for _ in range(2):
        check("own_models:counted", {})  # what it raises may be due to the trial's own numbers
    assert CALLS == [(10, 32, 3)]
    model = build("own_models:counted", 4, 12, 1)
    assert CALLS[1:] == [(4, 12, 1)] and model(torch.zeros(2, 1, 12, 12)).shape == (2, 4)
    with pytest.raises(Refusal, match=r"cannot be built.*ValueError: made for 12 px.*test_own\.py, line"):
        build("own_models:counted", 4, 28, 1)


def test_its_first_weights_are_those_of_the_seed() -> None:
    torch.manual_seed(5)
    own = build("own_models:Net", 4, 8, 1)
    torch.manual_seed(5)
    assert torch.equal(own.head.weight, Net(4).head.weight)
