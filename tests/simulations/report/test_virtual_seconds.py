"""What people see of virtual time: the display, a comparison's column, its curves by virtual seconds."""

from __future__ import annotations

import io

import pandas as pd
from rich.console import Console

from tests.helpers import compared
from umbel.conf.load import load
from umbel.simulations.commands import display
from umbel.simulations.compare.comparison import measures
from umbel.simulations.compare.tables import footnote, table
from umbel.simulations.report import pictures, rows

MOVED = {"tensors": 500_000, "framing": 0}
COSTS = {"rounds": 1, "seconds": {"total": 2.0}, "bytes_up": MOVED, "bytes_down": MOVED}


def test_the_display_keeps_what_was_evaluated_while_time_goes_on() -> None:
    screen = io.StringIO()
    shown = display.Display(Console(file=screen, width=80, force_terminal=True, color_system=None))
    shown.begin(load("digits"), "/results/run")
    shown.round(1, 20, {"test/accuracy": 0.5, "train/virtual_seconds": 12.5, "train/num_late": 0.0}, 1.0)
    shown.round(2, 20, {"train/virtual_seconds": 25.0, "train/num_late": 1.0}, 2.0)
    shown.close()
    last = screen.getvalue()[-1200:]
    assert "test 0.5000" in last and "seconds 25.0000" in last


def test_a_report_has_a_tile_of_it() -> None:
    content = {"metrics": {}, "best_round": None, "num_parameters": 1, **COSTS}
    assert ("virtual time", "1,234.6 s") in rows.tiles(content | {"virtual_seconds": 1234.56})
    assert "virtual time" not in dict(rows.tiles(content))


def test_a_comparison_has_a_column_and_curves_of_it() -> None:
    metrics = {"test/accuracy": 0.5}
    values = {
        label: [measures(COSTS | {"metrics": metrics, "virtual_seconds": each}) for each in seconds]
        for label, seconds in (("a", (10.0, 30.0)), ("b", (8.0, 6.0)))
    }
    comparison = compared(values)
    heads, (first, second) = table(comparison)
    place = heads.index("virtual s")
    assert (first[place], second[place]) == ("20.0 ± 14.1", "7.0 ± 1.4") and "Virtual s" in footnote(comparison)
    for member in comparison.members:
        a_round = member.measures["virtual_seconds"] / 2
        course = [(1, "test", "accuracy", 0.25), (2, "test", "accuracy", 0.5)]
        course += [(round_, "train", "virtual_seconds", round_ * a_round) for round_ in (1, 2)]
        frame = pd.DataFrame(course, columns=["round", "split", "metric", "value"])
        member.__dict__["metrics"] = frame.assign(side="server", client=-1)
        member.__dict__["summary"] = COSTS
    by_time = next(figure for figure, said in pictures.of_comparison(comparison) if "by virtual time" in said)
    (axes,) = by_time.axes
    assert axes.get_xlabel() == "virtual seconds"
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    lines = {label: line for label, line in lines.items() if not str(label).startswith("_")}  # not single seeds
    assert lines == {"a": ([10.0, 20.0], [0.25, 0.5]), "b": ([3.5, 7.0], [0.25, 0.5])}
