"""Find an operator by name, and put it into a model.

An operator is a function in a file of this folder and a row of `TABLE`. One that takes the place of a convolution has
the signature

    operator(site, *, <option>=<default>, ...) -> nn.Module

and raises `UnfitError` for a convolution that it cannot stand for, before it draws a random number; one that is put
around a model has

    operator(model, *, <option>=<default>, ...) -> Model

The first line of its docstring is what `umbel list operators` shows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from umbel.core.names import unknown
from umbel.core.refusal import Refusal
from umbel.models.base import Model
from umbel.models.maps import calls
from umbel.models.operators.base import Site, UnfitError

KINDS = ("conv", "dense", "depthwise")


@dataclass(frozen=True)
class Row:
    """Where an operator is.

    Attributes:
        module: Its file.
        takes: `conv`, a convolution that the function accepts, or `model`.
        watched: Whether its kernels are parameters that are convolved as they stand, so that a method which goes by
            the inputs of each weight (FOT) sees them.
    """

    module: str
    takes: str = "conv"
    watched: bool = True


# In the order in which several of them are put into one model.
TABLE: dict[str, Row] = {
    "wconv": Row("umbel.models.operators.wconv", watched=False),
    "dcls": Row("umbel.models.operators.dcls", watched=False),
    "separable": Row("umbel.models.operators.separable"),
    "e2gc": Row("umbel.models.operators.e2gc"),
    "sgconv": Row("umbel.models.operators.sgconv", watched=False),
    "msa_conv": Row("umbel.models.operators.msa_conv"),
    "local_global": Row("umbel.models.operators.local_global"),
    "dolg": Row("umbel.models.operators.dolg", takes="model"),
    "glsim": Row("umbel.models.operators.glsim", takes="model"),
}


def names() -> tuple[str, ...]:
    """Return the names of the operators, in the order in which several are applied."""
    return tuple(TABLE)


def is_watched(name: str) -> bool:
    """Say whether an operator's weights are seen by methods that go by what each weight is multiplied with."""
    return _row(name).watched


def describe(name: str) -> str:
    """Return one line about an operator."""
    return documentation(name).partition("\n")[0]


def documentation(name: str) -> str:
    """Return the docstring of an operator."""
    return inspect.getdoc(_function(name)) or name


def options(name: str) -> dict[str, Any]:
    """Return the options of an operator with their defaults; `layers` is one of those that take convolutions."""
    own = dict(list(inspect.signature(_function(name)).parameters.items())[1:])
    layers: dict[str, Any] = {"layers": "conv"} if TABLE[name].takes == "conv" else {}
    return layers | {key: parameter.default for key, parameter in own.items()}


def check(name: str, given: Mapping[str, Any]) -> None:
    """Refuse an operator or an option that there is not.

    Raises:
        umbel.core.names.UnknownNameError: The message says the nearest known.
    """
    _row(name)
    known = options(name)
    for option in given:
        if option not in known:
            raise unknown("option", option, known, key=f"model.operators.{name}.{option}")


def replace(model: Model, layers: str | Sequence[str], operator: str, **given: Any) -> Model:
    """Put an operator in the place of convolutions of `model`, in place, or around the whole of it.

    Args:
        model: Any model of the zoo, or a user's own that has what `umbel.models.base.Model` lists, freshly built.
        layers: `conv`, all convolutions with an odd square kernel of 3 or more that the operator can stand for;
            `dense` or `depthwise`, those of them without groups or with a group a channel; or names of layers, with
            `*` for any part, one or a list. An operator around the model takes `head`.
        operator: A name of `names()`.
        **given: Options of the operator.

    Returns:
        `model` itself, or the model around it.

    Raises:
        umbel.core.names.UnknownNameError: There is no such operator or option.
        Refusal: An option is out of range, no layer is meant, a layer that is named cannot be replaced, or the model
            lacks what `umbel.models.base.Model` lists: the model is then as it was.
        ValueError: `layers` is not `head`, for an operator that goes around the model.
    """
    check(operator, given)
    _check_model(model)
    function = partial(_function(operator), **given)
    if _row(operator).takes == "model":
        if layers != "head":
            raise ValueError(f"The operator {operator} goes around a whole model: say layers='head', found {layers!r}")
        made: Model = function(model)
        return made
    key = f"model.operators.{operator}.layers"
    if not isinstance(layers, str | Sequence):
        raise Refusal(f"{key} should be one of {', '.join(KINDS)}, or names of layers, found {layers!r}.", key=key)
    patterns = [layers] if isinstance(layers, str) else list(layers)
    by_kind = len(patterns) == 1 and patterns[0] in KINDS
    sites = [site for site in _sites(model) if _is_kind(site, patterns[0])] if by_kind else _named(model, patterns, key)
    made_for: list[tuple[Site, nn.Module]] = []
    reason = ""
    for site in sites:
        try:
            made_for.append((site, function(site)))
        except UnfitError as error:
            if not by_kind:
                raise
            reason = error.reason
    # Not before all are made: a layer that is refused leaves the model as it was.
    for site, module in made_for:
        _put(model, site.conv, module.train(site.conv.training))
    if not made_for:
        raise Refusal(
            f"{key}: {type(model).__name__} has no layer of {patterns[0] if by_kind else patterns} for the operator "
            f"{operator}." + (f" The last that was tried: {reason}" if reason else ""),
            key=key,
            remedy="Choose other layers, or another model.",
        )
    return model


def apply(model: Model, operators: Mapping[str, Mapping[str, Any] | None]) -> Model:
    """Put several operators into a model, in the order of `names()`, each with its options (key `model.operators`).

    Raises:
        umbel.core.names.UnknownNameError: There is no such operator or option; the model is then as it was.
        Refusal: See `replace`.
    """
    for name, chosen in operators.items():
        check(name, chosen or {})
    for name in (name for name in TABLE if name in operators):
        given = dict(operators[name] or {})
        layers = given.pop("layers", "conv") if TABLE[name].takes == "conv" else "head"
        model = replace(model, layers, name, **given)
    return model


def _check_model(model: nn.Module) -> None:
    """Raise `Refusal` for a user's model without what operators ask of it."""
    needed = ("features", "num_features", "in_channels", "image_size", "head")
    missing = [name for name in needed if not hasattr(model, name)]
    if missing or not isinstance(model.head, nn.Linear):
        flaw = f"no {', '.join(missing)}" if missing else f"a head that is a {type(model.head).__name__}"
        raise Refusal(
            f"Operators need a model with {', '.join(needed)}, the last a linear layer, as models.base.Model says; "
            f"{type(model).__name__} has {flaw}.",
            key="model.name",
        )


def module_of(name: str) -> str | None:
    """Return the module that the table has for an operator; None for a name that it does not have."""
    return TABLE[name].module if name in TABLE else None


def _row(name: str) -> Row:
    if name not in TABLE:
        raise unknown("operator", name, TABLE, key=f"model.operators.{name}")
    return TABLE[name]


def _function(name: str) -> Callable[..., Any]:
    """Import the function that `name` stands for: the one of its file that has its name."""
    function: Callable[..., Any] = getattr(import_module(_row(name).module), name)
    return function


def _sites(model: Model) -> list[Site]:
    """Return every plain convolution that a forward pass calls, each once, in the order of its calls.

    What an operator has put there is none, also where it derives from one; a convolution that it keeps inside is.
    """
    modules, memo = dict(model.named_modules()), dict[Any, Any]()
    return [
        Site(call.name, module, call.inputs[-2], call.inputs[-1], memo)
        for call in calls(model)
        if type(module := modules[call.name]) is nn.Conv2d and call.inputs is not None and len(call.inputs) == 4
    ]


def _is_kind(site: Site, kind: str) -> bool:
    """Say whether a convolution belongs to one of `KINDS`."""
    rows, columns = site.conv.kernel_size
    if rows != columns or rows < 3 or not rows % 2 or site.conv.padding_mode != "zeros":
        return False
    return kind == "conv" or (site.depthwise if kind == "depthwise" else site.dense)


def _named(model: Model, patterns: Sequence[object], key: str) -> list[Site]:
    """Return the convolutions whose names fit one of the patterns."""
    sites = _sites(model)
    for pattern in patterns:
        if not isinstance(pattern, str) or not any(fnmatchcase(site.name, pattern) for site in sites):
            known = ", ".join(site.name for site in sites) or "none"
            raise Refusal(
                f"{key} should be one of {', '.join(KINDS)} alone, or names of convolutions of {type(model).__name__}, "
                f"found {pattern!r}; these are: {known}.",
                key=key,
            )
    return [site for site in sites if any(fnmatchcase(site.name, str(pattern)) for pattern in patterns)]


def _put(model: Model, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another wherever the model has it."""
    for parent in list(model.modules()):
        # Not `named_children`: it leaves out a layer that a module has a second time.
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)
