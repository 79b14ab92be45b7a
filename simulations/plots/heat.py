"""Heat maps: images of one colour, the stronger the more, through which what is behind is seen.

So a page draws them on light and on dark alike (`inline`). A cell is a pixel, however many there are.

Shapes: R rows, C columns; K clients, and C classes of examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from umbel.simulations.plots.runs import Counts, new_figure

COLOUR = (0, 91, 150)  # red, green, blue, of 255
ON_WEAK, ON_STRONG = "#000001", "#ffffff"  # of text in cells: a page has its own, and tells the first from black
FONT = 10
_FAINTEST = 0.1  # of what is there at all
_STEPS = 64
_STRONG = 51 / _STEPS  # above it text in a cell is read better in `ON_STRONG`, on white as on the page's dark
_MAX_LABELS = 60
_MAX_ROWS = 400
_WIDEST = 7.2  # inches

Values = NDArray[np.float64]


def strength(values: Values, norm: Normalize) -> Values:
    """Return how strongly values are drawn, in 0..1 and of the same shape; NaN not at all.

    Args:
        values: Any shape.
        norm: Their place between the least and the most.
    """
    places = np.clip(np.ma.filled(norm(np.ma.masked_invalid(values)), 0.0), 0, 1)
    return np.where(np.isnan(values), 0.0, _FAINTEST + (1 - _FAINTEST) * places)


def draw(axes: Axes, strength_RC: Values) -> None:
    """Draw an image: cell (r, c) is around x = c, y = r, rows from above."""
    axes.spines[:].set_visible(True)
    axes.tick_params(length=0, labelsize=FONT)
    axes.imshow(_image(strength_RC), aspect="auto", interpolation="none")


def _image(strength_RC: Values) -> NDArray[np.uint8]:
    rgba = np.empty((*strength_RC.shape, 4), dtype=np.uint8)
    rgba[..., :3] = COLOUR
    rgba[..., 3] = np.round(np.ceil(_STEPS * strength_RC) / _STEPS * 255)
    return rgba


def is_heat(image: AxesImage) -> bool:
    """Say whether an image is of the one colour."""
    pixels = np.asarray(image.get_array())
    return pixels.ndim == 3 and pixels.shape[2] == 4 and bool((pixels[..., :3] == COLOUR).all())


def legend(figure: Figure, axes: Axes | Sequence[Axes], norm: Normalize, said: str, shrink: float = 0.6) -> Axes:
    """Draw what the colours stand for below axes, from their left, and return its axes.

    Args:
        figure: The figure.
        axes: Whose colours.
        norm: As in `strength`.
        said: What the values are, with their unit.
        shrink: Its length, of the width of the axes.
    """
    mappable = ScalarMappable(norm)
    bar = figure.colorbar(mappable, ax=axes, location="bottom", shrink=shrink, anchor=(0, 1), aspect=30, pad=0.02)
    bar.set_label(said, fontsize=FONT, loc="left")
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.remove()  # in its place, one image
    bar.ax.tick_params(labelsize=FONT)
    ramp = AxesImage(bar.ax, interpolation="none", extent=(0, 1, 0, 1), transform=bar.ax.transAxes)
    ramp.set_data(_image(np.linspace(_FAINTEST, 1, _STEPS)[None, :]))
    bar.ax.add_artist(ramp)
    return bar.ax


def write(axes: Axes, strength_RC: Values, texts: Sequence[Sequence[str]], size: float = 9) -> None:
    """Write into cells, so that it is read on their colour.

    Args:
        axes: Where they were drawn.
        strength_RC: As they were drawn.
        texts: [R, C]; nothing where empty.
        size: Of the letters.
    """
    for row, cells in enumerate(texts):
        for column, text in enumerate(cells):
            if text:
                colour = ON_STRONG if strength_RC[row, column] > _STRONG else ON_WEAK
                axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def heat_map(
    counts_KC: Counts, class_names: Sequence[str], title: str, log: bool | None = None, what: str = "class"
) -> Figure:
    """Draw how many examples of each class (x) each client (y) has; nothing is blank.

    Args:
        counts_KC: [K, C] examples.
        class_names: C names; shown when they are short, else numbers.
        title: Title.
        log: Logarithmic colours; None takes them when counts spread over more than two orders of magnitude.
        what: What is on the x axis, a class or a domain.
    """
    num_clients, num_classes = counts_KC.shape
    shown_KC, step = _thin(counts_KC)
    rows = shown_KC.shape[0]
    width = float(np.clip(1.6 + 0.36 * num_classes, 5.0, _WIDEST))
    figure, axes = new_figure(width, float(np.clip(2.0 + 0.25 * rows, 3.0, 8.0)))
    present = shown_KC[shown_KC > 0]
    largest = float(present.max()) if present.size else 1.0
    if log is None:
        log = bool(present.size) and largest > 100 * float(np.percentile(present, 10))
    norm: Normalize = LogNorm(1, max(largest, 2.0)) if log else Normalize(0, largest)
    strength_KC = strength(np.where(shown_KC > 0, shown_KC, np.nan), norm)
    draw(axes, strength_KC)
    scale = legend(figure, axes, norm, "examples" + (", logarithmic" if log else "") + " (blank: none)")
    if not log:
        scale.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    name_columns(axes, class_names, width - 1.2)
    axes.set_xlabel(what)
    if num_clients <= _MAX_LABELS:
        axes.set_yticks(range(rows), [str(row) for row in range(rows)], fontsize=FONT if rows <= 30 else 6)
        axes.set_ylabel("client")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{int(value * step):,}"))
        axes.set_ylabel("client" if step == 1 else f"client (one of {step} shown)")
    if rows <= 20 and num_classes <= 12 and largest < 10_000:
        write(axes, strength_KC, [[str(count) if count else "" for count in row] for row in shown_KC])
    axes.set_title(title, loc="left", fontsize=11)
    return figure


def _thin(counts_KC: Counts) -> tuple[Counts, int]:
    """Keep every n-th client, so that a row stays at least about two pixels high."""
    step = int(np.ceil(counts_KC.shape[0] / _MAX_ROWS))
    return counts_KC[::step], step


def name_columns(axes: Axes, class_names: Sequence[str], width: float) -> None:
    """Write names below columns, or numbers, turned where they are long and some where they are many.

    Args:
        axes: Where.
        class_names: C names.
        width: Of the axes, in inches.
    """
    names = names_or_numbers(class_names, longest=14 if len(class_names) > 12 else 24)
    longest = max(map(len, names))
    every = int(np.ceil(len(names) / 30))
    turned = longest > 3 and (len(names) > 4 or 0.085 * longest > width / len(names))
    turned = turned or 0.085 * longest > every * width / len(names)
    axes.set_xticks(range(0, len(names), every), names[::every], rotation=90 if turned else 0, fontsize=FONT)


def names_or_numbers(class_names: Sequence[str], longest: int) -> list[str]:
    """Return the names where they are short and say more than their number."""
    short = max(len(name) for name in class_names) <= longest
    telling = any(name != f"class {number}" for number, name in enumerate(class_names))
    return (
        list(class_names)
        if short and telling and len(class_names) <= 40
        else [str(number) for number in range(len(class_names))]
    )
