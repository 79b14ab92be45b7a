"""Which modules of a model give a map over places of the image, and how to read it, for any model.

Nothing here knows a family: shapes are found by running a copy on the `meta` device, which computes none of the
numbers. What comes out of a module is read as a map when its shape says so, for square images:

    [B, C, S, S]          "channels_first"
    [B, S, S, C]          "channels_last"
    [B, S S, C]           "tokens"
    [B, 1 + S S, C]       "class_token": the first is no place and is left out
    [B, C, T, S, S]       "frames": the mean over T is read

A module whose output's shape would mislead says what it is by an attribute `map_layout`, which holds for what is inside
of it too: one of these names, "none", or

    [B, G, N, C]          "groups" of G squares of N places, both row-major, which tile the map

Shapes: B batch, C channels, S side of a map, T frames, G groups, N places of a group.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from umbel.core.names import unknown
from umbel.core.refusal import Refusal
from umbel.models.base import Block, Model

_BATCH = 11  # of the trial images: a number that heads, windows and groups seldom have, so that they are no batch
_SMALLEST = 2  # one place has nothing to say about places
_BY_SHAPE = ("frames", "channels_first", "channels_last", "tokens", "class_token")  # the first that fits is it
_SAID = (*_BY_SHAPE, "groups", "none")


@dataclass(frozen=True)
class Call:
    """One module's first call in a forward pass.

    Attributes:
        name: The module's name in the model.
        inputs: Shape of its first input; None when that is no tensor.
        output: Shape of its output, of the first tensor of several; None when there is none.
        batch: Images in the batch.
    """

    name: str
    inputs: tuple[int, ...] | None
    output: tuple[int, ...] | None
    batch: int


@dataclass(frozen=True)
class MapLayer:
    """A module whose output is a map.

    Attributes:
        name: The module's name in the model.
        layout: How its output lies in memory; see the head of the file.
        channels: C.
        side: S.
    """

    name: str
    layout: str
    channels: int
    side: int

    def read(self, output: Any) -> Tensor:
        """Return a module's output as a map [B, C, S, S], a view wherever possible."""
        tensor = self._tensor(output)
        if self.layout == "channels_last":
            return tensor.permute(0, 3, 1, 2)
        if self.layout == "frames":
            return tensor.mean(2)
        if self.layout in ("tokens", "class_token"):
            tokens = tensor[:, 1:] if self.layout == "class_token" else tensor
            return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], self.side, self.side)
        if self.layout == "groups":
            groups, places = math.isqrt(tensor.shape[1]), math.isqrt(tensor.shape[2])
            squares = tensor.reshape(tensor.shape[0], groups, groups, places, places, tensor.shape[3])
            return squares.permute(0, 5, 1, 3, 2, 4).reshape(tensor.shape[0], tensor.shape[3], self.side, self.side)
        return tensor

    def overall(self, output: Any) -> Tensor:
        """Return what a module's output says of the whole image, [B, C]: its class token, else the mean over places."""
        return self._tensor(output)[:, 0] if self.layout == "class_token" else self.read(output).mean(dim=(2, 3))

    def _tensor(self, output: Any) -> Tensor:
        tensor = _first(output)
        if tensor is None:
            raise ValueError(f"{self.name} should give a tensor, found {type(output).__name__}")
        return tensor


def trial(model: Model) -> tuple[Model, Tensor]:
    """Return a copy of `model` on the `meta` device, in evaluation mode, and images for it that have no numbers."""
    twin = copy.deepcopy(model).to("meta").eval()
    dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), torch.float32)
    shape = (_BATCH, model.in_channels, model.image_size, model.image_size)
    return twin, torch.empty(shape, dtype=dtype, device="meta")


def calls(model: Model) -> list[Call]:
    """Return the modules that a forward pass calls, in the order in which they return."""
    by_name: dict[str, Call] = {}
    twin, images = trial(model)
    names = {id(module): name for name, module in twin.named_modules()}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name = names[id(module)]
        by_name.setdefault(name, Call(name, _shape(inputs), _shape(output), _BATCH))

    handles = [module.register_forward_hook(note) for module in twin.modules()]
    try:
        with torch.no_grad():
            twin(images)
    finally:
        for handle in handles:
            handle.remove()
    return list(by_name.values())


def map_layers(model: Model) -> list[MapLayer]:
    """Return the modules of `model` whose output is a map, in the order in which they return."""
    declared = {name: str(module.map_layout) for name, module in model.named_modules() if hasattr(module, "map_layout")}
    for name, layout in declared.items():
        if layout not in _SAID:
            raise unknown(f"map_layout of {name}", layout, _SAID)
    layers = (
        _as_layer(call, declared.get(call.name), model.image_size)
        for call in calls(model)
        if not any(call.name.startswith(f"{name}.") for name in declared)
    )
    return [layer for layer in layers if layer is not None]


def blocks_of(model: Model, layers: Sequence[MapLayer]) -> list[MapLayer]:
    """Return those of `layers` that are blocks (`umbel.models.base.Block`) of `model`."""
    names = {name for name, module in model.named_modules() if isinstance(module, Block)}
    return [layer for layer in layers if layer.name in names]


def last_map(model: Model, name: str = "", least: int = _SMALLEST, key: str | None = None) -> MapLayer:
    """Return the last block that gives a map; the last module that does, where no block does.

    Args:
        model: Any model of the zoo.
        name: The module to take in its place.
        least: Take the last whose map has so many places a side; where none has, the last of the largest.
        key: The key that an error about `name` says to change.

    Raises:
        umbel.core.names.UnknownNameError: No module of that name gives a map; the message says the nearest that does.
        Refusal: No module gives a map of 2 x 2 or more, or `name` is no string.
    """
    if not isinstance(name, str):
        raise Refusal(f"{key or 'name'} should be the name of a layer, or '' for none, found {name!r}.", key=key or "")
    layers = map_layers(model)
    if not layers:
        raise Refusal(
            f"{type(model).__name__} has no layer that gives a map of {_SMALLEST} x {_SMALLEST} places or more.",
            key="model.name",
            remedy="Choose a model with convolutions or attention, or larger images (keys model.name, "
            "model.image_size).",
        )
    if name:
        known = {layer.name: layer for layer in layers}
        if name not in known:
            raise unknown("layer with a map", name, known, key=key)
        return known[name]
    candidates = blocks_of(model, layers) or layers
    wanted = min(least, max(layer.side for layer in candidates))
    return next(layer for layer in reversed(candidates) if layer.side >= wanted)


@contextmanager
def watched(model: nn.Module, layers: Sequence[MapLayer]) -> Iterator[dict[str, Tensor]]:
    """Keep the maps that these layers give, by name, detached, while the context is open.

    They are of the last call of `model`, and of a layer's first call in it, as `calls` has it: a model that looks at an
    image and then at a part of it gives the map of the image.
    """
    kept: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def keep(layer: MapLayer) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if layer.name not in kept:
                kept[layer.name] = layer.read(output).detach()

        return hook

    def forget(module: nn.Module, inputs: Any) -> None:
        kept.clear()

    handles = [model.register_forward_pre_hook(forget)]
    handles += [modules[layer.name].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _first(value: Any) -> Tensor | None:
    """Return a tensor, or the first of a sequence."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple | list) and value:
        return _first(value[0])
    return None


def _shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a tensor, or of the first of a sequence."""
    tensor = _first(value)
    return None if tensor is None else tuple(tensor.shape)


def _as_layer(call: Call, declared: str | None, image_size: int) -> MapLayer | None:
    """Return how a module's output is read, or None where it is no map.

    A shape alone is no map if it has more places than the image: latents and attention look like one.
    """
    if not call.name or not call.output or call.output[0] != call.batch:
        return None
    for layout in _BY_SHAPE if declared is None else [declared]:
        channels, side = _fit(layout, call.output[1:])
        if side:
            largest = image_size if declared is None else side
            return MapLayer(call.name, layout, channels, side) if _SMALLEST <= side <= largest else None
    return None


def _fit(layout: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return C and S of one image's output that lies as `layout` says, or zeros where its shape is another."""
    match layout, shape:
        case "frames", (channels, _, side, other) if side == other:
            return channels, side
        case "channels_first", (channels, side, other) if side == other:
            return channels, side
        case "channels_last", (side, other, channels) if side == other:
            return channels, side
        case "tokens", (places, channels):
            return channels, _root(places)
        case "class_token", (tokens, channels):
            return channels, _root(tokens - 1)
        case "groups", (groups, places, channels):
            return channels, _root(groups) * _root(places)
    return 0, 0


def _root(number: int) -> int:
    """Return the square root of a whole number, or 0 where it is no whole number."""
    root = math.isqrt(max(number, 0))
    return root if root * root == number else 0
