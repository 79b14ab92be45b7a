"""Pictures of what models look at, of their filters, and of how far they have collapsed.

Shapes: M images, S side of an image, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from umbel.simulations.plots.runs import COLOURS, DPI, new_figure

_SIDE = 96  # pixels of a picture in a sheet
_INCHES = 0.82  # of its side on paper
_HEAT = colormaps["inferno"]
_NAMED = 6  # layers at most whose names fit below a panel
_LONGEST = 18  # letters of a label beside a row
GLOBAL = "global"


@dataclass(frozen=True)
class Column:
    """A column of a sheet.

    Attributes:
        title: Above it, a line or two.
        heat: Maps [M, s, s] in 0..1 that are laid over the images, or None for the images alone.
        marked: Whether the title is red.
    """

    title: str
    heat: Tensor | None = None
    marked: bool = False


def sheet(images: Tensor, labels: Sequence[str], columns: Sequence[Column], title: str) -> Figure:
    """Draw a row an image and a column a model or layer, heat over the grey image: dark little, bright much.

    Args:
        images: [M, 1 or 3, S, S], uint8 or in units of [0, 1].
        labels: Beside each row, M.
        columns: What is laid over them.
        title: Title.
    """
    pictures = _pictures(images)
    size = ((len(columns)) * _INCHES + 1.3, len(images) * _INCHES + 0.9)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)  # type: ignore[union-attr, call-arg]
    cells = figure.subplots(len(images), len(columns), squeeze=False)
    for across, column in enumerate(columns):
        heat = None if column.heat is None else _resized(column.heat[:, None]).squeeze(1).numpy()
        for down in range(len(images)):
            axes = cells[down, across]
            axes.imshow(pictures[down] if heat is None else _over(pictures[down], heat[down]), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color("0.8")
        cells[0, across].set_title(column.title, fontsize=7, color=COLOURS[1] if column.marked else "black")
    for down, label in enumerate(labels):
        said = label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"
        cells[down, 0].set_ylabel(said, fontsize=7, rotation=0, ha="right", va="center", parse_math=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _pictures(images: Tensor) -> NDArray[np.float32]:
    """Return images as [M, side, side, 3] in 0..1."""
    scaled = images.float().div(255) if images.dtype == torch.uint8 else images.float()
    mode = "area" if images.shape[-1] > _SIDE else "nearest-exact"
    scaled = F.interpolate(scaled, size=(_SIDE, _SIDE), mode=mode).clamp(0, 1)
    pictures: NDArray[np.float32] = (
        (scaled.expand(-1, 3, -1, -1) if scaled.shape[1] == 1 else scaled[:, :3]).permute(0, 2, 3, 1).numpy()
    )
    return pictures


def _resized(heat: Tensor) -> Tensor:
    return F.interpolate(heat.float(), size=(_SIDE, _SIDE), mode="bilinear", align_corners=False).clamp(0, 1)


def _over(picture: NDArray[np.float32], heat: NDArray[np.float32]) -> NDArray[np.float32]:
    grey = picture.mean(axis=2, keepdims=True).repeat(3, axis=2)
    mixed: NDArray[np.float32] = 0.4 * grey + 0.6 * _HEAT(heat)[..., :3]
    return mixed


def outliers(
    values: Mapping[int, float], far: Sequence[int], bound: float | None, title: str, what: str, said: str
) -> Figure:
    """Draw a bar for each client; those that stand out are orange, and a line is drawn where that begins.

    Args:
        values: By client.
        far: Clients that stand out.
        bound: Where that begins, in the unit of the values; None draws no line.
        title: Title.
        what: What the values are, with their unit.
        said: What is written at the line.
    """
    figure, axes = new_figure(7.2, 3.0)
    clients = sorted(values)
    colours = [COLOURS[1] if client in far else COLOURS[0] for client in clients]
    axes.bar(range(len(clients)), [values[client] for client in clients], color=colours, width=0.75)
    if bound is not None and np.isfinite(bound):
        axes.axhline(bound, color="0.3", linewidth=1, linestyle="--")
        at_left = sum(2 * place > len(clients) for place, client in enumerate(clients) if client in far) > len(far) / 2
        axes.annotate(
            said,
            (0.005 if at_left else 1, bound),
            (0, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="left" if at_left else "right",
            va="bottom",
            fontsize=8,
        )
    _by_client(axes, clients, "client" + (" (above the line: orange)" if far else ""))
    axes.set_ylabel(what)
    axes.set_title(title, loc="left", fontsize=11)
    return figure


def bounded(
    values: Mapping[int, float], bounds: Mapping[int, float], far: Sequence[int], title: str, what: str
) -> Figure:
    """Draw a bar for each client and a line across it for the least that is in order; suspects are orange.

    Args:
        values: By client.
        bounds: By client, the least that is in order.
        far: The suspects.
        title: Title.
        what: What the values are, with their unit.
    """
    figure, axes = new_figure(7.2, 3.0)
    clients = sorted(values)
    colours = [COLOURS[1] if client in far else COLOURS[0] for client in clients]
    axes.bar(range(len(clients)), [values[client] for client in clients], color=colours, width=0.75)
    for place, client in enumerate(clients):
        said = "least that is in order" if place == 0 else None
        axes.plot((place - 0.45, place + 0.45), (bounds[client],) * 2, color="0.15", linewidth=1.5, label=said)
    axes.axhline(0, color="0.3", linewidth=0.8)
    _by_client(axes, clients, "client" + (" (suspect: orange)" if far else ""))
    axes.set_ylabel(what)
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(1, 1.02))
    axes.set_ylim(min(0, *values.values(), *bounds.values()) - 0.05, 1.15)
    return figure


def _by_client(axes: Axes, clients: Sequence[int], said: str) -> None:
    every = int(np.ceil(len(clients) / 30))
    axes.set_xticks(range(0, len(clients), every), [str(client) for client in clients[::every]], fontsize=8)
    axes.set_xlabel(said)
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)


@dataclass(frozen=True)
class Layers:
    """A panel of values by layer.

    Attributes:
        title: Its title.
        of: For each model the value at each layer; the global model's is drawn thick, under `GLOBAL`.
        bounds: Dashed curves, by label: a value a layer.
    """

    title: str
    of: Mapping[str, Mapping[str, float]]
    bounds: Mapping[str, Mapping[str, float]]


def by_layer(panels: Sequence[Layers], title: str) -> Figure:
    """Draw panels of values by layer, from the first layer to the last: the global model's and each client's."""
    figure = Figure(figsize=(7.2, 0.6 + 2.5 * len(panels)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    cells = figure.subplots(len(panels), 1, squeeze=False).flatten()
    for axes, panel in zip(cells, panels, strict=True):
        for label, values in panel.of.items():
            if label != GLOBAL:
                axes.plot(list(values.values()), color=COLOURS[4], linewidth=0.8, alpha=0.7)
        if len(panel.of) > 1:
            axes.plot([], [], color=COLOURS[4], linewidth=0.8, label="each client")
        if GLOBAL in panel.of:
            mark = {"marker": "o", "markersize": 3.5}
            axes.plot(list(panel.of[GLOBAL].values()), color=COLOURS[0], linewidth=2, label=GLOBAL, **mark)
        for index, (label, values) in enumerate(panel.bounds.items()):
            axes.plot(list(values.values()), color="0.4", linestyle=("--", ":")[index % 2], linewidth=1, label=label)
        drawn = [value for values in panel.of.values() for value in values.values()]
        if min(drawn) == 0:
            axes.set_ylim(0, max(0.01, 1.05 * max(drawn)))
        axes.set_title(panel.title, loc="left", fontsize=9)
        axes.set_xlabel("layer, from the first to the last", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        ticks = [name.removesuffix(".weight") for name in next(iter(panel.of.values()))]
        if len(ticks) <= _NAMED and max(map(len, ticks)) <= _LONGEST:
            axes.set_xticks(range(len(ticks)), ticks)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="best")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def spread(values: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Draw a small panel for each measure: a dot for each client, a line for the global model.

    Args:
        values: For each measure the value of each model, the global one's under `GLOBAL`.
        title: Title.
    """
    figure = Figure(figsize=(7.2, 2.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    cells = figure.subplots(1, len(values), squeeze=False).flatten()
    for axes, (name, models) in zip(cells, values.items(), strict=True):
        own = [value for label, value in models.items() if label != GLOBAL]
        places = np.linspace(-0.25, 0.25, len(own)) if len(own) > 1 else np.zeros(len(own))
        axes.plot(places, own, "o", color=COLOURS[4], markersize=4, label="each client")
        if GLOBAL in models:
            axes.axhline(models[GLOBAL], color=COLOURS[0], linewidth=2, label=GLOBAL)
        axes.set_xlim(-0.5, 0.5)
        axes.set_xticks([])
        axes.set_title(name, loc="left", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*cells[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure
