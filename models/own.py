"""Models from outside of the project: factories found as `package.module:factory`, called, and what they give checked.

factory(num_classes, image_size=<published>, in_channels=3, *, <size>=<default>, ...) -> Model
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from umbel.core import outside
from umbel.core.refusal import Refusal
from umbel.core.rng import forked, generator
from umbel.core.tree import sha256
from umbel.models.base import Model
from umbel.models.wrap import Wrapped, linear_layers

Factory = Callable[..., Any]

_KEY = "model.name"
# What a factory is called with for trial, where it has no defaults.
_NUM_CLASSES, _IMAGE_SIZE, _IN_CHANNELS = 10, 32, 3
_tried: set[str] = set()  # calls that this process has seen the result of


def find(name: str) -> Factory:
    """Return the factory that `package.module:factory` stands for.

    Raises:
        Refusal: It cannot be imported, or is neither a class nor a function.
    """
    factory = outside.find(name, "model", _KEY)
    if isinstance(factory, nn.Module) or not callable(factory):
        raise Refusal(
            f"Model {name!r} (key model.name) should be a class or a function, found a {type(factory).__name__}.",
            key=_KEY,
            remedy="Name a function that makes the model and returns it.",
        )
    made: Factory = factory
    return made


def build(name: str, factory: Factory, num_classes: int, image_size: int, in_channels: int, **sizes: Any) -> Model:
    """Call a factory and return the model that it gives.

    Raises:
        Refusal: It raises, or gives no model, or one that lacks something or has another number of classes.
    """
    said = ", ".join(f"{key}={value!r}" for key, value in sizes.items()) or "no sizes"
    with outside.guarded(f"Model {name!r} cannot be built with {said}", "model.sizes" if sizes else _KEY):
        made = factory(num_classes, image_size=image_size, in_channels=in_channels, **sizes)
    model = _checked(name, made)
    _check_head(name, model, num_classes)
    if isinstance(model, Wrapped):
        model.image_size, model.in_channels = model.image_size or image_size, model.in_channels or in_channels
        call = json.dumps([name, num_classes, image_size, in_channels, sizes], sort_keys=True, default=repr)
        if call not in _tried:
            model.try_out()
            _tried.add(call)
    return model


def check(name: str, factory: Factory, sizes: Mapping[str, Any]) -> None:
    """Call a factory twice for trial, before there are data, and refuse what cannot be.

    It is called with its own defaults, or with sizes of our choosing where it has none. That it raises may be due to
    these, so then the run decides, which calls it with those of the data. Nothing is tried twice in a process.

    Raises:
        Refusal: It ends the process, or gives no model, or with one seed two models of different or of shared weights.
    """
    call = json.dumps([name, sizes], sort_keys=True, default=repr)
    if call in _tried:
        return
    parameters = inspect.signature(factory).parameters
    sides = {key: parameters[key].default for key in ("image_size", "in_channels")}
    at_defaults = all(isinstance(side, int) for side in sides.values())
    made_with = sides if at_defaults else {"image_size": _IMAGE_SIZE, "in_channels": _IN_CHANNELS}
    _try_twice(name, partial(factory, _NUM_CLASSES, **made_with, **sizes), at_defaults)
    _tried.add(call)


def _try_twice(name: str, make: Callable[[], Any], at_defaults: bool) -> None:
    """Make a model twice with one seed; refuse what shows in the two."""
    made = []
    try:
        with outside.guarded(f"Model {name!r} (key model.name) cannot be built", _KEY):
            for _ in range(2):
                with forked(generator(0, 0, "", -1, "trial")):
                    made.append(make())
    except Refusal as refusal:
        cause = refusal.__cause__
        may_be_due_to_us = isinstance(cause, Exception) or (cause is None and not (at_defaults and refusal.key == _KEY))
        if may_be_due_to_us:
            return
        raise
    first, second = (_checked(name, each).state_dict() for each in made)
    own = {tensor.untyped_storage().data_ptr() for tensor in first.values() if tensor.numel()}
    if any(tensor.untyped_storage().data_ptr() in own for tensor in second.values() if tensor.numel()):
        raise Refusal(
            f"Model {name!r} (key model.name) gives the same weights whenever it is called: server and clients would "
            "train one model.",
            key=_KEY,
            remedy="Make the module inside of the factory.",
        )
    if sha256(first) != sha256(second):
        raise Refusal(
            f"Model {name!r} (key model.name) begins with other weights each time, although the seed is the same.",
            key=_KEY,
            remedy="Draw them from torch's global generator alone, which umbel seeds.",
        )


def _checked(name: str, made: Any) -> Model:
    """Return what a factory gave if it is a model that has all that a model has."""
    if not isinstance(made, Model):
        raise Refusal(
            f"Model {name!r} (key model.name) should return an umbel.models.Model, found {_kind(made)}.",
            key=_KEY,
            remedy=_how_to_wrap(made),
        )
    lacking = [each for each in ("num_features", "in_channels", "image_size", "head") if not hasattr(made, each)]
    lacking += ["features"] if type(made).features is Model.features else []
    if lacking:
        raise Refusal(
            f"Model {name!r} (key model.name) lacks {', '.join(lacking)}: {type(made).__name__} does not set them.",
            key=_KEY,
            remedy="Set them; umbel.models.base.Model says what each is.",
        )
    if lazy := [key for key, parameter in made.named_parameters() if is_lazy(parameter)]:
        raise Refusal(
            f"Model {name!r} (key model.name) has parameters without a shape, the first {lazy[0]!r}: what is set at "
            "the first forward pass is not the same at the server and at its clients.",
            key=_KEY,
            remedy="Say the sizes of its lazy layers.",
        )
    return made


def _kind(made: Any) -> str:
    name = type(made).__name__
    return f"{name}, a plain nn.Module" if isinstance(made, nn.Module) else name


def _how_to_wrap(made: Any) -> str:
    """Return what to do about something that is no `Model`."""
    if isinstance(made, nn.Module) and (linear := linear_layers(made)):
        return f"Return umbel.models.wrap(module, head={linear[-1]!r}) in its place."
    if isinstance(made, nn.Linear):
        return "Put it into an nn.Sequential behind an nn.Flatten, and return umbel.models.wrap(module, head='1')."
    return "Return umbel.models.wrap(module, head=...) of a classifier, or an instance of a class derived from Model."


def _check_head(name: str, model: Model, num_classes: int) -> None:
    """Refuse a head of another number of classes or features than the model's."""
    for what, expected, actual in (
        ("logits", num_classes, getattr(model.head, "out_features", num_classes)),
        ("features", model.num_features, getattr(model.head, "in_features", model.num_features)),
    ):
        if actual != expected:
            raise Refusal(
                f"Model {name!r} (key model.name): its head has {actual} {what}, expected {expected}.",
                key=_KEY,
                remedy="Make it for the num_classes that the factory is called with."
                if what == "logits"
                else "Set num_features to what features(x) returns for an image.",
            )
