"""Any classifier of plain PyTorch as a model of umbel: its head is taken out, so that there are features before it.

Shapes: B batch, I input channels, S image side, D features, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from umbel.core import outside
from umbel.core.names import nearest
from umbel.core.refusal import Refusal
from umbel.models.base import Model

_KEY = "model.name"
_BATCH = 2  # of the trial: batch norm needs more than one


class Wrapped(Model):
    """A classifier whose last layer is its head: `trunk` gives what that layer gets.

    Attributes:
        trunk: The module, with `nn.Identity` in the head's place.
        place: The head's name in the module.
    """

    image_size = 0  # not known: `wrap` was not told, and nobody has built the model by its name
    in_channels = 0

    def __init__(self, module: nn.Module, place: str) -> None:
        super().__init__()
        self.trunk = module
        self.place = place
        head = module.get_submodule(place)
        if not isinstance(head, nn.Linear):
            raise TypeError(f"expected a linear layer as {place}, found {type(head).__name__}")
        self.num_features = head.in_features
        _put(module, place, nn.Identity())
        self.head = head

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, S, S], or of embeddings [B, I]."""
        if self.image_size and x.dim() != 2:
            self.check_input(x)
        features: Tensor = self.trunk(x)
        return features

    def unwrapped(self) -> nn.Module:
        """Return a copy of the module as it was given, with its head where it was and the weights of now."""
        module = copy.deepcopy(self.trunk)
        _put(module, self.place, copy.deepcopy(self.head))
        return module

    def try_out(self) -> None:
        """Run two images through the trunk, in training and in evaluation, and leave its state as it was.

        Raises:
            Refusal: It raises, or does not end with its head, or its features are no [B, D].
        """
        shape = (self.in_channels,) if self.image_size == 1 else (self.in_channels, self.image_size, self.image_size)
        images = torch.zeros(_BATCH, *shape, dtype=self.head.weight.dtype, device=self.head.weight.device)
        buffers = {name: buffer.clone() for name, buffer in self.trunk.named_buffers()}
        modes = {module: module.training for module in self.modules()}
        what = f"{type(self.trunk).__name__} without its head {self.place!r} cannot look at images {list(images.shape)}"
        remedy = "Name its last layer as head, and see that the module takes such images."
        seen: list[object] = []
        hook = self.trunk.get_submodule(self.place).register_forward_hook(lambda _, __, output: seen.append(output))
        try:
            for mode in (True, False):
                seen.clear()
                with outside.guarded(what, _KEY, remedy), torch.no_grad(), torch.random.fork_rng(devices=[]):
                    output = self.train(mode).trunk(images)
                self._check(output, seen, "training" if mode else "evaluation")
        finally:
            hook.remove()
            for module, mode in modes.items():
                module.training = mode
            for name, buffer in buffers.items():
                self.trunk.get_buffer(name).copy_(buffer)
        if new := [name for name, _ in self.trunk.named_buffers() if name not in buffers]:
            raise Refusal(
                f"{type(self.trunk).__name__} makes the buffer {new[0]!r} at its first forward pass: what is set then "
                "is not the same at the server and at its clients.",
                key=_KEY,
                remedy="Let it make its buffers when it is built.",
            )

    def _check(self, output: object, seen: list[object], mode: str) -> None:
        """Refuse an output that is not the one thing that the head got."""
        name, head = type(self.trunk).__name__, self.place
        if not isinstance(output, Tensor):
            raise Refusal(
                f"{name} returns a {type(output).__name__} in {mode}, not a tensor of logits.",
                key=_KEY,
                remedy="Let it return the logits alone, without the outputs of other heads.",
            )
        if len(seen) != 1:
            raise Refusal(
                f"{name} calls its head {head!r} {len(seen)} times in {mode}, not once.",
                key=_KEY,
                remedy="Name the layer that gives the logits, or derive a class from umbel.models.Model.",
            )
        if output is not seen[0]:
            raise Refusal(
                f"{name} does not end with its head {head!r}: it does something to the logits, or {head!r} is not the "
                "last layer.",
                key=_KEY,
                remedy="Leave out what comes after the head (the loss has a softmax of its own), or name the last "
                "layer.",
            )
        if output.shape != (_BATCH, self.num_features):
            raise Refusal(
                f"{name} gives its head {head!r} features of shape {list(output.shape)} for {_BATCH} images, expected "
                f"[{_BATCH}, {self.num_features}].",
                key=_KEY,
                remedy="Let it take the mean over places, or flatten them, before its head.",
            )


def wrap(module: nn.Module, head: str, *, image_size: int = 0, in_channels: int = 0) -> Wrapped:
    """Make a classifier of plain PyTorch a model of umbel, in a factory: `return umbel.models.wrap(resnet, head="fc")`.

    It then goes under every strategy that works on models of images: `features(x)` is what the head gets, and the head
    can be kept, replaced and realigned. The module is copied, so that one that lives longer than a call is not shared.

    Args:
        module: Takes images [B, I, S, S] and returns logits [B, C], in training as in evaluation.
        head: Name of its last layer, an `nn.Linear`, as in `module.named_modules()`: `fc`, `classifier.6`.
        image_size: S; 0 is what the factory was called with, once `umbel.models.build` has it. 1 is for embeddings.
        in_channels: I; 0 likewise.

    Raises:
        Refusal: There is no such layer, it is not linear or not used alone, or the module does not end with it.
    """
    _check_head(module, head)
    model = Wrapped(copy.deepcopy(module), head)
    model.image_size, model.in_channels = image_size, in_channels
    if image_size and in_channels:
        model.try_out()
    return model


def linear_layers(module: nn.Module) -> list[str]:
    """Return the names of the linear layers of a module, in its order."""
    return [name for name, part in module.named_modules() if name and isinstance(part, nn.Linear)]


def _check_head(module: nn.Module, head: str) -> None:
    """Refuse a head that cannot be taken out of a module."""
    parts, linear, kind = dict(module.named_modules(remove_duplicate=False)), linear_layers(module), type(module)
    if not head or head not in parts:
        guesses = nearest(head, linear) or linear[-1:]
        raise Refusal(
            f"models.wrap: {kind.__name__} has no layer {head!r}.",
            key=_KEY,
            remedy=f"Its last linear layers are: {_words(linear[-3:])}. Did you mean {_words(guesses)}?"
            if guesses
            else "It has no linear layer: derive a class from umbel.models.Model.",
        )
    layer = parts[head]
    if not isinstance(layer, nn.Linear):
        within = [name for name in linear if name.startswith(f"{head}.")]
        raise Refusal(
            f"models.wrap: the head {head!r} of {kind.__name__} should be a linear layer, found "
            f"{type(layer).__name__}.",
            key=_KEY,
            remedy=f"Say head={within[-1]!r}." if within else "Put an nn.Linear there.",
        )
    own = {id(parameter) for parameter in layer.parameters()}
    tied = [
        name
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if id(parameter) in own and not name.startswith(f"{head}.")
    ]
    if tied:
        raise Refusal(
            f"models.wrap: the head {head!r} of {kind.__name__} shares its weights with {_words(tied)}, so that it "
            "cannot be taken out.",
            key=_KEY,
            remedy="Give the head weights of its own.",
        )


def _words(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _put(module: nn.Module, place: str, layer: nn.Module) -> None:
    """Put a layer into a module at a place."""
    parent, _, name = place.rpartition(".")
    setattr(module.get_submodule(parent), name, layer)
