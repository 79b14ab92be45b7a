"""Encoders by name: an explicit table, each module imported when its encoder is first asked for.

A name is `name`, or `name:argument`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from umbel.core.names import unknown
from umbel.data.encoders import embed
from umbel.data.encoders.base import Encoder
from umbel.data.encoders.progress import Progress
from umbel.data.errors import DataError
from umbel.data.texts import Texts
from umbel.data.types import DataSet, Examples

# name -> module:object; what stands after a colon of a name is an argument that must be given
_TABLE: Mapping[str, str] = {
    "clip:<name or folder>": "umbel.data.encoders.clip:CLIP",
    "lite0": "umbel.data.encoders.lite:LITE0",
    "lite2": "umbel.data.encoders.lite:LITE2",
    "minilm": "umbel.data.encoders.minilm:MINILM",
    "pca:<d>": "umbel.data.encoders.pixels:PRINCIPAL",
    "pixels": "umbel.data.encoders.pixels:PIXELS",
}
_FITTED = {"pca"}  # to the training images; the others are what they are


def names() -> tuple[str, ...]:
    """Return the names that `data.encoder` takes; what stands in angle brackets is to be replaced."""
    return tuple(_TABLE)


def describe(name: str) -> str:
    """Return one line about an encoder."""
    return _encoder(name)[0].description


def check(name: str, image_size: int) -> None:
    """Raise before anything starts when the encoder cannot be used.

    Args:
        name: A name of `names()`.
        image_size: `data.encoder_size`; 0 is the encoder's own.

    Raises:
        UnknownNameError: There is no such encoder.
        MissingDataError: A package or the weights are not on this machine; the message has the command.
        DataError: The argument or the size cannot be.
    """
    encoder, argument = _encoder(name)
    encoder.check(argument, image_size)


def encode(data_set: DataSet, name: str, image_size: int, progress: Progress | None = None) -> DataSet:
    """Return the set with embeddings in place of its images, or of its texts; all else stays.

    An encoder that takes images and texts takes the images of a set that has both. An encoder of texts takes the
    texts, also of a set that has images, which are then gone.

    Args:
        data_set: Images [N, C, H, W], or texts, or both.
        name: The encoder.
        image_size: `data.encoder_size`; 0 is the encoder's own.
        progress: Told how far it is (done, total); None shows a bar where stderr is a terminal.

    Raises:
        DataError: The set has not what the encoder takes; or as `check`.
    """
    encoder, argument = _encoder(name)
    encoder.check(argument, image_size)
    has_images = data_set.train.images.ndim == 4
    if not has_images and data_set.train.images.shape[1]:
        raise DataError(
            f"{data_set.name} holds embeddings already.", key="data.encoder", remedy=f"Remove data.encoder={name}."
        )
    has_texts = data_set.train.texts is not None and data_set.test.texts is not None
    if not (has_images and "images" in encoder.takes) and not (has_texts and "texts" in encoder.takes):
        content = " and ".join(what for what, has in (("images", has_images), ("texts", has_texts)) if has)
        fitting = [other for other in _TABLE if any(_takes(other, what) for what in content.split(" and "))]
        raise DataError(
            f"data.encoder={name} takes {' or '.join(sorted(encoder.takes))}, and {data_set.name} has {content}.",
            key="data.encoder",
            remedy=f"Set data.encoder to one of {', '.join(fitting)}, or data.name to another set.",
        )

    def embedded(examples: Examples, split: str) -> Examples:
        label = f"{data_set.name}-{split}-{name}"
        if has_images and "images" in encoder.takes:
            plan = encoder.images(argument, image_size, examples.images, data_set.train.images)
            return replace(examples, images=embed.images(examples.images, plan, label, progress))
        assert examples.texts is not None
        return replace(examples, images=embed.texts(examples.texts, encoder.texts(argument), label, progress))

    train, test = embedded(data_set.train, "train"), embedded(data_set.test, "test")
    return replace(data_set, train=train, test=test, mean=(), std=())


def encode_images(
    images: Tensor, name: str, size: int = 0, label: str = "images", progress: Progress | None = None
) -> Tensor:
    """Return the embeddings of images, from the cache where they were made before.

    Args:
        images: [N, C, H, W], uint8 or floating point in [0, 1].
        name: The encoder; `pca:<d>` is fitted to these images.
        size: Side in pixels they are resized to; 0 is the encoder's own.
        label: What a person recognises the cache's entry by.
        progress: Told how far it is (done, total); None shows a bar where stderr is a terminal.

    Returns:
        [N, D] float32, mapped into memory.

    Raises:
        DataError: The encoder takes no images; or as `check`.
    """
    if images.ndim != 4:
        raise DataError(f"Expected images of shape [N, C, H, W], found {tuple(images.shape)}.")
    encoder, argument = _encoder(name)
    encoder.check(argument, size)
    return embed.images(images, encoder.images(argument, size, images, images), f"{label}-{name}", progress)


def num_features(name: str, size: int, channels: int, side: int) -> int:
    """Return the length D of embeddings of images of so many channels and pixels on a side; none is made.

    Raises:
        DataError: The encoder takes no images; or as `check`.
    """
    encoder, argument = _encoder(name)
    encoder.check(argument, size)
    empty = torch.zeros(1, channels, side, side, dtype=torch.uint8)
    return encoder.images(argument, size, empty, empty).num_features


def is_fitted(name: str) -> bool:
    """Say whether an encoder is fitted to the training images of a set."""
    return name.partition(":")[0] in _FITTED


def open_images(name: str, size: int, fit: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what makes embeddings [B, D] of images [B, C, H, W]; nothing is cached but what an encoder is fitted to.

    Args:
        name: The encoder.
        size: `data.encoder_size`; 0 is the encoder's own.
        fit: [N, C, H, W], what a fitted encoder is fitted to; of others only the shape of an image matters.

    Raises:
        DataError: The encoder takes no images; or as `check`.
    """
    encoder, argument = _encoder(name)
    encoder.check(argument, size)
    return encoder.images(argument, size, fit, fit).open()


def encode_texts(texts: Texts, name: str, label: str = "texts", progress: Progress | None = None) -> Tensor:
    """Return the embeddings of texts, from the cache where they were made before.

    Args:
        texts: N texts.
        name: The encoder.
        label: What a person recognises the cache's entry by.
        progress: Told how far it is (done, total); None shows a bar where stderr is a terminal.

    Returns:
        [N, D] float32, mapped into memory.

    Raises:
        DataError: The encoder takes no texts; or as `check`.
    """
    encoder, argument = _encoder(name)
    encoder.check(argument, 0)
    return embed.texts(texts, encoder.texts(argument), f"{label}-{name}", progress)


def module_of(name: str) -> str | None:
    """Return the module that the table has for an encoder; None for a name that it does not have."""
    table = {key.partition(":")[0]: path for key, path in _TABLE.items()}
    path = table.get(name.partition(":")[0])
    return path.partition(":")[0] if path else None


def _takes(name: str, what: str) -> bool:
    return what in _encoder(name)[0].takes


def _encoder(name: str) -> tuple[Encoder, str]:
    """Return the encoder of a name, and what follows the colon."""
    first, _, argument = name.partition(":")
    table = {key.partition(":")[0]: path for key, path in _TABLE.items()}
    if first not in table:
        raise unknown("encoder", name, _TABLE, key="data.encoder")
    module, _, attribute = table[first].partition(":")
    return cast(Encoder, getattr(importlib.import_module(module), attribute)), argument
