"""Pictures of a comparison in several settings: means by setting, mean ranks with a critical difference, profiles.

Shapes: N settings, k strategies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from umbel.simulations.plots.runs import COLOURS, new_figure

_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")
_TALLEST = 40.0  # inches

Mean = tuple[float, float, float]  # and the ends of its interval, NaN where there is none


def means(
    values: Mapping[str, Sequence[Mean]], settings: Sequence[str], title: str, xlabel: str, percent: bool = True
) -> Figure:
    """Draw each strategy's mean in each setting, with its interval; what has none, as where a run failed, is left out.

    Args:
        values: By strategy its mean and the ends of its interval, one a setting; NaN for none.
        settings: Their labels, from above.
        title: Title.
        xlabel: What is on the axis of values.
        percent: Values are fractions, to be shown in per cent.
    """
    count = len(values)
    figure, axes = new_figure(7.2, min(1.3 + len(settings) * max(0.4, 0.13 * count + 0.14), _TALLEST))
    rows_N = np.arange(len(settings), dtype=float)
    for index, (label, triples) in enumerate(values.items()):
        shifted_N = rows_N + (index - (count - 1) / 2) * min(0.2, 0.7 / count)
        mean_N, low_N, high_N = np.array([list(each) for each in triples], dtype=float).T
        colour, mark = COLOURS[index % len(COLOURS)], _MARKS[index % len(_MARKS)]
        axes.plot(mean_N, shifted_N, mark, markersize=5, label=label, color=colour)
        axes.hlines(shifted_N, low_N, high_N, linewidth=1.5, color=colour)
    for row in rows_N[:-1]:
        axes.axhline(row + 0.5, color="black", alpha=0.1, linewidth=0.6)
    axes.set_ylim(len(settings) - 0.5, -0.5)
    axes.set_yticks(rows_N, [_shortened(each) for each in settings], fontsize=8)
    axes.tick_params(axis="y", length=0)
    if percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set_xlabel(xlabel)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", alpha=0.3, linewidth=0.6)
    figure.legend(frameon=False, fontsize=8, ncols=min(count, 3), loc="outside lower center")
    return figure


def critical_difference(
    mean_ranks: Mapping[str, float], groups: Sequence[Sequence[str]], difference: float, title: str
) -> Figure:
    """Draw mean ranks on a line; a bar joins those that are not told apart (Demsar 2006).

    Args:
        mean_ranks: By strategy, 1 being the best.
        groups: Those that are not told apart; none where nothing can be told.
        difference: The critical one, drawn as a measuring stick; NaN draws none.
        title: Title.
    """
    ordered = sorted(mean_ranks, key=mean_ranks.__getitem__)
    count = len(ordered)
    left = (count + 1) // 2
    bars = len(groups)
    top = 0.55 + 0.28 * bars  # of the first label, below the line
    figure, axes = new_figure(7.2, 1.25 + 0.28 * (bars + left) + 0.3)
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.set_xlim(0.35 if count < 8 else -0.2, count + (0.65 if count < 8 else 1.2))
    axes.set_ylim(top + 0.45 * (left - 1) + 0.3, -1.15)
    axes.plot([1, count], [0, 0], color="black", linewidth=1.2)
    for tick in range(1, count + 1):
        axes.plot([tick, tick], [-0.14, 0], color="black", linewidth=1.2)
        axes.text(tick, -0.2, str(tick), ha="center", va="bottom", fontsize=9)
    for place, label in enumerate(ordered):
        on_left = place < left
        depth = top + 0.45 * (place if on_left else count - 1 - place)
        end = 1.0 if on_left else float(count)
        outwards = min(end, mean_ranks[label]) - 0.05 if on_left else max(end, mean_ranks[label]) + 0.05
        axes.plot([mean_ranks[label]] * 2 + [outwards], [0, depth, depth], color="black", alpha=0.65, linewidth=1)
        words = f"{label}  {mean_ranks[label]:.2f}" if on_left else f"{mean_ranks[label]:.2f}  {label}"
        shift = -0.05 if on_left else 0.05
        axes.text(outwards + shift, depth, words, ha="right" if on_left else "left", va="center", fontsize=9)
    for row, group in enumerate(groups):
        ends = [mean_ranks[group[0]] - 0.04, mean_ranks[group[-1]] + 0.04]
        axes.plot(ends, [0.3 + 0.28 * row] * 2, color=COLOURS[0], linewidth=4, solid_capstyle="butt")
    if not math.isnan(difference) and difference < count - 1:
        axes.plot([1, 1 + difference], [-0.75, -0.75], "|-", color=COLOURS[1], linewidth=1.5, markersize=8)
        axes.text(1, -0.88, f"critical difference {difference:.2f}", ha="left", va="bottom", fontsize=8)
    axes.set_title(title, loc="left", fontsize=11)
    return figure


def profiles(curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], title: str, xlabel: str) -> Figure:
    """Draw how often each strategy comes within so much of the best: higher, and further left, is better.

    Args:
        curves: By strategy the differences, ascending from 0, and the share that is no further behind.
        title: Title.
        xlabel: What is on the axis of differences.
    """
    figure, axes = new_figure(7.2, 4.2)
    furthest = max((float(steps[-1]) for steps, _ in curves.values()), default=0.0) or 1.0
    for index, (label, (steps, shares)) in enumerate(curves.items()):
        colour, dash = COLOURS[index % len(COLOURS)], _DASHES[index // len(COLOURS) % len(_DASHES)]
        x, y = np.append(steps, 1.04 * furthest), np.append(shares, shares[-1])
        axes.step(x, y, dash, where="post", color=colour, label=label, linewidth=1.8)
    axes.set_xlim(0, 1.04 * furthest)
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(xlabel)
    axes.set_ylabel("share of settings and seeds")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.3, linewidth=0.6)
    if len(curves) <= 4:
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    else:
        figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    return figure


def _shortened(text: str, longest: int = 44) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
