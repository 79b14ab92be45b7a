"""Encoders by name."""

from __future__ import annotations

from data.types import DataSet


def names() -> tuple[str, ...]:
    """Return the names that `data.encoder` takes."""
    return ()


def describe(name: str) -> str:
    """Return one line about an encoder."""
    raise NotImplementedError(name)


def check(name: str, image_size: int) -> None:
    """Raise before anything starts when the encoder cannot be used."""
    raise NotImplementedError(name)


def encode(data_set: DataSet, name: str, image_size: int) -> DataSet:
    """Return the set with embeddings in place of its images or texts."""
    raise NotImplementedError(name)
