"""Group norm in the place of batch norm."""

import pytest
import torch
from torch import nn

from tests.models_helpers import Tied, count, num_parameters, seeded_with
from umbel.models import build
from umbel.models.norm import batch_norm_names, integer_buffer_names, replace_batch_norm

seeded = seeded_with(7)


def test_group_norm_keeps_the_counts():
    model = build("cvt_tiny32", 4, 8, 1, dims=(6, 14, 22), heads=(1, 2, 2))
    parameters, batch_norms = num_parameters(model), count(model, nn.BatchNorm2d)
    assert replace_batch_norm(model, groups=4) is model
    assert count(model, nn.BatchNorm2d) == 0
    assert count(model, nn.GroupNorm) == batch_norms
    assert num_parameters(model) == parameters
    groups = [{m.num_groups for m in stage.modules() if isinstance(m, nn.GroupNorm)} for stage in model.stages]
    assert groups == [{3}, {2}, {2}]  # of 6, 14 and 22 channels
    assert batch_norm_names(model) == integer_buffer_names(model) == frozenset()
    assert model(torch.randn(1, 1, 8, 8)).shape == (1, 4)


def test_group_norm_carries_weights_mode_and_1d_layers():
    model = Tied(3).eval()
    nn.init.constant_(model.norm.weight, 3.0)
    nn.init.constant_(model.norm.bias, -1.0)
    model.norm.eps = 1e-3
    replace_batch_norm(model, groups=2)
    assert isinstance(model.norm, nn.GroupNorm)
    assert (model.norm.num_groups, model.norm.eps, model.norm.training) == (2, 1e-3, False)
    assert (model.norm.weight == 3).all()
    assert (model.norm.bias == -1).all()


def test_group_norm_of_a_shared_layer_stays_shared():
    model = Tied(3)
    model.again = model.norm
    assert "again.weight" in batch_norm_names(model)
    replace_batch_norm(model)
    assert model.again is model.norm


def test_group_norm_refuses_no_groups():
    with pytest.raises(ValueError, match="groups should be 1 or more, found 0"):
        replace_batch_norm(Tied(3), groups=0)
