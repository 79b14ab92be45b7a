"""What tuning leaves behind: tuned.yaml, the table of all trials, what was chosen in words, a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from umbel.core.files import write_text
from umbel.core.schedule import COSTS
from umbel.simulations.compare.tables import not_generic
from umbel.simulations.plots.runs import COLOURS, DPI, save
from umbel.simulations.report.measures import FRACTION, unit
from umbel.simulations.tune.tuned import Tuned

if TYPE_CHECKING:
    from umbel.simulations.tune.carry_out import Trial, Tuning
    from umbel.simulations.tune.space import Dimension

FILES = {
    "tuned.yaml": "what was chosen; umbel compare takes it by --tuned",
    "trials.csv": "all trials",
    "tuning.md": "what was chosen, and what it took",
    "tuning.png": "what was tried and what came of it",
}


def write(tuning: Tuning) -> None:
    """Write tuned.yaml, trials.csv, tuning.md and tuning.png."""
    tuning.tuned.write()
    write_text(tuning.path / "trials.csv", frame(tuning).to_csv(index=False))
    write_text(tuning.path / "tuning.md", markdown(tuning.tuned))
    save(picture(tuning), tuning.path / "tuning.png")


def frame(tuning: Tuning) -> pd.DataFrame:
    """Return a row for each trial, in the order in which they were run: values, what came of it, costs, folders."""
    rows = []
    for trials in zip(*tuning.trials.values(), strict=True):
        for label, trial in zip(tuning.trials, trials, strict=True):
            value = trial.value(tuning.tuned.metric)
            chosen = tuning.tuned.of(label)
            row: dict[str, Any] = {"trial": trial.number, "contender": label, **trial.values}
            row[tuning.tuned.metric] = math.nan if value is None else value
            row["chosen"] = chosen is not None and chosen.trial == trial.number
            row |= {cost: sum(run.costs[cost] for run in trial.runs) for cost in COSTS}
            row["runs"] = " ".join(run.path.name for run in trial.runs)
            rows.append(row)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    last = [tuning.tuned.metric, "chosen", *COSTS, "runs"]
    return pd.DataFrame(rows, columns=[key for key in keys if key not in last] + last)


def table(tuned: Tuned, labels: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """Return the heads of the columns and a row for each contender that was tuned; no labels are all of them."""
    heads = ["contender", "chosen", tuned.metric, "trial", "steps", "examples", "seconds"]
    rows = [
        [
            each.label,
            each.in_words,
            unit(tuned.metric).text(each.value),
            str(each.trial),
            *(f"{each.costs[cost]:,.0f}" for cost in ("steps", "examples", "seconds")),
        ]
        for each in tuned.chosen
        if not labels or each.label in labels
    ]
    return heads, rows


def markdown(tuned: Tuned) -> str:
    """Return what was chosen as a table in Markdown, with what to know of it."""
    heads, rows = table(tuned)
    lines = ["| " + " | ".join(heads) + " |", "|---|---" + "|---:" * (len(heads) - 2) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n\n" + " ".join([how(tuned), *warnings(tuned)]) + "\n"


def how(tuned: Tuned) -> str:
    """Say how the values were found."""
    seeds = ", ".join(map(str, tuned.seeds))
    return (
        f"{tuned.trials} trials of each contender, each run with seed{'s' if len(tuned.seeds) > 1 else ''} {seeds}; "
        f"chosen is the {'highest' if tuned.is_more else 'lowest'} {tuned.metric} of the last round, the first of "
        f"equal ones. Steps, examples and seconds are those of all trials. Proposed by {tuned.sampler}."
    )


def warnings(tuned: Tuned) -> list[str]:
    """Return what to know of the values, a sentence each."""
    at_edges = [
        f"{each.label}: {key}={text}: the best may lie beyond it; a wider range would tell."
        for each in tuned.chosen
        for key, text in each.edges.items()
    ]
    diverged = [
        f"{each.label}: {each.diverged} of {tuned.trials} trials diverged or came to no number."
        for each in tuned.chosen
        if each.diverged
    ]
    names = () if tuned.metric.startswith("clients/") else (each.label.partition("(")[0] for each in tuned.chosen)
    return at_edges + diverged + not_generic(names)


def picture(tuning: Tuning) -> Figure:
    """Draw for each contender, a row, and each of its keys, a column, what was tried and what came of it."""
    contenders = tuning.plan.contenders
    num_columns = max(len(each.dimensions) for each in contenders)
    figure = Figure(figsize=(3.4 * num_columns + 1.0, 2.7 * len(contenders) + 0.3), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    cells = figure.subplots(len(contenders), num_columns, squeeze=False, sharey=True)
    for index, contender in enumerate(contenders):
        trials = tuning.trials[contender.item.label]
        chosen = tuning.tuned.of(contender.item.label)
        for axes, dimension in zip(cells[index], contender.dimensions, strict=False):
            _draw(axes, dimension, trials, tuning.tuned, chosen.trial if chosen else -1, COLOURS[index % len(COLOURS)])
        cells[index][0].set_title(contender.item.label, loc="left", fontsize=10)
        cells[index][0].set_ylabel(tuning.tuned.metric, fontsize=9)
        for axes in cells[index][len(contender.dimensions) :]:
            axes.remove()
    return figure


def _draw(axes: Axes, dimension: Dimension, trials: Sequence[Trial], tuned: Tuned, best: int, colour: str) -> None:
    """Draw a point for each trial; the chosen one is a star, one that came to no number a cross at the lower end."""
    places = {option: number for number, option in enumerate(dimension.options)}

    def place(trial: Trial) -> float:
        text = trial.values[dimension.key]
        return places[text] if places else float(text)

    tried = [(place(trial), trial.value(tuned.metric), trial.number == best) for trial in trials]
    points = [(x, value) for x, value, _ in tried if value is not None]
    axes.plot(*_columns(points), "o", color=colour, alpha=0.6, clip_on=False)
    none = [x for x, value, _ in tried if value is None]
    if none:
        axes.plot(none, [0.03] * len(none), "x", color="0.4", transform=axes.get_xaxis_transform())
    star = [(x, value) for x, value, is_best in tried if is_best and value is not None]
    axes.plot(*_columns(star), "*", color="black", markersize=12, clip_on=False)
    if places:
        axes.set_xticks(range(len(places)), list(places))
        axes.set_xmargin(0.2)
    else:
        axes.set_xscale("log" if dimension.is_log else "linear")
        axes.set_xlim(dimension.low, dimension.high)
    if unit(tuned.metric) is FRACTION:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set_xlabel(dimension.key, fontsize=9)
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
