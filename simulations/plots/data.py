"""Pictures of the data themselves: a sheet of examples of each client.

Shapes: M examples of a client, C channels, H height, W width, S pixels on a side of a drawn example.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from umbel.core.rng import generator
from umbel.data.federation import Federation
from umbel.simulations.commands.data_view import spaced
from umbel.simulations.plots.runs import new_figure

MAX_CLIENTS = 12
COLUMNS = 10
_PIXELS = 64
_GAP = 0.14  # of an example's side
_LINE = 0.2  # height of a line of text, of an example's side
_INCHES = 0.66  # a drawn example's side
_MARGIN_INCHES = 1.3
_FRAME = 0.85  # grey
_LETTERS = 15  # that fit under an example


@dataclass(frozen=True)
class Row:
    """One client on the sheet.

    Attributes:
        label: What stands left of it.
        images: [M, C, H, W], M at most 10.
        captions: M, what stands below each.
    """

    label: str
    images: Tensor
    captions: tuple[str, ...]


def rows(federation: Federation) -> list[Row]:
    """Choose at most 12 clients and 10 examples of each, drawn by the data's seed and sorted by class."""
    pool, seed = federation.pool, int(federation.meta["seed"])
    chosen = []
    for client in spaced(federation.num_clients, MAX_CLIENTS):
        numbers = federation.partition.client(client)
        random = generator(seed, client=client, purpose="sheet of examples")
        drawn = numbers[torch.randperm(len(numbers), generator=random)[:COLUMNS]]
        drawn = drawn[pool.labels[drawn].argsort(stable=True)]
        label = f"client {client:,}\n{len(numbers):,} example{'' if len(numbers) == 1 else 's'}"
        if pool.domains is not None and len(numbers):
            held = torch.unique(pool.domains[numbers])
            label += f"\n{_short(federation.domain_names[int(held)], 18)}" if len(held) == 1 else ""
        if client in federation.shuffled_clients:
            label += "\nlabels shuffled"  # what is written below its pictures is what they were before
        chosen.append(Row(label, pool.images[drawn], tuple(_caption(federation, int(number)) for number in drawn)))
    return chosen


def sheet(rows: Sequence[Row], title: str) -> Figure:
    """Draw a sheet of examples: a row a client, with the class or the text of each example below it.

    Args:
        rows: At least one row; a client without examples is an empty row.
        title: Title.
    """
    lines = max((caption.count("\n") + 1 for row in rows for caption in row.captions if caption), default=0)
    pitch, step = 1 + _GAP, 1 + _GAP + lines * _LINE
    side, across, down = _PIXELS, round(_PIXELS * pitch), round(_PIXELS * step)
    canvas = np.ones((down * len(rows) + 2, across * (COLUMNS - 1) + side + 2, 3), dtype=np.float32)
    width = COLUMNS * pitch * _INCHES + _MARGIN_INCHES
    figure, axes = new_figure(width, len(rows) * step * _INCHES + 0.6)
    for position, row in enumerate(rows):
        top = position * down + 1
        for column, picture in enumerate(_pictures(row.images)):
            left = column * across + 1
            # A hairline shows where a picture ends that is white at its rim.
            canvas[top - 1 : top + side + 1, left - 1 : left + side + 1] = _FRAME
            canvas[top : top + side, left : left + side] = picture
            said = row.captions[column]
            # A text is no formula, be there dollars in it.
            axes.text(
                left + side / 2, top + side + 3, said,
                ha="center", va="top", fontsize=6, linespacing=1.1, parse_math=False,
            )  # fmt: skip
        axes.text(-8, top + side / 2, row.label, ha="right", va="center", fontsize=8)
    axes.imshow(canvas, interpolation="nearest", aspect="equal")
    axes.set_axis_off()
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(w_pad=0.12, h_pad=0.1)  # type: ignore[call-arg]
    axes.set_title(title, loc="left", fontsize=11)
    return figure


def _pictures(images: Tensor) -> NDArray[np.float32]:
    """Return images as [M, S, S, 3] in 0..1: large ones averaged, small ones with their pixels kept."""
    if not len(images):
        return np.empty((0, _PIXELS, _PIXELS, 3), dtype=np.float32)
    scaled = images.float().div(255) if images.dtype == torch.uint8 else images.float()
    mode = "area" if images.shape[-1] > _PIXELS else "nearest-exact"
    scaled = F.interpolate(scaled, size=(_PIXELS, _PIXELS), mode=mode).clamp(0, 1)
    if scaled.shape[1] != 3:
        scaled = scaled.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    return scaled.permute(0, 2, 3, 1).numpy()


def _caption(federation: Federation, number: int) -> str:
    """Return an example's own text where it has one, else the name of its class, cut to two short lines."""
    texts = federation.pool.texts
    name = federation.class_names[int(federation.pool.labels[number])]
    said = name if texts is None else texts[number]
    return "\n".join(textwrap.wrap(said.replace("_", " "), _LETTERS, max_lines=2, placeholder="…"))


def _short(text: str, most: int) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= most else plain[: most - 1].rstrip() + "…"
