"""Layers that families share."""

import math

import pytest
import torch

from tests.models_helpers import seeded_with
from umbel.models.layers import drop_path, quick_gelu, to_map, to_tokens

seeded = seeded_with(7)


def test_map_and_tokens_are_inverse_views():
    tokens = torch.randn(2, 6, 3)
    image_map = to_map(tokens, 2, 3)
    assert image_map[1, 2, 1, 0] == tokens[1, 3, 2]
    assert image_map.data_ptr() == tokens.data_ptr() == to_tokens(image_map).data_ptr()
    assert torch.equal(to_tokens(image_map), tokens)


def test_quick_gelu():
    assert quick_gelu(torch.tensor(0.0)) == 0
    assert quick_gelu(torch.tensor(1.0)).item() == pytest.approx(1 / (1 + math.exp(-1.702)))


def test_drop_path():
    x = torch.ones(1000, 2, 3)
    assert drop_path(x, 0.0, training=True) is x
    assert drop_path(x, 0.5, training=False) is x
    dropped = drop_path(x, 0.75, training=True)
    assert set(dropped.unique().tolist()) == {0.0, 4.0}
    assert (dropped == dropped[:, :1, :1]).all()  # a whole example or nothing
    assert dropped.mean().item() == pytest.approx(1, abs=0.2)
