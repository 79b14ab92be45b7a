"""A picture of which process was at which client, and when nobody was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from umbel.core.wire.work import ClientTime
from umbel.simulations.plots.runs import COLOURS, new_figure

_WRITTEN = 0.035  # of the width, that a client needs for its number


def timeline(
    rounds: Sequence[Mapping[str, Sequence[ClientTime]]], ends: Sequence[float], title: str, unit: float = 1.0
) -> Figure:
    """Draw a lane for each process, with a bar for each client it ran.

    Args:
        rounds: Of each round by phase, when which process ran which client.
        ends: When each round ended, in seconds since the epoch.
        title: Title.
        unit: Seconds on the x axis are divided by it: 1e-3 draws milliseconds.
    """
    times = [(phase, each) for round_ in rounds for phase, clients in round_.items() for each in clients]
    lanes = {process: lane for lane, process in enumerate(sorted({each.process for _, each in times}))}
    phases = list(dict.fromkeys(phase for phase, _ in times))
    begin = min((each.began for _, each in times), default=0.0)
    figure, axes = new_figure(9.0, float(np.clip(1.5 + 0.42 * len(lanes), 2.0, 8.0)))
    width = max([*ends, *(each.began + each.seconds for _, each in times)], default=1.0) - begin
    for number, phase in enumerate(phases):
        colour = COLOURS[number % len(COLOURS)]
        own = [each for name, each in times if name == phase]
        lefts = [(each.began - begin) / unit for each in own]
        widths = [each.seconds / unit for each in own]
        # Alternating shades tell neighbours apart where bars touch.
        alphas = [0.95 if i % 2 else 0.7 for i in range(len(own))]
        bars = axes.barh(
            [lanes[each.process] for each in own], widths, left=lefts, height=0.72, color=colour, label=phase
        )
        for bar, alpha, each in zip(bars, alphas, own, strict=True):
            bar.set_alpha(alpha)
            if each.seconds > _WRITTEN * width:
                middle = (each.began - begin + each.seconds / 2) / unit
                axes.text(
                    middle, lanes[each.process], str(each.client), ha="center", va="center", fontsize=7, color="white"
                )
    for end in ends:
        axes.axvline((end - begin) / unit, color="0.35", linewidth=0.8, linestyle=":")
    axes.set_yticks(list(lanes.values()), [f"process {lane + 1}" for lane in lanes.values()], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, width / unit * 1.005)
    axes.set_xlabel("milliseconds" if unit == 1e-3 else "seconds")
    axes.set_title(title, loc="left", fontsize=11)
    if len(phases) > 1:
        axes.legend(frameon=False, fontsize=8, ncols=len(phases), loc="upper left", bbox_to_anchor=(0, -0.25))
    return figure
