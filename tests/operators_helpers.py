"""What the tests of operators share: every way in which a layer that took a convolution's place is run."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models import Model, build, names
from umbel.models.operators import replace
from umbel.models.operators.base import Site

TINY = tuple(name for name in names() if name.endswith("_tiny32"))


def site(conv: nn.Conv2d, height: int, width: int) -> Site:
    return Site("layer", conv, height, width)


def check_modes(layer: nn.Module, conv: nn.Conv2d, x: Tensor) -> None:
    """Run a layer as the zoo is run; its map should have the shape that `conv` gives."""
    layer.eval()
    shape = conv(x).shape
    with torch.no_grad():
        plain = layer(x)
        assert plain.shape == shape
        assert torch.equal(copy.deepcopy(layer)(x), plain)
        assert layer(x[:0]).shape == (0, *shape[1:])
        exact = copy.deepcopy(layer).double()(x.double())
        assert exact.dtype == torch.float64
        torch.testing.assert_close(plain.double(), exact, rtol=1e-4, atol=1e-5)
        last = copy.deepcopy(layer).to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(x.contiguous(memory_format=torch.channels_last)), plain, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            low = layer(x)
        assert (low.float() - plain).abs().max() < 0.1 * (1 + plain.abs().max())
        assert copy.deepcopy(layer).to("meta")(x.to("meta")).shape == shape
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), plain, rtol=1e-4, atol=1e-5)


def check_learns(name: str, operator: str, size: int = 28, channels: int = 1, layers: str = "conv", **options) -> Model:
    """Train a model with the operator for 20 steps: the loss falls, and every parameter has a gradient."""
    model = replace(build(name, 3, size, channels), layers, operator, **options).train()
    x = torch.randn(12, channels, size, size)
    labels = torch.arange(12) % 3
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses
    assert not [key for key, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    return model


def check_every_tiny(operator: str, kind: type[nn.Module], least: int, **options) -> None:
    """Put the operator into each `_tiny32` model, on the meta device; `least` of them and more have a place."""
    placed = 0
    for name in TINY:
        with torch.device("meta"):
            model = build(name, 10)
            try:
                replace(model, "conv", operator, **options)
            except ValueError as error:
                assert f"model.operators.{operator}.layers" in str(error)
                continue
            assert any(isinstance(module, kind) for module in model.modules())
            assert model.eval()(torch.empty(2, 3, model.image_size, model.image_size)).shape == (2, 10)
            placed += 1
    assert placed >= least
