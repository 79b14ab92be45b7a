"""What the operators that go around a whole model have in common.

The model that is given becomes the `trunk` of another: its head goes, and some of its layers are tapped while it
computes its features.

Shapes: B batch, I input channels, H and W sides of an image, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from umbel.models.base import Model
from umbel.models.maps import MapLayer, trial


class Tap(nn.Module):
    """Takes what one layer of a trunk returns, in its first call of a pass, and keeps it until the pass ends.

    The hook on the layer is a method of this module: a copy of a model that has both has a hook of its own. It hears
    nothing outside a pass, such as when `umbel.models.checkpointing` computes a block again in the backward pass.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.open = False
        self.output: Any = None
        self._layer: tuple[nn.Module, ...] = ()  # no child: the trunk's state would have second names

    def attach(self, trunk: nn.Module) -> None:
        """Put the hook on the layer of this name, unless it is there: a rule for norms may have put another in."""
        layer = trunk.get_submodule(self.name)
        if not self._layer or self._layer[0] is not layer:
            layer.register_forward_hook(self.hear)
            self._layer = (layer,)

    def hear(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Keep what the layer returned; the hook."""
        if self.open and self.output is None:
            self.output = output

    def turn(self, on: bool) -> None:
        """Open or close the tap, and let go of what it kept."""
        self.open, self.output = on, None


class Taps(nn.Module):
    """Layers of a trunk whose outputs come with its features. They have no state and add no name to a state dict.

    Args:
        trunk: The model that has the layers.
        layers: Which.
    """

    def __init__(self, trunk: Model, layers: Sequence[MapLayer]) -> None:
        super().__init__()
        self.each = nn.ModuleList(Tap(layer.name) for layer in layers)
        for tap in self._taps():
            tap.attach(trunk)

    def features(self, trunk: Model, x: Tensor) -> tuple[Tensor, list[Any]]:
        """Return the trunk's features [B, D] of images [B, I, H, W], and what each layer returned on the way."""
        taps = self._taps()
        for tap in taps:
            tap.attach(trunk)
            tap.turn(True)
        try:
            features = trunk.features(x)
            outputs = [tap.output for tap in taps]
        finally:
            for tap in taps:
                tap.turn(False)
        return features, outputs

    def _taps(self) -> list[Tap]:
        return [tap for tap in self.each if isinstance(tap, Tap)]


def beheaded(model: Model) -> Model:
    """Take the head off `model`, in place, and return it: what it now computes are its features."""
    model.add_module("head", nn.Identity())
    return model


def freeze_unused(trunk: Model, layers: Sequence[MapLayer]) -> list[str]:
    """Freeze the parameters on which nothing that these layers give depends, in place, and return their names.

    A gradient on the `meta` device says which they are; nothing is computed and nothing drawn.
    """
    twin, images = trial(trunk)
    parameters = {name: parameter for name, parameter in twin.named_parameters() if parameter.requires_grad}
    with torch.enable_grad():
        _, outputs = Taps(twin, layers).features(twin, images)
        total = torch.stack([layer.read(output).sum() for layer, output in zip(layers, outputs, strict=True)]).sum()
        gradients = (
            torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
            if total.requires_grad  # it does not where all that leads to these layers is frozen already
            else [None] * len(parameters)
        )
    unused = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    for name in unused:
        trunk.get_parameter(name).requires_grad_(False)
    return unused


def in_full(x: Tensor) -> Tensor:
    """Return `x` in single precision, or as it is where it has more."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
