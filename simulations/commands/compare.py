"""`umbel compare`: strategies against each other, over several seeds, in one setting or several."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from umbel.core.refusal import Refusal
from umbel.simulations.commands.supervision import INCOMPLETE, Stopper, guarded, leave, say, supervised

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from umbel.simulations.compare.comparison import Comparison
    from umbel.simulations.compare.matrix import Matrix

_ANY_WIDTH = 10_000
# What else to compare, by the measure that a comparison was judged by.
OTHERS = {"acc": "fot,fedavg", "test_last": "fedavg,fedopt(optimizer=adam,lr=0.01)"}


@click.command(short_help="Compare strategies over several seeds, in one setting or several.")
@click.argument("experiment")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--strategies", "-s", help="Names, with options in brackets: 'fedavg,fedprox(mu=0.1)'.")
@click.option("--seeds", help="How many, or which: 3, or 1,5,7.  [default: 3]")
@click.option(
    "--sweep", multiple=True, metavar="KEY=A,B,...", help="Settings: every choice of these values; repeat it."
)
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder  [default: compare-EXPERIMENT, of several settings matrix-EXPERIMENT, in run.results]",
)
@click.option(
    "--budget",
    type=click.Choice(["rounds", "steps", "examples", "flops", "bytes", "seconds"]),
    help="What all strategies have equally much of.  [default: rounds]",
)
@click.option("--target", type=float, help="Say what it took to come to this value, accuracies as fractions.")
@click.option(
    "--at-once", metavar="N|auto", help="Runs at once, each in a process of its own; auto goes by cores.  [default: 1]"
)
@click.option("--dry-run", is_flag=True, help="Say what would run, and how long by what is there; run nothing.")
@click.option("--only-report", is_flag=True, help="Run nothing; write tables and reports of what is there.")
@click.option("--tuned", type=click.Path(path_type=Path), help="Folder of umbel tune, whose values they have.")
@click.option("--untuned", default="", help="Those that were not tuned and have the experiment's own values.")
@click.option("--fresh", is_flag=True, help="Run everything anew, also what is there.")
@click.option("--keep", is_flag=True, help="Use runs again that other code has made.")
@click.option("--quiet", "-q", is_flag=True, help="Print the table and the folder only.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output, even at a terminal.")
@guarded
def compare(
    experiment: str,
    overrides: tuple[str, ...],
    strategies: str | None,
    seeds: str | None,
    sweep: tuple[str, ...],
    output: Path | None,
    budget: str | None,
    tuned: Path | None,
    untuned: str,
    target: float | None,
    at_once: str | None,
    dry_run: bool,
    only_report: bool,
    fresh: bool,
    keep: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run EXPERIMENT with several strategies and seeds, and say which is better and by how much.

    \b
    Examples:
      umbel compare digits --strategies fedavg,fedprox,scaffold --seeds 3
      umbel compare digits -s 'fedavg,fedprox(mu=0.01),fedprox(mu=1)' --seeds 1,5,7
      umbel compare digits -s 'fedavg,flwr:FedTrimmedAvg(beta=0.2)' data.alpha=0.1
      umbel compare digits -s fedavg,scaffold --sweep data.alpha=.1,1 --sweep client.lr=1,2
      umbel compare my.yaml          all that its blocks `compare` and `sweep` say
      umbel compare digits -s fedavg,scaffold --seeds 8 --tuned results/tune-digits

    Strategies are separated by commas; options stand in brackets behind the name (quote them for the shell).
    All of them run with the same seeds: `--seeds 3` counts from run.seed, `--seeds 1,5,7` takes just these. A
    seed fixes the partition, the initial weights and who takes part, so differences are paired by seed; set
    data.seed to hold the partition fixed while the rest varies.

    By default all have the same number of rounds, in which one may train more than another. With `--budget steps` the
    first has these rounds and the others go on, or end, where they have come to as many steps of training; likewise
    examples, floating-point operations, bytes of messages, or seconds.

    With `--sweep`, or a block `sweep` in the file, this is done in several settings. Each is checked before any runs;
    what is to run, what is there and how long it may take is said first. Each setting has a folder of its own, and the
    folder above it a table, pictures and a report of all: mean ranks, Friedman's test, Nemenyi's critical difference. A
    run that fails stands in the tables, the others go on, and the exit status is 3, or 1 where nobody foresaw it. What
    the command line says takes the place of what the file says.

    With `--at-once 4` four runs go on beside each other on the engine inline, each in a process of its own, with the
    same bits, so that four cores have work. What they print is in logs/.

    With `--tuned` each has the values that `umbel tune` has found for it, which the table states with the number of
    trials and what they took. A strategy that was not tuned is refused unless --untuned names it.

    Runs that are there with the same configuration are used again, and stopped ones are gone on with: give
    the same command once more. After a stop, or with --only-report at any time, tables and reports are of what has
    ended, and say what is still to come. A run that fails is named in the table, in which its strategy is not; the
    others go on, and the exit status is 3, or 1 where nobody foresaw it. What began with other code than there is now
    (of its strategy, model or data, of umbel, or another torch; comments do not count) is run anew, and put aside in
    earlier/. The folder then holds table.md, table.tex, table.csv, comparison.json, curves.png, partition.png and
    report.html, and is the last line of standard output.
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    with Stopper() as stopper:
        from rich.console import Console

        from umbel.conf.own_data import is_own
        from umbel.simulations.commands import matrix as several
        from umbel.simulations.commands.display import watcher
        from umbel.simulations.compare.at_once import how_many
        from umbel.simulations.compare.carry_out import carry_out, write_so_far
        from umbel.simulations.compare.go_through import go_through
        from umbel.simulations.compare.settings import prepare_matrix, wanted
        from umbel.simulations.plots.runs import class_counts

        if only_report and fresh:
            raise Refusal(
                "--only-report runs nothing, and --fresh everything anew.",
                key="--only-report",
                remedy="Leave one of them out.",
            )
        asked_for = wanted(experiment, overrides, strategies, seeds, budget, sweep, at_once)
        prepared = prepare_matrix(experiment, asked_for, overrides, output, tuned, untuned)
        prepared = prepared.aiming(target)
        members = [member for cell in prepared.cells for member in cell.comparison.members]
        number, said = 1, ""
        if not only_report:
            number, said = how_many(asked_for.at_once, members, asked_for.budget, asked_for.at_once_key)
        for cell in prepared.cells:
            first = cell.comparison.members[0].experiment
            if (
                not is_own(first) or first.data.sites
            ):  # else the data are at the sites, which say what is wrong with them
                class_counts(first)  # refuses what cannot be cut, before anything starts
        console = Console(stderr=True, highlight=False)
        shown = watcher(console, quiet, as_json, transient=True)
        for notice in (*asked_for.notices, *([said] if said else [])):
            say(notice)
        if dry_run or (asked_for.settings and not quiet and not only_report):
            to_machine = not quiet and (as_json or not console.is_terminal)
            several.show_plan(console, prepared, fresh, keep, to_machine, number)
        if dry_run:
            click.echo(str(prepared.path))
            return
        where = ["--output", str(output)] if output else []
        where += ["--budget", asked_for.budget]
        where += [word for each in sweep for word in ("--sweep", each)]
        where += ["--target", f"{target:g}"] if target is not None else []
        where += ["--tuned", str(tuned)] if tuned else []
        where += ["--untuned", untuned] if untuned else []
        where += ["--at-once", at_once] if at_once else []
        where += ["--keep"] if keep else []
        words = ["umbel", "compare", experiment, *overrides, "--strategies", asked_for.strategies]
        again = shlex.join([*words, "--seeds", asked_for.seeds, *where])
        one = prepared.cells[0].comparison
        if only_report and (text := several.left_out(prepared, keep)):
            say(text)
        with supervised(shown, stopper, again=again):
            if asked_for.settings:
                done = (
                    several.so_far(prepared, keep) if only_report else go_through(prepared, shown, fresh, keep, number)
                )
            elif only_report:
                comparison = _so_far(prepared, write_so_far(one, keep), keep)
            else:
                comparison = carry_out(one, shown, fresh, keep, number)
    wide = console if console.is_terminal else Console(stderr=True, highlight=False, width=160)
    if asked_for.settings:
        several.leave_with(wide, done, again)
        return
    _print(wide, comparison)
    click.echo(str(comparison.path))
    if comparison.incomplete:
        say("\n".join(f"Incomplete: {text}" for text in comparison.incomplete))
        leave(INCOMPLETE)


def _so_far(prepared: Matrix, there: Comparison | None, keep: bool) -> Comparison:
    """Return what there is to tell of a comparison; say where that is not all."""
    from umbel.simulations.commands.matrix import nothing

    if there is None:
        raise nothing(prepared, keep)
    if len(there.members) < prepared.num_runs:
        say(f"{len(there.members)} of {prepared.num_runs} runs are in the table.")
    return there


def _print(console: Console, comparison: Comparison) -> None:
    from rich.text import Text

    from umbel.simulations.compare import target as targets
    from umbel.simulations.compare.tables import footnote
    from umbel.simulations.compare.verdict import verdict

    console.print()
    table = _table(comparison)
    needed = console.measure(table, options=console.options.update_width(_ANY_WIDTH)).maximum
    console.print(_upright(comparison) if needed > console.width else table)
    console.print(Text(verdict(comparison), style="bold"))
    console.print(Text(footnote(comparison), style="dim"))
    if targets.is_asked(comparison):
        console.print(f"\n{targets.title(comparison)}", style="bold", highlight=False)
        console.print(_drawn(*targets.table(comparison)))
    console.print()
    for name, what in (
        ("table.md", "this table"),
        ("curves.png", "what they are judged by, by round"),
        ("partition.png", "who has which classes"),
        ("report.html", "all of it; open it in a browser"),
    ):
        console.print(f"{comparison.path / name}", style="cyan", end="  ", soft_wrap=True)
        console.print(what, style="dim", soft_wrap=True)
    console.print("\nWhat to try next:", style="bold")
    for line in _next(comparison):
        console.print(f"  {line}", soft_wrap=True, markup=False)


def _next(comparison: Comparison) -> list[str]:
    """Return commands that make sense after this comparison."""
    from umbel.data import partition

    lines, first = [], comparison.members[0].experiment
    if "alpha" in partition.keys(first.data.partition):
        lines.append(f"umbel data show {comparison.source} data.alpha=0.1   # a harder partition, seen")
    if comparison.main in OTHERS:
        lines.append(
            f"umbel compare {comparison.source} -s '{OTHERS[comparison.main]}' --seeds {len(comparison.seeds)}"
        )
    return [*lines, "umbel list strategies   # all of them, with their options"]


def _table(comparison: Comparison) -> Table:
    from umbel.simulations.compare.tables import table

    return _drawn(*table(comparison))


def _drawn(heads: list[str], rows: list[list[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    drawn.add_column(heads[0], no_wrap=True)
    for head in heads[1:]:
        drawn.add_column(head, justify="right", no_wrap=True)
    for label, *cells in rows:
        drawn.add_row(Text(label), *map(_mark, cells))
    return drawn


def _mark(cell: str) -> Text:
    """Make a best value stand out; the others keep their digits under its digits."""
    from rich.text import Text

    return Text(cell, style="bold green") if cell.endswith("*") else Text(f"{cell}  ")


def _upright(comparison: Comparison) -> Table:
    """Lay the table out with a strategy a column, for narrow terminals."""
    from rich.table import Table
    from rich.text import Text

    from umbel.simulations.compare.tables import table

    heads, rows = table(comparison)
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    drawn.add_column("")
    for row in rows:
        drawn.add_column(Text(row[0]), justify="right")
    for head, *cells in list(zip(heads, *rows, strict=True))[1:]:
        drawn.add_row(head, *map(_mark, cells))
    return drawn
