"""What the tests of operators with kernels of their own share: places to take, how a layer is run, a short training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from umbel.models import Model, build
from umbel.models.operators import replace
from umbel.models.operators.base import Site

# Strides, paddings, dilations, groups and biases of all sorts, on a map of 11 x 9.
CONVS: tuple[dict[str, Any], ...] = (
    {"in_channels": 6, "out_channels": 6, "kernel_size": 3, "padding": 1, "groups": 6},
    {"in_channels": 6, "out_channels": 12, "kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    {"in_channels": 4, "out_channels": 8, "kernel_size": 7, "stride": (4, 2), "padding": (2, 3)},
    {"in_channels": 4, "out_channels": 4, "kernel_size": 5, "padding": 4, "dilation": 2, "groups": 2},
    {"in_channels": 2, "out_channels": 5, "kernel_size": 3, "padding": "same", "dilation": (1, 2)},
)
HEIGHT, WIDTH = 11, 9

Make = Callable[..., nn.Module]


def site(conv: nn.Conv2d, name: str = "layer", **others: Any) -> Site:
    return Site(name, conv, HEIGHT, WIDTH, **others)


def numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def check_layer(make: Make, **options: Any) -> None:
    """See that what stands for a convolution has its shapes and is run in every way that models are run."""
    for keywords in CONVS:
        conv = nn.Conv2d(**keywords)
        layer = make(site(conv), **options)
        x = torch.randn(2, conv.in_channels, HEIGHT, WIDTH)
        y, empty = layer(x), layer(x[:0])
        assert y.shape == conv(x).shape == (2, conv.out_channels, *site(conv).output_size)
        assert empty.shape == (0, *y.shape[1:])
        assert (layer.bias if hasattr(layer, "bias") else layer.row.bias) is None or conv.bias is not None
        assert torch.equal(copy.deepcopy(layer)(x), y)
        assert not any(type(module) is nn.Conv2d for module in layer.modules())  # another operator's place
        exact = copy.deepcopy(layer).double()(x.double())
        torch.testing.assert_close(exact.float(), y, rtol=1e-4, atol=1e-5)
        last = copy.deepcopy(layer).to(memory_format=torch.channels_last)
        torch.testing.assert_close(last(x.contiguous(memory_format=torch.channels_last)), y, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            low = layer(x)
        assert low.dtype == torch.bfloat16
        assert (low.float() - y).abs().max() < 0.05 * (1 + y.abs().max())
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), y, rtol=1e-5, atol=1e-6)
        with torch.device("meta"):
            assert make(site(nn.Conv2d(**keywords)), **options)(torch.empty_like(x)).shape == y.shape
        layer(x).sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())
        assert all(buffer.is_floating_point() for buffer in layer.state_dict().values())


def placed(operator: str, layers: str = "conv", **options: Any) -> Iterator[Model]:
    """Yield both bases of operators with grey images of 28 px and coloured ones of 32 px, with an operator in them."""
    for name in ("cvt_tiny32", "cnn"):
        for size, channels in ((28, 1), (32, 3)):
            yield replace(build(name, 3, size, channels), layers, operator, **options)


def check_learns(operator: str, layers: str = "conv", **options: Any) -> None:
    """See that models with the operator learn nine images in 20 steps, and that each parameter has a gradient."""
    for number, model in enumerate(placed(operator, layers, **options)):
        x = torch.randn(9, model.in_channels, model.image_size, model.image_size)
        y = torch.arange(9) % 3
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        losses = []
        for _ in range(20 if number in (0, 3) else 2):  # each base once; the others are seen to be trained at all
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            assert all(parameter.grad is not None for parameter in model.parameters())
            assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
            optimizer.step()
            losses.append(loss.item())
        assert len(losses) < 20 or losses[-1] < 0.7 * losses[0], (type(model).__name__, losses)
