"""The encoders of CreamFL's server and clients: who has which, whether there are such, and how they are built."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from umbel.core.device import parameter_dtype
from umbel.core.names import unknown
from umbel.core.refusal import Refusal
from umbel.core.rng import build_seeded
from umbel.data.types import Examples
from umbel.models import registry
from umbel.models.pair import Encoders, Reader
from umbel.models.text import TextEncoder, TextShape, build_text, text_options
from umbel.strategies.base import ClientContext, ServerContext
from umbel.strategies.creamfl.public import public_of, tables_of

if TYPE_CHECKING:
    from umbel.strategies.creamfl.method import Config

KINDS = ("image", "text", "both")


def modality(client: int, config: Config) -> str:
    """Return what a client has: `image`, `text` or `both`."""
    return KINDS[(client >= config.num_image) + (client >= config.num_image + config.num_text)]


def check_models(config: Config) -> None:
    """Refuse a model or a size that there is not."""
    _check_sizes(
        "server_text_sizes", config.server_text_sizes, text_options(config.server_text, key="strategy.server_text")
    )
    known = {name: text_options(name, key="strategy.text_models") for name in config.text_models}
    _check_sizes("text_sizes", config.text_sizes, known)
    for name, sizes in config.text_sizes.items():
        _check_turns(f"text_sizes.{name}", sizes, known[name])
    for name in config.image_models:
        if name not in registry.names() and ":" not in name:
            raise unknown("model", name, registry.names(), key="strategy.image_models")
    known = {name: registry.options(name) for name in config.image_models}
    _check_sizes("image_sizes", config.image_sizes, known)
    for name, sizes in config.image_sizes.items():
        _check_turns(f"image_sizes.{name}", sizes, [size for size in known[name] if size != "image_size"])


def server_model(config: Config, server: ServerContext) -> Encoders:
    """Return the server's encoders as initialised, on its device."""
    public = public_of(server)

    def make() -> Encoders:
        text = text_encoder(server.vocabulary, public, config.server_text, "server_text", config.server_text_sizes)
        return Encoders(server.build_model(), text, config.dimension)

    dtype = parameter_dtype(server.local.precision)
    return build_seeded(make, server.seed, dtype, purpose="encoders").to(server.device)


def client_model(config: Config, client: ClientContext) -> Encoders:
    """Return the client's encoders as it remembers them, or as initialised."""
    dtype, public = parameter_dtype(client.local.precision), public_of(client)
    make = partial(fresh_encoders, config, client.id, public, client.vocabulary, client.num_classes)
    model = build_seeded(make, client.seed, dtype, client.id, "encoders")
    if client.memory is not None and "encoders" in client.memory.trees:
        model.load_state_dict(dict(client.memory.trees["encoders"]))
    return model.to(client.device)


def fresh_encoders(config: Config, client: int, public: Examples, vocabulary: int, num_classes: int) -> Encoders:
    """Return fresh encoders of a client's kind and architectures."""
    kind = modality(client, config)
    image, text = None, None
    if kind != "text":
        name = config.image_models[client % len(config.image_models)]
        shape = public.images.shape
        size = shape[-1] if len(shape) == 4 else 1
        sizes = sizes_of(client, config.image_sizes.get(name, {}))
        image = registry.build(name, config.dimension, size, shape[1], **sizes)
    if kind != "image":
        name = config.text_models[client % len(config.text_models)]
        text = text_encoder(vocabulary, public, name, "text_models", sizes_of(client, config.text_sizes.get(name, {})))
    return Encoders(image, text, config.dimension, 0 if kind == "both" else num_classes)


def try_models(config: Config, server: ServerContext) -> None:
    """Build each kind of client once and let it read two public pairs: what fails, fails before anything starts."""
    public = public_of(server)
    two = {name: table[:2] for name, table in tables_of(server).items()}
    tables = (*config.image_sizes.values(), *config.text_sizes.values())
    lists = (config.image_models, config.text_models, *(sizes for sizes in tables if isinstance(sizes, list)))
    turns = math.lcm(*map(len, lists))
    seen = set()
    for client in range(server.num_clients):
        kind = (modality(client, config), client % turns)
        if kind in seen:
            continue
        seen.add(kind)
        make = partial(fresh_encoders, config, client, public, server.vocabulary, 1)
        model = build_seeded(make, server.seed, parameter_dtype(server.local.precision), client, "trial")
        Reader(model.to(server.device), two).all()


def text_encoder(vocabulary: int, public: Examples, name: str, key: str, sizes: Mapping[str, Any]) -> TextEncoder:
    """Return a fresh text encoder for the public texts; `key` is the option that names it."""
    length = 0 if public.tokens is None else public.tokens.shape[1]  # `public_of` has looked
    return build_text(name, TextShape(vocabulary, length), key=f"strategy.{key}", **sizes)


def _check_sizes(key: str, sizes: Any, known: Iterable[str]) -> None:
    if not isinstance(sizes, Mapping):
        raise Refusal(
            f"strategy.{key} should be a mapping, found {sizes!r}.",
            key=f"strategy.{key}",
            remedy="Set it to {}.",
        )
    for size in sizes:
        if size not in known:
            raise unknown("size", size, list(known), key=f"strategy.{key}.{size}")


def _check_turns(key: str, sizes: Any, known: Iterable[str]) -> None:
    if isinstance(sizes, list) and not sizes:
        raise Refusal(f"strategy.{key} should have at least one entry.", key=f"strategy.{key}", remedy="Leave it out.")
    for number, each in enumerate(sizes if isinstance(sizes, list) else ()):
        _check_sizes(f"{key}[{number}]", each, known)
    if not isinstance(sizes, list):
        _check_sizes(key, sizes, known)


def sizes_of(client: int, sizes: Any) -> Mapping[str, Any]:
    """Return a client's sizes of a model, where several are taken by turns."""
    own: Mapping[str, Any] = sizes[client % len(sizes)] if isinstance(sizes, list) else sizes
    return own
