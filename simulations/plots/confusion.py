"""Confusion matrices: of one run, or of several strategies side by side.

Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from umbel.simulations.plots import heat
from umbel.simulations.plots.runs import DPI, new_figure

_ACROSS, _MANY = 3, 6  # panels in a row, one more of them where there are many
_NUMBERED = 12  # classes at most whose cells have numbers, and that are named on the sides of small panels
_TICKS = (0, 0.01, 0.05, 0.2, 0.5, 1)
_SAID = "share of the class's examples (blank: none)"

Shares = NDArray[np.float64]


def matrices(shares: Mapping[str, Shares], names: Sequence[str], title: str) -> Figure:
    """Draw for each strategy what the examples of each class (rows) were taken for (columns).

    Colours grow with the square root, so that few confused examples are seen beside many right ones.

    Args:
        shares: By strategy [C, C], each row over its sum; NaN for classes without examples.
        names: C names.
        title: Title.
    """
    norm = PowerNorm(0.5, 0, 1)
    blank = {label: np.where(values > 0, values, np.nan) for label, values in shares.items()}
    strengths = {label: heat.strength(values, norm) for label, values in blank.items()}
    figure, side = (_one if len(shares) == 1 else _several)(strengths, blank, names)
    bar = heat.legend(figure, figure.axes, norm, _SAID, shrink=side)
    bar.set_xticks(_TICKS, minor=False)
    bar.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bar.minorticks_off()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _one(strengths: Mapping[str, Shares], values: Mapping[str, Shares], names: Sequence[str]) -> tuple[Figure, float]:
    (strength,), (shares,) = strengths.values(), values.values()
    size = float(np.clip(2.4 + 0.34 * len(names), 4.6, 6.6))
    figure, axes = new_figure(size, size)
    heat.draw(axes, strength)
    heat.name_columns(axes, names, size - 1.2)
    shown = heat.names_or_numbers(names, longest=18)
    every = int(np.ceil(len(names) / 30))
    axes.set_yticks(range(0, len(names), every), shown[::every])
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    if len(names) <= _NUMBERED:
        texts = [["" if np.isnan(value) else _per_cent(value) for value in row] for row in shares]
        heat.write(axes, strength, texts)
    return figure, 0.7


def _several(
    strengths: Mapping[str, Shares], values: Mapping[str, Shares], names: Sequence[str]
) -> tuple[Figure, float]:
    columns = min(len(strengths), _ACROSS + (len(strengths) > _MANY))
    num_rows = int(np.ceil(len(strengths) / columns))
    side = 7.2 / columns
    layout = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06)
    figure = Figure(figsize=(7.2, 1.1 + (side + 0.15) * num_rows), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    cells = figure.subplots(num_rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    numbers = range(len(names))
    for axes, (label, strength) in zip(cells, strengths.items(), strict=False):
        heat.draw(axes, strength)
        axes.set_title(label, loc="left", fontsize=heat.FONT)
        axes.set_box_aspect(1)
        if len(names) <= _NUMBERED:
            axes.set_xticks(numbers, list(map(str, numbers)))
            axes.set_yticks(numbers, list(map(str, numbers)))
    for axes in cells[len(strengths) :]:
        axes.remove()
    for number, axes in enumerate(cells[: len(strengths)]):
        if number % columns == 0:
            axes.set_ylabel("class", fontsize=heat.FONT)
        if number + columns >= len(strengths):  # the lowest of its column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("taken for", fontsize=heat.FONT)
    return figure, 0.5


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.005 else "<1"
