"""Representations of a public set as what travels: unit vectors in few bytes, and how they are collected.

Legend: M public samples, D dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from umbel.core.collecting import Collect
from umbel.core.records import BadReplyError, Payload
from umbel.core.tree import Tree
from umbel.core.wire.limits import Size
from umbel.models.pair import MODALITIES

WIRES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
_TOLERANCE = 0.01  # of a row's length of 1; float16 is off by less than a tenth of it


def to_wire(unit_MD: Tensor, wire: str) -> Tensor:
    """Return unit vectors as they travel, [M, D]; int8 holds each row scaled to its largest entry.

    Raises:
        ValueError: A row is zero, or holds NaN or infinity, which int8 could not say.
    """
    lengths = torch.linalg.norm(unit_MD, dim=1)
    if not bool(torch.isfinite(lengths).all()) or not bool((lengths > 0).all()):
        raise ValueError(
            "Representations hold NaN, infinity or rows of zeros: a model has diverged. Lower client.lr, or at the "
            "server strategy.server_lr and strategy.distil."
        )
    if wire != "int8":
        return unit_MD.to(WIRES[wire]).cpu()
    peak = unit_MD.abs().amax(1, keepdim=True).clamp_min(1e-12)
    return (127 * unit_MD / peak).round().to(torch.int8).cpu()


def from_wire(sent_MD: Tensor) -> Tensor:
    """Return what travelled as unit vectors, [M, D] float32."""
    return F.normalize(sent_MD.to(torch.float32), dim=1)


class Representations(Collect):
    """Keeps the representations of each client: unit vectors [M, D] of the modalities that it has.

    Args:
        wire: Numbers that travel.
    """

    def __init__(self, wire: str) -> None:
        super().__init__(optional=MODALITIES)
        self._dtype = WIRES[wire]

    def most(self, payload: Payload, num_replies: int) -> Size:
        sent = payload.trees["representations"]["image"]
        row = 8 * (sent.numel() + 2)  # and whose it is, of how many examples
        return Size(row * len(MODALITIES) * num_replies, 3 * len(MODALITIES))

    def check(self, what: str, tree: Tree, payload: Payload) -> None:
        super().check(what, tree, payload)
        expected = payload.trees["representations"]["image"].shape
        if not tree or not set(tree) <= set(MODALITIES):
            raise BadReplyError(f"{what}: expected image, text or both, found {sorted(tree)}")
        for name, sent in tree.items():
            if sent.shape != expected or sent.dtype != self._dtype:
                raise BadReplyError(
                    f"{what}: expected {name} as {self._dtype} {list(expected)}, found {sent.dtype} {list(sent.shape)}"
                )
            lengths = torch.linalg.norm(sent.float(), dim=1)
            if not bool((lengths > 0).all()) or (
                sent.is_floating_point() and bool(((lengths - 1).abs() > _TOLERANCE).any())
            ):
                raise BadReplyError(f"{what}: {name} holds rows that are no unit vectors")
