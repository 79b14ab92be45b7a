"""What `umbel compare` prints of several settings: what is to run, and what came of it."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import click

from umbel.core.refusal import Refusal
from umbel.simulations.commands.supervision import FAILED, INCOMPLETE, leave, say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from umbel.simulations.compare.matrix import Matrix

_HEADS = {"reused": "there", "resumed": "to go on", "changed": "changed", "new": "new"}


def show_plan(console: Console, matrix: Matrix, fresh: bool, keep: bool, as_json: bool, at_once: int = 1) -> None:
    """Print a row for each setting: its runs, which of them are there, and how long the others may take.

    Args:
        console: On standard error.
        matrix: All runs.
        fresh: Everything is run anew.
        keep: What other code has made is used again.
        as_json: One JSON object on standard output, too.
        at_once: How many runs go on at once.
    """
    from rich.table import Table
    from rich.text import Text

    from umbel.simulations.commands.words import clock
    from umbel.simulations.compare.plan import STATES, Estimate, states, unsettled

    plans = [states(cell.comparison, fresh, keep) for cell in matrix.cells]
    estimate = Estimate(matrix, unsettled(matrix, plans))
    rows, total = [], Counter[str]()
    seconds: list[float | None] = []
    every: list[float | None] = []
    for number, (cell, plan) in enumerate(zip(matrix.cells, plans, strict=True)):
        counts = Counter(plan)
        pairs = zip(cell.comparison.members, plan, strict=True)
        times = [estimate.left(number, member) for member, how in pairs if how != "reused"]
        seconds.append(_sum(times, at_once))
        every += times
        total += counts
        rows.append((cell.setting.label or cell.comparison.path.name, len(plan), counts))
    left = _sum(every, at_once)
    if as_json:
        plan_rows = [
            {"setting": label, "runs": runs, **{how: counts[how] for how in STATES}, "seconds": _rounded(time)}
            for (label, runs, counts), time in zip(rows, seconds, strict=True)
        ]
        beside = {"at_once": at_once} if at_once > 1 else {}
        click.echo(json.dumps({"event": "plan", "settings": plan_rows, "seconds": _rounded(left), **beside}))
    shown = [how for how in STATES if total[how]]
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    drawn.add_column("setting")
    for head in ("runs", *(_HEADS[how] for how in shown), "time left"):
        drawn.add_column(head, justify="right")
    for (label, runs, counts), time in zip(rows, seconds, strict=True):
        about = "unknown" if time is None else clock(time)
        drawn.add_row(Text(label), str(runs), *(str(counts[how]) for how in shown), about)
    console.print(drawn)
    told = "; how long is not known before something has run" if left is None else f", about {clock(left)}"
    told += f", {at_once} at once" if at_once > 1 else ""
    to_run = sum(total.values()) - total["reused"]
    settings = f"{len(matrix.cells)} settings × " if len(matrix.cells) > 1 else ""
    sizes = f"{settings}{len(matrix.items)} strategies × {len(matrix.seeds)} seed{'s' * (len(matrix.seeds) > 1)}"
    console.print(f"{sizes}: {sum(total.values())} runs, {to_run} to go{told if to_run else ''}", soft_wrap=True)


def so_far(matrix: Matrix, keep: bool) -> Matrix:
    """Write tables and reports of what is there, and return it.

    Raises:
        Refusal: Nothing is.
    """
    from umbel.simulations.compare.write_matrix import write_so_far

    there = write_so_far(matrix, keep)
    if there.num_missing == there.num_runs:
        raise nothing(matrix, keep)
    return there


def nothing(matrix: Matrix, keep: bool) -> Refusal:
    """Return the refusal of a report of a comparison none of whose runs has ended, by the code that is there."""
    remedy = "Leave it out, which carries out what is missing."
    if changed := _hows(matrix, keep)["changed"]:
        remedy = f"--keep takes {_of_other_code(changed)} as they are; without --only-report they are run anew."
    return Refusal(f"Nothing of this comparison in {matrix.path} can be told yet.", key="--only-report", remedy=remedy)


def left_out(matrix: Matrix, keep: bool) -> str:
    """Say which runs a report of what is there leaves out, though they are there; "" of none, or where all are."""
    hows = _hows(matrix, keep)
    if not hows["changed"] or not hows["reused"]:
        return ""
    return f"{_of_other_code(hows['changed'])} count as still to come; --keep takes them as they are."


def _hows(matrix: Matrix, keep: bool) -> Counter[str]:
    from umbel.simulations.compare.plan import states

    return Counter(how for cell in matrix.cells for how in states(cell.comparison, keep=keep))


def _of_other_code(number: int) -> str:
    runs = "1 run that is" if number == 1 else f"{number} runs that are"
    return f"{runs} of other code, or another budget, than there is now"


def leave_with(console: Console, matrix: Matrix, again: str) -> None:
    """Print the table and the folder, and leave with the status that the runs deserve.

    Args:
        console: On standard error.
        matrix: What came of it.
        again: The command that goes on with what failed.
    """
    from rich.text import Text

    from umbel.simulations.compare.matrix_tables import failures, footnote, missing

    console.print()
    console.print(_table(matrix))
    console.print(Text(footnote(matrix), style="dim"))
    console.print()
    for name, what in (
        ("table.md", "this table"),
        ("report.html", "all of it; open it in a browser"),
        (
            "*/report.html",
            "that of each setting" if matrix.target is None else "that of each setting, with what the target took",
        ),
    ):
        console.print(f"{matrix.path}/{name}", style="cyan", end="  ", soft_wrap=True)
        console.print(what, style="dim", soft_wrap=True)
    click.echo(str(matrix.path))
    for _, failure in matrix.failures:
        if failure.trace:
            say(failure.trace)
    for line in [*failures(matrix), *missing(matrix), *(f"Incomplete: {text}" for text in matrix.incomplete)]:
        say(line)
    if matrix.failures:
        say(f"{len(matrix.failures)} of {matrix.num_runs} runs failed. To try them again: {again}")
        leave(INCOMPLETE if all(each.is_saved for _, each in matrix.failures) else FAILED)
    if matrix.incomplete:
        leave(INCOMPLETE)


def _table(matrix: Matrix) -> Table:
    from rich.table import Table
    from rich.text import Text

    from umbel.simulations.compare.matrix_tables import table

    heads, rows = table(matrix)
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    drawn.add_column(heads[0])
    for head in heads[1:]:
        drawn.add_column(Text(head), justify="right")
    for label, *cells in rows:
        drawn.add_row(Text(label), *(Text(cell, style="bold green" if cell.endswith("*") else "") for cell in cells))
    return drawn


def _sum(seconds: list[float | None], at_once: int) -> float | None:
    from umbel.simulations.compare.at_once import makespan

    known = [each for each in seconds if each is not None]
    return makespan(known, at_once) if len(known) == len(seconds) else None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
