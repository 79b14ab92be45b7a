"""Pictures: curves, clients' accuracies, bytes. No global state; colours for every eye.

Shapes: K clients, C classes, R rounds, S seeds.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from umbel.conf.federation import federation
from umbel.conf.own_data import is_own
from umbel.conf.schema import Experiment
from umbel.core.files import write_bytes
from umbel.data.federation import Federation
from umbel.server import agree
from umbel.simulations.report import charts

DPI = 150
COLOURS = charts.COLOURS
DASHES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
_LINES_BESIDE, _LONGEST_LABEL = 6, 24  # with more, or longer ones, the legend stands below the axes
_MARKS_OF_A_LINE = 12
_MOST_SEEDS_SHOWN, _MOST_SHOWN = 10, 50  # of a line, and of all together; more are a fog
_LABEL_GAP = 0.055  # of the height of the axes, from one label to the next

Counts = NDArray[np.int64]
Series = Mapping[Any, float]  # by round, or by second


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of so many inches, apart from any global state, with one set of axes."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


# What of a file would differ from one time to the next, by kind of file.
_UNSAID: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}


def drawn(figure: Figure, kind: str, transparent: bool = False) -> bytes:
    """Return a figure as a file; equal figures give equal bytes.

    Args:
        figure: The figure.
        kind: `png`, `svg` or `pdf`; text stays text in the last two.
        transparent: Leave out what is behind.
    """
    buffer = io.BytesIO()
    as_text = mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "umbel", "pdf.fonttype": 42})
    with warnings.catch_warnings(), as_text:
        # Names and texts in scripts that the font lacks are drawn as boxes; the picture is worth having.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=kind, dpi=DPI, transparent=transparent, metadata=_UNSAID[kind])
    return buffer.getvalue()


def png(figure: Figure) -> bytes:
    """Return a figure as PNG; equal figures give equal bytes."""
    return drawn(figure, "png")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, SVG or PDF, by the file's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, drawn(figure, path.suffix.removeprefix(".")))
    return path


def curves(
    series: Mapping[str, Sequence[Series]],
    title: str,
    ylabel: str,
    percent: bool = True,
    xlabel: str = "round",
    num_colours: int | None = None,
) -> Figure:
    """Draw a line for each label: the mean over seeds, behind it the seeds and a band of one standard deviation.

    Colour, mark and the label at its end tell a line from the others; of many the labels stand below.

    Args:
        series: For each label one mapping from round (or second) to value a seed; those that all seeds have are drawn.
        title: Title.
        ylabel: What is on the y axis, with its unit.
        percent: Values are fractions, to be shown in per cent.
        xlabel: What is counted on the x axis.
        num_colours: After so many lines colours begin again, with another dash; None for as many as there are.
    """
    figure, axes = new_figure(7.2, 4.2)
    num_colours = num_colours or len(COLOURS)
    lowest, drawn = 0.0, list[Line2D]()
    for index, (label, seeds) in enumerate(series.items()):
        rounds = sorted(set.intersection(*(set(one) for one in seeds))) if seeds else []
        if not rounds:
            continue
        values_SR = np.array([[one[r] for r in rounds] for one in seeds])
        mean_R = values_SR.mean(axis=0)
        lowest = min(lowest, float(mean_R.min()))
        colour = COLOURS[index % num_colours]
        dash = DASHES[index // num_colours % len(DASHES)]
        places = max(len(rounds) // _MARKS_OF_A_LINE, 1)
        drawn += axes.plot(
            rounds,
            mean_R,
            dash,
            color=colour,
            label=label,
            marker=MARKS[index % len(MARKS)],
            markevery=places,
            markersize=4,
            linewidth=1.8,
        )
        if (num := len(seeds)) > 1:
            is_shown = num <= _MOST_SEEDS_SHOWN and num * len(series) <= _MOST_SHOWN
            for values_R in values_SR if is_shown else ():
                axes.plot(rounds, values_R, dash, color=colour, alpha=0.3, linewidth=0.7)
            spread_R = values_SR.std(axis=0, ddof=1)
            axes.fill_between(rounds, mean_R - spread_R, mean_R + spread_R, color=colour, alpha=0.16, linewidth=0)
    axes.set_xmargin(0.012)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title, loc="left", fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0.0) if lowest == 0 else low, min(high, 1.0) if high <= 1.0 else 1.005)
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)
    longest = max((len(str(line.get_label())) for line in drawn), default=0)
    if len(drawn) > min(_LINES_BESIDE, num_colours) or longest > _LONGEST_LABEL:
        _legend_below(figure, axes)
    elif len(series) > 1 and drawn:
        _label_ends(axes, drawn)
    return figure


def _label_ends(axes: Axes, lines: Sequence[Line2D]) -> None:
    """Write each line's label beside its end, in its colour, so far apart that they can be read."""
    low, high = axes.get_ylim()
    by_end = sorted(lines, key=lambda line: float(np.asarray(line.get_ydata())[-1]))
    ends = [float(np.asarray(line.get_ydata())[-1]) for line in by_end]
    for line, place in zip(by_end, apart(ends, _LABEL_GAP * (high - low)), strict=True):
        axes.annotate(
            str(line.get_label()),
            (1.0, place),
            (6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=line.get_color(),
            fontsize=9,
            va="center",
        )


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Return ascending places moved as little as it takes for neighbours to be `gap` apart.

    Those that are too near are spread about their mean, together with others that this would touch.
    """
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _spread(groups[-1], gap)[0] - _spread(groups[-2], gap)[-1] < gap:
            last = groups.pop()
            groups[-1] += last
    return [place for group in groups for place in _spread(group, gap)]


def _spread(group: Sequence[float], gap: float) -> list[float]:
    middle = sum(group) / len(group)
    return [middle + gap * (number - (len(group) - 1) / 2) for number in range(len(group))]


def _legend_below(figure: Figure, axes: Axes, num_columns: int = 3) -> None:
    """Put a long legend below the axes, read row by row."""
    handles, labels = axes.get_legend_handles_labels()
    # Matplotlib fills column by column.
    order = [index for column in range(num_columns) for index in range(column, len(labels), num_columns)]
    figure.set_figheight(figure.get_figheight() + 0.2 * np.ceil(len(labels) / num_columns))
    figure.legend(
        [handles[index] for index in order],
        [labels[index] for index in order],
        frameon=False,
        fontsize=8,
        ncols=num_columns,
        loc="outside lower center",
    )


def clients(accuracies: Mapping[str, Sequence[float]], title: str, ylabel: str) -> Figure:
    """Draw clients' accuracies sorted from worst to best: a line a label, so that both tails can be read.

    Args:
        accuracies: For each label the clients' accuracies, fractions.
        title: Title.
        ylabel: What is on the y axis.
    """
    figure, axes = new_figure(7.2, 3.6)
    for index, (label, values) in enumerate(accuracies.items()):
        ordered = np.sort(np.asarray([value for value in values if not np.isnan(value)]))
        if not ordered.size:
            continue
        share = (np.arange(ordered.size) + 0.5) / ordered.size
        mark = "o" if ordered.size <= 60 else None
        colour = COLOURS[index % len(COLOURS)]
        dash = DASHES[index // len(COLOURS) % len(DASHES)]
        axes.plot(share, ordered, dash, color=colour, label=label, marker=mark, markersize=3.5, linewidth=1.5)
        axes.axhline(float(ordered.mean()), color=colour, linewidth=0.8, linestyle=":")
    axes.axvspan(0, 0.1, color="0.5", alpha=0.12, linewidth=0)
    axes.text(0.05, 0.97, "worst\n10 %", ha="center", va="top", fontsize=8, transform=axes.get_xaxis_transform())
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set_xlabel("share of the clients, from the worst to the best")
    axes.set_ylabel(ylabel)
    axes.set_title(title + " (dotted: mean)", loc="left", fontsize=11)
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)
    if len(accuracies) > _LINES_BESIDE:
        _legend_below(figure, axes)
    elif len(accuracies) > 1:
        axes.legend(frameon=False, loc="best", fontsize=9)
    return figure


def bars(values: Mapping[str, Sequence[float]], parts: Sequence[str], title: str, xlabel: str) -> Figure:
    """Draw a stacked horizontal bar for each label.

    Args:
        values: For each label one value a part.
        parts: Names of the parts.
        title: Title.
        xlabel: What is on the x axis, with its unit.
    """
    figure, axes = new_figure(7.2, 1.3 + 0.36 * len(values))
    labels = list(values)
    left = np.zeros(len(labels))
    for index, part in enumerate(parts):
        lengths = np.array([values[label][index] for label in labels])
        axes.barh(labels, lengths, left=left, label=part, color=COLOURS[index % len(COLOURS)], height=0.6)
        left = left + lengths
    axes.invert_yaxis()
    axes.set_xlabel(xlabel)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    if len(parts) > 1:
        figure.legend(frameon=False, fontsize=9, ncols=len(parts), loc="outside lower left")
    return figure


def class_counts(experiment: Experiment, folder: Path | None = None) -> tuple[Counts, tuple[str, ...]]:
    """Load an experiment's data and count; of sites with data of their own, take what they said.

    Args:
        experiment: The experiment.
        folder: A run of it, which knows what sites with data of their own have said.

    Returns:
        Examples of each client and class [K, C], and the names of the classes.

    Raises:
        DataError: The data are missing, or cannot be cut as asked.
    """
    agreement = agree.kept(folder) if folder is not None else None
    if agreement is not None:
        return agreement.table().sum(1).numpy(), agreement.classes
    made = federation(experiment) if is_own(experiment) else Federation.build(experiment.data, experiment.data_seed)
    return made.partition.counts(made.pool.labels, made.num_classes).numpy(), made.class_names
