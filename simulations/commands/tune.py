"""`umbel tune`: values for strategies that are to be compared, by equally many trials for each."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from umbel.simulations.commands.supervision import INCOMPLETE, Stopper, guarded, leave, say, supervised

if TYPE_CHECKING:
    from rich.console import Console

    from umbel.simulations.tune.carry_out import Tuning


@click.command(short_help="Tune strategies by equally many trials each.")
@click.argument("experiment")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE|KEY=RANGE]...")
@click.option(
    "--strategies",
    "-s",
    default="",
    help="As umbel compare takes them  [default: tune.strategies, else those of compare]",
)
@click.option("--trials", type=click.IntRange(min=1), help="Trials of each strategy  [default: tune.trials, 20]")
@click.option("--seeds", default="", help="How many a trial is run with, or which  [default: tune.seeds, 1]")
@click.option("--metric", default="", help="What the choice goes by, of validation data  [default: accuracy]")
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder  [default: tune-EXPERIMENT in run.results]",
)
@click.option(
    "--at-once", metavar="N|auto", help="Runs at once, each in a process of its own; auto goes by cores.  [default: 1]"
)
@click.option("--fresh", is_flag=True, help="Run everything anew, also what is there.")
@click.option("--keep", is_flag=True, help="Use runs again that other code has made.")
@click.option("--quiet", "-q", is_flag=True, help="Print the table and the folder only.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output, even at a terminal.")
@guarded
def tune(
    experiment: str,
    arguments: tuple[str, ...],
    strategies: str,
    trials: int | None,
    seeds: str,
    metric: str,
    output: Path | None,
    at_once: str | None,
    fresh: bool,
    keep: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Find values for the strategies that EXPERIMENT is to compare, by equally many trials for each.

    \b
    Examples:
      umbel tune digits -s fedavg,scaffold client.lr=log:0.001..0.3 --trials 10
      umbel tune digits -s fedavg,fedprox client.lr=log:0.001..0.3 fedprox.mu=log:1e-4..1
      umbel compare digits -s fedavg,fedprox --seeds 8 --tuned results/tune-digits

    What is searched is written as a value: a range such as 0..0.95, one of whole numbers where the key takes no
    others and both ends are such, log: before it where it is to be searched by its logarithm, or choice:sgd,adam. Keys
    are those of client, which all strategies have; strategy.OPTION for all that know it; and STRATEGY.KEY for one,
    such as fedprox.mu or fedprox.client.lr. The same may stand in the experiment's section tune.

    The choice goes by validation data, never by a test set. Trials have seeds of their own, from run.seed + 1000000 on,
    which a comparison does not take. The first trial has the experiment's own values where they are in the
    range. With --at-once the trials that are proposed together, one of each strategy with all its seeds, go on beside
    each other; the proposals are the same. Runs that are there are used again, and the same command after a stop, or
    with more --trials, goes on with the same trials. The folder, which is the last line of standard output, then holds
    tuned.yaml, trials.csv, tuning.md and tuning.png.
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    with Stopper() as stopper:
        from rich.console import Console

        from umbel.conf.own_data import is_own
        from umbel.simulations.commands.display import watcher
        from umbel.simulations.plots.runs import class_counts
        from umbel.simulations.tune.carry_out import carry_out, places
        from umbel.simulations.tune.prepare import prepare, trial_experiment

        plan = prepare(experiment, arguments, strategies, trials or 0, seeds, metric, output)
        first = trial_experiment(plan, 0, plan.seeds[0], {})
        if not is_own(first) or first.data.sites:
            class_counts(first)  # refuses what cannot be cut, before anything starts
        number, said = places(plan, at_once)
        if said:
            say(said)
        console = Console(stderr=True, highlight=False)
        shown = watcher(console, quiet, as_json, transient=True)
        where = [word for name, word in (("strategies", strategies), ("seeds", seeds), ("metric", metric)) if word
                 for word in (f"--{name}", word)]  # fmt: skip
        where += ["--trials", str(trials)] if trials else []
        where += ["--output", str(output)] if output else []
        where += ["--at-once", at_once] if at_once else []
        where += ["--keep"] if keep else []
        again = shlex.join(["umbel", "tune", experiment, *arguments, *where])
        with supervised(shown, stopper, again=again):
            tuning = carry_out(plan, shown, fresh, keep, number)
    _print(console if console.is_terminal else Console(stderr=True, highlight=False, width=160), tuning)
    click.echo(str(tuning.path))
    if tuning.incomplete:
        say("\n".join(f"Incomplete: {text}" for text in tuning.incomplete))
        leave(INCOMPLETE)


def _print(console: Console, tuning: Tuning) -> None:
    from rich.table import Table
    from rich.text import Text

    from umbel.simulations.tune.results import FILES, how, table, warnings

    heads, rows = table(tuning.tuned)
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in heads:
        is_text = head in heads[:2]
        drawn.add_column(head, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for row in rows:
        drawn.add_row(*map(Text, row))
    console.print()
    console.print(drawn)
    console.print(Text(how(tuning.tuned), style="dim"))
    for text in warnings(tuning.tuned):
        console.print(Text(f"Warning: {text}", style="yellow"))
    console.print()
    for name, what in FILES.items():
        console.print(f"{tuning.path / name}", style="cyan", end="  ", soft_wrap=True)
        console.print(what, style="dim", soft_wrap=True)
    labels = ",".join(each.item.label.replace(", ", ",") for each in tuning.plan.contenders)
    words = ["umbel", "compare", tuning.plan.source, *tuning.plan.overrides, "-s", labels]
    console.print("\nWhat to do next:", style="bold")
    again = shlex.join([*words, "--seeds", "8", "--tuned", str(tuning.path)])
    console.print(f"  {again}", soft_wrap=True, markup=False)
