"""The public pairs of CreamFL: whether they are there, which set they are, and how encoders read them.

Legend: P public samples.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from umbel.core.device import parameter_dtype
from umbel.core.kept import Kept
from umbel.core.refusal import Refusal
from umbel.core.tree import raw_bytes
from umbel.data.types import Examples
from umbel.strategies.base import ClientContext, ServerContext


def _fingerprint(public: Examples) -> float:
    digest = hashlib.sha256(raw_bytes(public.labels) + raw_bytes(public.identities()))
    if public.texts is not None:
        digest.update(raw_bytes(public.texts.content) + raw_bytes(public.texts.offsets))
    for table in (public.images, public.tokens):
        if table is not None:
            digest.update(f"{table.dtype} {list(table.shape)}".encode())
            digest.update(b"" if table.is_floating_point() else raw_bytes(table))
    return float(int.from_bytes(digest.digest()[:6], "little"))


_last = Kept(_fingerprint, limit=1)


def fingerprint(public: Examples) -> float:
    """Return a number that tells public sets apart: 48 bits of a hash of what is the same on every machine.

    That is labels, identities, texts, shapes and dtypes, and images and tokens where they are whole numbers: embeddings
    of a frozen encoder may differ in their last bits between processors. Made once for a set in a process.
    """
    return _last(public)


def public_of(context: ServerContext | ClientContext) -> Examples:
    """Return the public set; refuse without one that has images and texts."""
    public = context.public
    if public is None or public.tokens is None or not public.images.shape[1]:
        raise Refusal(
            "CreamFL needs public pairs of image and text, and there are none.",
            key="data.public",
            remedy="Choose a data.name that has both, and set data.public and data.text_encoder.",
        )
    return public


def rows_of(server: ServerContext, asked: int) -> Tensor:
    """Return the public samples of this round, ascending; `asked` of them, all with 0."""
    total = len(public_of(server))
    if not 0 < asked < total:
        return torch.arange(total)
    return torch.randperm(total, generator=server.rng("public"))[:asked].sort().values


def tables_of(server: ServerContext) -> dict[str, Tensor]:
    """Return the public images and texts on the server's device."""
    public = public_of(server)
    images, _ = server.prepare(public)
    return {"image": images, "text": public.read_tokens(server.device, images.dtype)}


def on_device(examples: Examples, client: ClientContext, modalities: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the images and texts that a client's encoders read, on its device."""
    tables = {}
    if "image" in modalities:
        tables["image"] = client.prepare(examples)[0]
    if "text" in modalities:
        tables["text"] = examples.read_tokens(client.device, parameter_dtype(client.local.precision))
    return tables
