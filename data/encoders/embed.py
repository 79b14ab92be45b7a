"""Run an encoder over images or texts, once; the embeddings are cached on disk and mapped into memory.

Memory is bounded: a batch at a time is encoded, and what is done is written to disk piece by piece.

Shapes: N examples, D features, U distinct texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from umbel.data.encoders.base import Plan, tensor_hash
from umbel.data.encoders.progress import Progress, reported
from umbel.data.sources.cache import Maker, cached
from umbel.data.texts import Texts

_KIND, _ARRAY = "features", "features"
_PIECE = 4096  # examples between two closings of the file: what is dirty in memory stays below 100 MB

Fill = Callable[[Callable[[Tensor | slice, Tensor], None]], None]
"""Encodes everything; calls its argument with rows and their embeddings, in any order."""


def images(inputs: Tensor, plan: Plan, label: str, progress: Progress | None = None) -> Tensor:
    """Return the embeddings of images.

    Args:
        inputs: [N, C, H, W].
        plan: The encoder.
        label: What a person recognises the cache's entry by.
        progress: See `reported`.

    Returns:
        [N, D] float32, mapped into memory copy-on-write: all processes of a machine share one copy.
    """

    def fill(write: Callable[[Tensor | slice, Tensor], None]) -> None:
        encode = plan.open()
        with reported(len(inputs), _what(label, plan), progress) as tell:
            for start in range(0, len(inputs), plan.batch):
                batch = inputs[start : start + plan.batch]
                write(slice(start, start + len(batch)), encode(batch))
                tell(start + len(batch), len(inputs))

    return _embeddings(len(inputs), tensor_hash(inputs), plan, label, fill)


def texts(inputs: Texts, plan: Plan, label: str, progress: Progress | None = None) -> Tensor:
    """Return the embeddings of texts; equal texts are encoded once and have equal embeddings.

    Texts are encoded in an order of their own, by length, so that those of a batch have about as many tokens.

    Args:
        inputs: N texts.
        plan: The encoder.
        label: What a person recognises the cache's entry by.
        progress: See `reported`.

    Returns:
        [N, D] float32, as of `images`.
    """

    def fill(write: Callable[[Tensor | slice, Tensor], None]) -> None:
        encode = plan.open()
        given = list(inputs)
        distinct = sorted(set(given), key=lambda text: (len(text), text))
        place = {text: number for number, text in enumerate(distinct)}
        owner = torch.tensor([place[text] for text in given])  # [N], which of the U texts each is
        by_owner = owner.argsort(stable=True)
        bounds = torch.bincount(owner, minlength=len(distinct)).cumsum(0)
        with reported(len(distinct), _what(label, plan), progress) as tell:
            for start in range(0, len(distinct), plan.batch):
                batch = distinct[start : start + plan.batch]
                end = start + len(batch)
                rows = by_owner[int(bounds[start - 1]) if start else 0 : int(bounds[end - 1])]
                write(rows, encode(batch)[owner[rows] - start])
                tell(end, len(distinct))

    return _embeddings(len(inputs), tensor_hash(inputs.content, inputs.offsets), plan, label, fill)


def _what(label: str, plan: Plan) -> str:
    return f"{label} ({plan.note})" if plan.note else label


def _embeddings(count: int, inputs_hash: str, plan: Plan, label: str, fill: Fill) -> Tensor:
    if count == 0:
        return torch.empty(0, plan.num_features)
    shape = (count, plan.num_features)

    def make(maker: Maker) -> None:
        # The file is mapped anew for every piece: pages that were written would otherwise count as ours to the end.
        array, written = maker.empty(_ARRAY, shape, np.float32), 0
        path = maker.path / f"{_ARRAY}.npy"

        def write(rows: Tensor | slice, features: Tensor) -> None:
            nonlocal array, written
            array[rows if isinstance(rows, slice) else rows.numpy()] = features.numpy()
            written += len(features)
            if written >= _PIECE:
                array, written = np.load(path, mmap_mode="r+", allow_pickle=False), 0

        fill(write)
        maker.note(num_features=plan.num_features)

    key = {"inputs": inputs_hash, **plan.identity}
    entry = cached(_KIND, re.sub(r"[^\w.-]+", "-", label)[:80], key, make)
    # Copy-on-write in place of read-only: torch needs no warning, and nobody can be killed by a write.
    array = np.load(entry.path / f"{_ARRAY}.npy", mmap_mode="c", allow_pickle=False)
    return torch.from_numpy(np.asarray(array))
