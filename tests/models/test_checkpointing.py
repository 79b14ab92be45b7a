"""Blocks that are computed again: the same bits, fewer activations."""

import copy

import pytest
import torch
from torch import nn

from umbel.models import build
from umbel.models.checkpointing import checkpoint_blocks


def step(model, x):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)  # stochastic depth
        for _ in range(2):
            model(x).square().sum().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 1e-3 * parameter.grad
    return model


@pytest.mark.parametrize(("name", "sizes"), [("cvt_tiny32", {"drop_path": 0.5}), ("resnet18", {"width": 4})])
def test_same_bits_parameters_and_statistics(name, sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        plain = build(name, 3, 16, 1, **sizes)
        x = torch.randn(4, 1, 16, 16)
    other = checkpoint_blocks(copy.deepcopy(plain))
    assert list(other.state_dict()) == list(plain.state_dict())
    step(plain, x), step(other, x)
    for (key, one), two in zip(plain.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), key
    assert torch.equal(plain.eval()(x), other.eval()(x))


def test_activations_of_blocks_are_not_kept():
    def kept(model):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(2, 1, 16, 16))
        return total

    plain = build("cvt_tiny32", 3, 16, 1, depths=(2, 2, 2))
    assert kept(checkpoint_blocks(copy.deepcopy(plain))) < 0.5 * kept(plain)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match=r"model\.checkpoint: CNN has no blocks"):
        checkpoint_blocks(build("cnn", 3))


def test_inner_blocks_are_left_to_the_outer():
    from umbel.models.base import Block

    model = build("cvt_tiny32", 3, 16, 1)
    inner = Block()
    model.stages[0].blocks[0].inner = inner
    before = inner.forward
    checkpoint_blocks(model)
    assert inner.forward == before
    assert isinstance(model.stages[0].blocks[0], nn.Module)
