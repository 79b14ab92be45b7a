"""torch's optimisers without its compiler: the same bits, the same state, the same hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from umbel.core.training.optimizers import eager
from umbel.strategies.fedopt import PaperAdaptive

KINDS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "foreach": True}),
    (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.01, "foreach": True}),
    (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.1, "foreach": True}),
    (PaperAdaptive, {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 0.01, "yogi": True}),
    (torch.optim.LBFGS, {"max_iter": 3, "line_search_fn": "strong_wolfe"}),
]


def parameters() -> list[Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=source).requires_grad_(True) for shape in ((3, 4), (5,))]


def steps(optimizer: torch.optim.Optimizer, own: list[Tensor], number: int) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(tensor.square().mean() + tensor.sin().mean() for tensor in own)
        assert isinstance(loss, Tensor)
        loss.backward()
        return loss

    for _ in range(number):
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


@pytest.mark.parametrize(("kind", "config"), KINDS, ids=lambda each: getattr(each, "__name__", ""))
def test_the_bits_are_those_of_torchs_own_class(kind, config):
    theirs, ours = parameters(), parameters()
    steps(kind(theirs, **config), theirs, 4)
    optimizer = eager(kind)(ours, **config)
    assert isinstance(optimizer, kind)
    steps(optimizer, ours, 4)
    assert all(torch.equal(mine, yours) and mine.requires_grad for mine, yours in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], parameters()[0])


@pytest.mark.parametrize(("kind", "config"), KINDS[:3], ids=lambda each: getattr(each, "__name__", ""))
def test_the_state_goes_on_in_torchs_own_class_and_back(kind, config):
    whole, split = parameters(), parameters()
    steps(kind(whole, **config), whole, 6)
    optimizer: torch.optim.Optimizer = eager(kind)(split, **config)
    for each in (kind, eager(kind), kind):
        steps(optimizer, split, 1 + (each is kind))
        again = each(split, **config)
        again.load_state_dict(optimizer.state_dict())
        optimizer = again
    steps(optimizer, split, 1)
    assert all(torch.equal(one, other) for one, other in zip(whole, split, strict=True))


def test_hooks_of_all_optimisers_are_called():
    own, seen = parameters(), []
    optimizer = eager(torch.optim.SGD)(own, lr=0.1)
    hook = register_optimizer_step_post_hook(lambda each, *_: seen.append(each))
    try:
        steps(optimizer, own, 2)
    finally:
        hook.remove()
    assert seen == [optimizer, optimizer]


def test_a_class_is_made_once_and_a_step_leaves_no_graph():
    assert eager(torch.optim.SGD) is eager(torch.optim.SGD)
    own = parameters()
    steps(eager(torch.optim.SGD)(own, lr=0.1, momentum=0.9), own, 1)
    assert all(tensor.is_leaf and tensor.grad_fn is None for tensor in own)
