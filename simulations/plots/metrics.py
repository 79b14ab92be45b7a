"""Pictures of what some runs measure: a matrix of tasks, bars of groups and domains, panels of neural collapse.

Shapes: T tasks, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from umbel.simulations.plots import heat
from umbel.simulations.plots.runs import COLOURS, DASHES, DPI, MARKS, new_figure

# For each kind of cost and each label one mapping from cost to value a seed.
ByCost = Mapping[str, Mapping[str, Sequence[Mapping[float, float]]]]

_WRITTEN_TASKS = 12
_PALE = 0.35
_WRITTEN_BARS = 24
_LABELS_IN_A_CELL = 12


def task_matrix(matrix: Sequence[Sequence[float]], title: str, what: str) -> Figure:
    """Draw the accuracy on each task after each task; tasks not trained on yet are pale.

    Args:
        matrix: Rows R[i][t] after task i, each over all T tasks, fractions; NaN is left blank.
        title: Title.
        what: What the values are.
    """
    values = 100 * np.asarray(matrix, dtype=float)
    num_rows, num_tasks = values.shape
    figure, axes = new_figure(7.2, float(np.clip(0.45 * num_rows, 3.0, 5.0)) + 1.2)
    norm = Normalize(0, 100)
    strength = heat.strength(values, norm) * np.where(np.tril(np.ones_like(values)) > 0, 1.0, _PALE)
    heat.draw(axes, strength)
    heat.legend(figure, axes, norm, f"{what}, %")
    every = int(np.ceil(num_tasks / 20))
    axes.set_xticks(range(0, num_tasks, every), list(map(str, range(0, num_tasks, every))))
    axes.set_yticks(range(0, num_rows, every), list(map(str, range(0, num_rows, every))))
    axes.set_xlabel("accuracy on task (pale: not trained on yet)")
    axes.set_ylabel("after task")
    axes.set_title(title, loc="left", fontsize=11)
    if num_tasks <= _WRITTEN_TASKS:
        heat.write(axes, strength, [["" if np.isnan(value) else f"{value:.0f}" for value in row] for row in values])
    return figure


def grouped_bars(values: Mapping[str, Mapping[str, Sequence[float]]], title: str, ylabel: str) -> Figure:
    """Draw accuracies side by side: a cluster for each group, in it a bar for each label.

    Args:
        values: For each label and group one fraction a seed; bars are means, whiskers sample standard deviations.
        title: Title.
        ylabel: What is on the y axis.
    """
    groups = list(dict.fromkeys(group for one in values.values() for group in one))
    figure, axes = new_figure(float(np.clip(2.5 + 0.2 * len(groups) * (len(values) + 1), 7.2, 11.0)), 3.8)
    width = 0.8 / max(len(values), 1)
    for index, (label, one) in enumerate(values.items()):
        places = np.arange(len(groups)) + (index - (len(values) - 1) / 2) * width
        seeds = [[value for value in one.get(group, ()) if not np.isnan(value)] for group in groups]
        means = [float(np.mean(each)) if each else np.nan for each in seeds]
        spread = [float(np.std(each, ddof=1)) if len(each) > 1 else 0.0 for each in seeds]
        whiskers = spread if any(spread) else None
        colour = COLOURS[index % len(COLOURS)]
        bars = axes.bar(places, means, 0.92 * width, yerr=whiskers, label=label, color=colour, ecolor="0.3", capsize=2)
        if len(groups) * len(values) <= _WRITTEN_BARS:
            texts = ["" if np.isnan(mean) else f"{100 * mean:.0f}" for mean in means]
            axes.bar_label(bars, texts, padding=2, fontsize=8)
    turned = max((len(group) for group in groups), default=0) > 14 or len(groups) > 12
    axes.set_xticks(range(len(groups)), groups, rotation=60 if turned else 0, ha="right" if turned else "center")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set_ylabel(ylabel)
    axes.set_title(title, loc="left", fontsize=11)
    axes.margins(y=0.12)
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=0)
    if len(values) > 1:
        figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside right upper")
    return figure


def panels(values: Mapping[str, Mapping[str, Mapping[int, float]]], title: str) -> Figure:
    """Draw a small set of axes for each panel, two in a row, because their values are of different kinds.

    Args:
        values: For each panel's title and each label a mapping from round to value.
        title: Title of all.
    """
    num_rows = max(int(np.ceil(len(values) / 2)), 1)
    figure = Figure(figsize=(7.2, 0.5 + 2.2 * num_rows), dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.08))
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    cells = figure.subplots(num_rows, 2, squeeze=False).flatten()
    for axes, (name, lines) in zip(cells, values.items(), strict=False):
        for index, (label, course) in enumerate(lines.items()):
            rounds = sorted(course)
            mark = "o" if len(rounds) <= 30 else None
            shown = [course[round_] for round_ in rounds]
            axes.plot(rounds, shown, color=COLOURS[index % len(COLOURS)], label=label, marker=mark, markersize=3.5)
        axes.set_title(name, loc="left", fontsize=9)
        axes.set_xlabel("round", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8, loc="best")
    for axes in cells[len(values) :]:
        axes.set_visible(False)
    return figure


def by_cost(values: ByCost, title: str, ylabel: str, percent: bool) -> Figure:
    """Draw a measure by what it cost, two sets of axes in a row with one scale of values.

    Args:
        values: For each kind of cost and each label one mapping from cost to value a seed; their means are drawn.
        title: Title of all.
        ylabel: What is on the y axes.
        percent: Values are fractions, to be shown in per cent.
    """
    num_rows = int(np.ceil(len(values) / 2))
    figure = Figure(figsize=(7.2, 0.8 + 2.2 * num_rows), dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.08))
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    cells = figure.subplots(num_rows, 2, squeeze=False, sharey=True).flatten()
    for axes, (cost, lines) in zip(cells, values.items(), strict=False):
        for index, (label, seeds) in enumerate(lines.items()):
            places = sorted(set.intersection(*map(set, seeds))) if seeds else []
            means = [float(np.mean([one[place] for one in seeds])) for place in places]
            dash = DASHES[index // len(COLOURS) % len(DASHES)]
            colour, mark = COLOURS[index % len(COLOURS)], MARKS[index % len(MARKS)]
            every = max(len(places) // 12, 1)
            axes.plot(places, means, dash, color=colour, label=label, marker=mark, markersize=3, markevery=every)
        axes.set_xlabel(cost, fontsize=9)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in cells[::2]:
        axes.set_ylabel(ylabel, fontsize=9)
    handles, labels = cells[0].get_legend_handles_labels()
    for axes in cells[len(values) :]:
        axes.set_axis_off()
    if len(labels) > 1 and len(values) % 2 and len(labels) <= _LABELS_IN_A_CELL:
        cells[-1].legend(handles, labels, loc="center left", frameon=False, fontsize=8)
    elif len(labels) > 1:
        columns = min(len(labels), 3)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure
