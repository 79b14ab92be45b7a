"""What every model of the zoo is: a trunk that gives features, and a linear head on them.

Strategies rely on the split: some keep the head at the client, some replace or realign it, some send
statistics of the features instead of weights.

Shapes: B batch, I input channels, H height, W width, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from types import MethodType
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor, nn

from umbel.core.refusal import Refusal
from umbel.core.spent import count_pass


class Model(nn.Module):
    """A classifier `head(features(x))`.

    A subclass sets the attributes, `head` last so that it ends the state dict, and writes `features`.

    Attributes:
        num_features: D, the width of what `features` returns.
        in_channels: I, the channels of an image.
        image_size: H and W of an image; all clients of a run share one.
        head: Linear layer from D features to C logits.
        spec: What `registry.build` built it by, which `facts.macs_of` reads; what goes through it is counted under
            this name. Empty if it was built otherwise, and then nothing is.
    """

    num_features: int
    in_channels: int
    image_size: int
    head: nn.Linear
    spec: str = ""

    def __init_subclass__(cls, **words: Any) -> None:
        super().__init_subclass__(**words)
        if own := vars(cls).get("features"):
            setattr(cls, "features", _counted(own))  # noqa: B010 - to mypy a method is no attribute

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it computes its features")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, C] of images [B, I, H, W]."""
        logits: Tensor = self.head(self.features(x))
        return logits

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As `nn.Module.to`, which knows `channels_last` for four axes alone: weights over time have five."""
        if kwargs.get("memory_format") != torch.channels_last:
            return super().to(*args, **kwargs)
        rest = {name: value for name, value in kwargs.items() if name != "memory_format"}
        made = super().to(*args, **rest) if args or rest else self
        made._apply(_channels_last)  # type: ignore[no-untyped-call]
        return made

    def check_input(self, x: Tensor) -> None:
        """Raise `ValueError` unless `x` is [B, I, H, W] with the channels and size of the model."""
        expected = (self.in_channels, self.image_size, self.image_size)
        if x.dim() != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"{type(self).__name__} was built for images [batch, {', '.join(map(str, expected))}], found "
                f"{list(x.shape)}; resize the images, or build the model for them (key model.image_size)"
            )


def _counted(features: Callable[[Model, Tensor], Tensor]) -> Callable[[Model, Tensor], Tensor]:
    """Return a class's `features`, which counts what goes through; the outermost of a class and its bases does."""

    @wraps(features)
    def counted(self: Model, x: Tensor) -> Tensor:
        found = features(self, x)
        if type(self).features is counted and not torch.compiler.is_compiling():
            count_pass(self, found)
        return found

    return counted


def compile_features(model: Model) -> None:
    """Have a model's features computed by `torch.compile`, in place; they count as before."""
    own = type(model).features
    compiled = torch.compile(MethodType(getattr(own, "__wrapped__", own), model))

    def features(x: Tensor) -> Tensor:
        found: Tensor = compiled(x)
        count_pass(model, found)
        return found

    model.features = features  # type: ignore[method-assign]


def _channels_last(tensor: Tensor) -> Tensor:
    """Return a tensor of four or five axes in the memory order with the second axis last, others as they are."""
    orders = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.to(memory_format=orders[tensor.dim()]) if tensor.dim() in orders else tensor


class Block(nn.Module):
    """A residual block of a trunk: what `umbel.models.checkpointing` recomputes in the backward pass.

    A family derives its blocks from it and calls them as modules. It adds nothing to the state.
    """


def check_image_size(name: str, image_size: int, multiple: int, least: int | None = None) -> int:
    """Return `image_size` if it is a multiple of `multiple` and not below `least` (None: `multiple`).

    Raises:
        Refusal: It is not; the remedy names the nearest size that is.
    """
    smallest = multiple * -(-(least or multiple) // multiple)
    if image_size % multiple or image_size < smallest:
        works = max(smallest, multiple * round(image_size / multiple))
        needed = f"a multiple of {multiple} px" if multiple > 1 else "an image"
        raise Refusal(
            f"model.image_size: {name} needs {needed}, {smallest} px or more, found {image_size}.",
            key="model.image_size",
            remedy=f"Use {works}.",
        )
    return image_size


def check_count(key: str, value: object) -> int:
    """Return `value` if it is a whole number of at least one; raise `Refusal` naming the key otherwise."""
    # bool is an int to Python, but `width: true` in a YAML file is a slip.
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Refusal(f"{key} should be a whole number of at least 1, found {value!r}.", key=key)
    return value


def _is_list(values: object, length: int | None) -> TypeGuard[Sequence[object]]:
    """Say whether `values` is a list of `length`, or with None one that is not empty."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        return False
    return bool(values) if length is None else len(values) == length


def check_counts(key: str, values: object, length: int | None = None, multiple: int = 1) -> tuple[int, ...]:
    """Return `values` as a tuple of whole numbers of at least one.

    Args:
        key: The key that an error names.
        values: What to check.
        length: How many there should be; None is any number but none.
        multiple: What should divide each of them.

    Raises:
        Refusal: They are not.
    """
    if not _is_list(values, length):
        expected = "whole numbers that is not empty" if length is None else f"{length} whole numbers"
        raise Refusal(f"{key} should be a list of {expected}, found {values!r}.", key=key)
    counts = tuple(check_count(key, value) for value in values)
    if any(count % multiple for count in counts):
        raise Refusal(f"{key} should be multiples of {multiple}, found {list(counts)}.", key=key)
    return counts


def check_lists(key: str, values: object, length: int | None = None) -> list[tuple[int, ...]]:
    """Return `values` as a list of `length` (None: any number of) tuples of counts; raise `Refusal` otherwise."""
    if not _is_list(values, length):
        expected = "a list of lists" if length is None else f"{length} lists"
        raise Refusal(f"{key} should be {expected} of whole numbers, one a stage, found {values!r}.", key=key)
    return [check_counts(key, each) for each in values]


def check_divides(key: str, value: object, dims: Sequence[int], dims_key: str = "model.sizes.dims") -> int:
    """Return `value` if it is a count that divides all of `dims`, the channels of key `dims_key`, as heads do.

    Raises:
        Refusal: It is or does not; the message names both keys.
    """
    count = check_count(key, value)
    for dim in dims:
        if dim % count:
            raise Refusal(f"{key}: {count} does not divide {dim} channels ({dims_key}).", key=key)
    return count


def check_fraction(key: str, value: object) -> float:
    """Return `value` if it lies in [0, 1); raise `Refusal` naming the key otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise Refusal(f"{key} should be a number from 0 to below 1, found {value!r}.", key=key)
    return float(value)


def check_positive(key: str, value: object) -> float:
    """Return `value` if it is a number above 0; raise `Refusal` naming the key otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise Refusal(f"{key} should be a number above 0, found {value!r}.", key=key)
    return float(value)


def check_flag(key: str, value: object) -> bool:
    """Return `value` if it is true or false; raise `Refusal` naming the key otherwise."""
    if not isinstance(value, bool):
        raise Refusal(f"{key} should be true or false, found {value!r}.", key=key)
    return value
