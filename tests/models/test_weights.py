"""A model's state as a tree and back: what travels, what stays, what is refused."""

import pytest
import torch
from torch import nn

from tests.models_helpers import Tied, count, seeded_with
from umbel.core.names import UnknownNameError
from umbel.core.tree import TreeMismatchError
from umbel.models import build
from umbel.models.norm import batch_norm_names, integer_buffer_names
from umbel.models.weights import load_state, parameter_names, shared_state

seeded = seeded_with(7)


@pytest.mark.parametrize("name", ["cnn", "cvt_tiny32"])
def test_state_round_trip(name):
    x = torch.randn(2, 1, 28, 28)
    source, target = build(name, 4, 28, 1), build(name, 4, 28, 1)
    source(x)  # moves the batch-norm statistics
    state = shared_state(source)
    load_state(target, state)
    assert torch.equal(source.eval()(x), target.eval()(x))
    assert state.keys() == source.state_dict().keys() - integer_buffer_names(source)
    assert parameter_names(source) <= state.keys()
    assert all(not tensor.requires_grad and tensor.is_contiguous() for tensor in state.values())


def test_shared_state_shares_no_storage():
    model = build("cvt_tiny32", 4, 8, 1)
    state = shared_state(model)
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    copies = [tensor.untyped_storage().data_ptr() for tensor in state.values()]
    assert own.isdisjoint(copies)
    assert len(set(copies)) == len(copies)


def test_load_state_keeps_the_parameters_themselves():
    model = build("cnn", 4, 8, 1)
    before = list(model.parameters())
    load_state(model, {name: torch.zeros_like(tensor) for name, tensor in shared_state(model).items()})
    assert all(new is old for new, old in zip(model.parameters(), before, strict=True))
    assert all(not parameter.any() and parameter.requires_grad for parameter in before)


def test_keep_local_leaves_batch_norm():
    model = build("cvt_tiny32", 4, 8, 1)
    local = batch_norm_names(model)
    assert len(local) == 5 * count(model, nn.BatchNorm2d) == 45
    assert "stages.0.blocks.0.attention.conv_q.norm.running_var" in local
    assert integer_buffer_names(model) == {name for name in local if name.endswith("num_batches_tracked")}
    state = shared_state(model, local)
    assert state.keys() == model.state_dict().keys() - local
    load_state(model, state, partial=True)
    with pytest.raises(TreeMismatchError, match=r"36 missing names, the first 'stages\.0.*partial=True"):
        load_state(model, state)


def test_keep_local_refuses_an_unknown_name():
    with pytest.raises(UnknownNameError, match=r"'head\.wieght'.*'head\.weight'"):
        shared_state(build("cnn", 4, 8, 1), frozenset({"head.wieght"}))


def test_a_scalar_parameter_stays_a_scalar():
    model = Tied(3)
    model.sharpness = nn.Parameter(torch.tensor(2.5))
    state = shared_state(model)
    assert state["sharpness"].shape == ()
    load_state(model, state | {"sharpness": torch.tensor(4.0)})
    assert model.sharpness.shape == () and model.sharpness == 4


def test_tied_parameters_travel_once():
    model = Tied(3)
    state = shared_state(model)
    assert "first.weight" in state
    assert "second.weight" not in state
    assert "first.weight" not in shared_state(model, frozenset({"second.weight"}))
    state["first.weight"].fill_(2.0)
    load_state(model, state)
    assert (model.second.weight == 2).all()
    assert parameter_names(model) == {"first.weight", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    load_state(model, model.state_dict())  # every alias and the counter are accepted as well


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.bais": torch.zeros(3)}, r"unexpected names, the first 'head\.bais'.*'head\.bias'"),
        ({"head.bias": torch.zeros(1)}, r"'head\.bias' should have shape \(3,\), found \(1,\)"),
        ({"norm.num_batches_tracked": torch.tensor(1.5)}, r"num_batches_tracked' should hold torch\.int64"),
    ],
)
def test_load_state_changes_nothing_when_it_refuses(change, message):
    model = Tied(3)
    before = shared_state(model)
    tree = {name: tensor + 1 for name, tensor in before.items()} | change
    with pytest.raises(TreeMismatchError, match=message):
        load_state(model, tree)
    assert all(torch.equal(tensor, before[name]) for name, tensor in shared_state(model).items())
