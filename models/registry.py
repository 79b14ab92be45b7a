"""Find a model by name and build it.

A family is one file of this folder. To add one, write the file and add a row a model to `TABLE`; nothing here
imports a family before it is asked for. A factory has the signature

    factory(num_classes, image_size=<published>, in_channels=3, *, <size>=<default>, ...) -> Model

and the first line of its docstring is what `umbel list models` shows.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import Any

from umbel.core import outside
from umbel.core.names import unknown
from umbel.core.refusal import Refusal
from umbel.models import own
from umbel.models.base import Model, check_count
from umbel.models.own import Factory

# name -> (module, factory)
TABLE: dict[str, tuple[str, str]] = {
    "affnet_et": ("umbel.models.affnet", "affnet_et"),
    "affnet_s": ("umbel.models.affnet", "affnet_s"),
    "affnet_t": ("umbel.models.affnet", "affnet_t"),
    "affnet_tiny32": ("umbel.models.affnet", "affnet_tiny32"),
    "alexnet_small": ("umbel.models.alexnet", "alexnet_small"),
    "cas_vit_m": ("umbel.models.cas_vit", "cas_vit_m"),
    "cas_vit_s": ("umbel.models.cas_vit", "cas_vit_s"),
    "cas_vit_t": ("umbel.models.cas_vit", "cas_vit_t"),
    "cas_vit_tiny32": ("umbel.models.cas_vit", "cas_vit_tiny32"),
    "cas_vit_xs": ("umbel.models.cas_vit", "cas_vit_xs"),
    "cnn": ("umbel.models.cnn", "cnn"),
    "convit_base": ("umbel.models.convit", "convit_base"),
    "convit_small": ("umbel.models.convit", "convit_small"),
    "convit_tiny": ("umbel.models.convit", "convit_tiny"),
    "convit_tiny32": ("umbel.models.convit", "convit_tiny32"),
    "convnext_dcls_small": ("umbel.models.convnext_dcls", "convnext_dcls_small"),
    "convnext_dcls_tiny": ("umbel.models.convnext_dcls", "convnext_dcls_tiny"),
    "convnext_dcls_tiny32": ("umbel.models.convnext_dcls", "convnext_dcls_tiny32"),
    "cvt_13": ("umbel.models.cvt", "cvt_13"),
    "cvt_21": ("umbel.models.cvt", "cvt_21"),
    "cvt_tiny32": ("umbel.models.cvt", "cvt_tiny32"),
    "dual_token_vit_s": ("umbel.models.dual_token_vit", "dual_token_vit_s"),
    "dual_token_vit_tiny32": ("umbel.models.dual_token_vit", "dual_token_vit_tiny32"),
    "duoformer_r18": ("umbel.models.duoformer", "duoformer_r18"),
    "duoformer_r50": ("umbel.models.duoformer", "duoformer_r50"),
    "duoformer_tiny32": ("umbel.models.duoformer", "duoformer_tiny32"),
    "fit_s": ("umbel.models.fit", "fit_s"),
    "fit_tiny32": ("umbel.models.fit", "fit_tiny32"),
    "gcvit_small": ("umbel.models.gcvit", "gcvit_small"),
    "gcvit_tiny": ("umbel.models.gcvit", "gcvit_tiny"),
    "gcvit_tiny32": ("umbel.models.gcvit", "gcvit_tiny32"),
    "gcvit_xtiny": ("umbel.models.gcvit", "gcvit_xtiny"),
    "gcvit_xxtiny": ("umbel.models.gcvit", "gcvit_xxtiny"),
    "glnet_4g": ("umbel.models.glnet", "glnet_4g"),
    "glnet_9g": ("umbel.models.glnet", "glnet_9g"),
    "glnet_stl": ("umbel.models.glnet", "glnet_stl"),
    "glnet_tiny32": ("umbel.models.glnet", "glnet_tiny32"),
    "inception_next_atto": ("umbel.models.inception_next", "inception_next_atto"),
    "inception_next_small": ("umbel.models.inception_next", "inception_next_small"),
    "inception_next_tiny": ("umbel.models.inception_next", "inception_next_tiny"),
    "inception_next_tiny32": ("umbel.models.inception_next", "inception_next_tiny32"),
    "lenet": ("umbel.models.lenet", "lenet"),
    "linear": ("umbel.models.linear", "linear"),
    "lsnet_b": ("umbel.models.lsnet", "lsnet_b"),
    "lsnet_s": ("umbel.models.lsnet", "lsnet_s"),
    "lsnet_t": ("umbel.models.lsnet", "lsnet_t"),
    "lsnet_tiny32": ("umbel.models.lsnet", "lsnet_tiny32"),
    "maxvit_small": ("umbel.models.maxvit", "maxvit_small"),
    "maxvit_tiny": ("umbel.models.maxvit", "maxvit_tiny"),
    "maxvit_tiny32": ("umbel.models.maxvit", "maxvit_tiny32"),
    "mlp": ("umbel.models.mlp", "mlp"),
    "ms_mlp_s": ("umbel.models.ms_mlp", "ms_mlp_s"),
    "ms_mlp_t": ("umbel.models.ms_mlp", "ms_mlp_t"),
    "ms_mlp_tiny32": ("umbel.models.ms_mlp", "ms_mlp_tiny32"),
    "raftmlp_l": ("umbel.models.raftmlp", "raftmlp_l"),
    "raftmlp_m": ("umbel.models.raftmlp", "raftmlp_m"),
    "raftmlp_s": ("umbel.models.raftmlp", "raftmlp_s"),
    "raftmlp_tiny32": ("umbel.models.raftmlp", "raftmlp_tiny32"),
    "resnet18": ("umbel.models.resnet", "resnet18"),
    "resnet34": ("umbel.models.resnet", "resnet34"),
    "sgconvnext_t": ("umbel.models.sgconvnext", "sgconvnext_t"),
    "sgconvnext_tiny32": ("umbel.models.sgconvnext", "sgconvnext_tiny32"),
    "spartan": ("umbel.models.spartan", "spartan"),
    "spartan_tiny32": ("umbel.models.spartan", "spartan_tiny32"),
    "tic_tiny32": ("umbel.models.tic", "tic_tiny32"),
    "transnext_micro": ("umbel.models.transnext", "transnext_micro"),
    "transnext_small": ("umbel.models.transnext", "transnext_small"),
    "transnext_tiny": ("umbel.models.transnext", "transnext_tiny"),
    "transnext_tiny32": ("umbel.models.transnext", "transnext_tiny32"),
    "uniformer3d_b": ("umbel.models.uniformer3d", "uniformer3d_b"),
    "uniformer3d_s": ("umbel.models.uniformer3d", "uniformer3d_s"),
    "uniformer3d_tiny32": ("umbel.models.uniformer3d", "uniformer3d_tiny32"),
    "uniformer_b": ("umbel.models.uniformer", "uniformer_b"),
    "uniformer_s": ("umbel.models.uniformer", "uniformer_s"),
    "uniformer_tiny32": ("umbel.models.uniformer", "uniformer_tiny32"),
    "uniformer_xxs": ("umbel.models.uniformer", "uniformer_xxs"),
    "unireplknet_a": ("umbel.models.unireplknet", "unireplknet_a"),
    "unireplknet_f": ("umbel.models.unireplknet", "unireplknet_f"),
    "unireplknet_n": ("umbel.models.unireplknet", "unireplknet_n"),
    "unireplknet_p": ("umbel.models.unireplknet", "unireplknet_p"),
    "unireplknet_t": ("umbel.models.unireplknet", "unireplknet_t"),
    "unireplknet_tiny32": ("umbel.models.unireplknet", "unireplknet_tiny32"),
}

_COMMON = ("num_classes", "image_size", "in_channels")


def build(name: str, num_classes: int, image_size: int | None = None, in_channels: int = 3, **sizes: Any) -> Model:
    """Build a model with fresh weights from torch's global generator, which the caller seeds.

    Args:
        name: A name of `names()`, or `package.module:factory`.
        num_classes: C, the number of logits.
        image_size: Side of the images in pixels; None is the size the model was published for.
        in_channels: I, 1 for grey and 3 for colour.
        **sizes: Keywords of `options(name)`, from the key `model.sizes`.

    Raises:
        umbel.core.names.UnknownNameError: An unknown model or size; the message says the nearest known.
        Refusal: A value is out of range, or a factory from outside cannot be imported, does not have the signature,
            raises, or does not return a `Model` of these classes; the message names the key.
    """
    factory = _factory(name)
    known = _known_sizes(name, factory, sizes)
    check_count("model.num_classes", num_classes)
    check_count("model.in_channels", in_channels)
    size = check_count("model.image_size", _published_image_size(factory) if image_size is None else image_size)
    if name not in TABLE:
        model = own.build(name, factory, num_classes, size, in_channels, **sizes)
    else:
        model = _build(name, factory, num_classes, size, in_channels, sizes, known)
    return specified(model, [name, num_classes, size, in_channels, sizes])


# The specs of all models that this process has built.
built: dict[str, None] = {}


def specified(model: Model, said: Sequence[object]) -> Model:
    """Return a model whose spec says what it was built by; models within it, which it has gone through, have none."""
    for module in model.modules():
        if isinstance(module, Model):
            module.spec = ""
    model.spec = json.dumps(said, sort_keys=True, default=str)
    built[model.spec] = None
    return model


def _build(
    name: str,
    factory: Factory,
    num_classes: int,
    size: int,
    in_channels: int,
    sizes: dict[str, Any],
    known: Collection[str],
) -> Model:
    """Build a model of the zoo."""
    try:
        model: Model = factory(num_classes, image_size=size, in_channels=in_channels, **sizes)
    except Refusal:
        raise
    except Exception as error:
        if not sizes:
            raise  # a fault of ours: there is nothing that the user could change
        said = ", ".join(f"{key}={value!r}" for key, value in sizes.items())
        raise Refusal(
            f"Model {name!r} cannot be built with {said}: {type(error).__name__}: {error}.",
            key="model.sizes",
            remedy=f"Known: {', '.join(known) or 'none'}.",
        ) from error
    return model


def check(name: str, sizes: Mapping[str, Any]) -> None:
    """Refuse a model that cannot be, as far as that shows before there are data.

    Args:
        name: As in `build`.
        sizes: Likewise; the values of a model of the zoo are checked when it is built.

    Raises:
        UnknownNameError: An unknown model or size.
        Refusal: A factory from outside cannot be imported, or what it gives cannot be used (`umbel.models.own.check`).
    """
    factory = _factory(name)
    _known_sizes(name, factory, sizes)
    if name not in TABLE:
        own.check(name, factory, sizes)


def names() -> tuple[str, ...]:
    """Return the names of the zoo, sorted."""
    return tuple(sorted(TABLE))


def describe(name: str) -> str:
    """Return one line about a model."""
    return (inspect.getdoc(_factory(name)) or name).partition("\n")[0]


def options(name: str) -> dict[str, Any]:
    """Return the size keywords of a model with their defaults, and `image_size`, the published one."""
    factory = _factory(name)
    return {"image_size": _published_image_size(factory), **_sizes(name, factory)}


def module_of(name: str) -> str | None:
    """Return the module that the table has for a model; None for a name that it does not have."""
    return TABLE[name][0] if name in TABLE else None


def _factory(name: str) -> Factory:
    """Import the factory that `name` stands for."""
    if name in TABLE:
        module_path, attribute = TABLE[name]
        factory: Factory = getattr(import_module(module_path), attribute)
        return factory
    if ":" not in name:
        raise unknown("model", name, names(), key="model.name", own="module:factory")
    return own.find(name)


def _known_sizes(name: str, factory: Factory, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes that a model has, with their defaults; refuse others, unless it takes any."""
    known = _sizes(name, factory)
    for keyword in [] if _takes_any_keyword(factory) else sorted(sizes.keys() - known.keys()):
        if not known:
            raise Refusal(
                f"Unknown size {keyword!r} (key model.sizes.{keyword}). Model {name!r} has no sizes.",
                key=f"model.sizes.{keyword}",
            )
        raise unknown("size", keyword, known, key=f"model.sizes.{keyword}")
    return known


def _sizes(name: str, factory: Factory) -> dict[str, Any]:
    """Return the keywords of `factory` beyond the common ones, with their defaults."""
    with outside.guarded(f"Model {name!r} (key model.name) has no signature to read", "model.name"):
        parameters = inspect.signature(factory).parameters
    missing = [common for common in _COMMON if common not in parameters]
    if missing:
        raise Refusal(
            f"Model {name!r} (key model.name) should take {', '.join(_COMMON)}; missing {', '.join(missing)}.",
            key="model.name",
            remedy="Write it as def model(num_classes, image_size=32, in_channels=3).",
        )
    return {
        key: None if parameter.default is inspect.Parameter.empty else parameter.default
        for key, parameter in parameters.items()
        if key not in _COMMON and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


def _published_image_size(factory: Factory) -> int | None:
    """Return the default of `image_size`; None if the factory has none."""
    default = inspect.signature(factory).parameters["image_size"].default
    return default if isinstance(default, int) else None


def _takes_any_keyword(factory: Factory) -> bool:
    """Say whether `factory` has a `**keywords` parameter, which only a factory from outside may."""
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(factory).parameters.values())
