"""Frozen encoders: embeddings in place of images or texts, made once and cached.

An encoder's name is `name` or `name:argument`; a module of an encoder is imported when it is first asked for.
"""

from __future__ import annotations

from umbel.data.encoders.registry import (
    check,
    describe,
    encode,
    encode_images,
    encode_texts,
    is_fitted,
    names,
    num_features,
    open_images,
)

__all__ = [
    "check",
    "describe",
    "encode",
    "encode_images",
    "encode_texts",
    "is_fitted",
    "names",
    "num_features",
    "open_images",
]
