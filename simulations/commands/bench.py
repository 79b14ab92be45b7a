"""`umbel bench`: how long an experiment takes, and what would make it faster."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from umbel.simulations.commands.supervision import FAILED, REFUSED, fail, guarded, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from umbel.conf.schema import Experiment
    from umbel.simulations.bench.measure import Contender, Row

_ENGINES = ("processes", "ray")
_SHOWN_ROUNDS = 2  # on the timeline


@click.command(short_help="Measure an experiment's rounds, by stage, engine and mode.")
@click.argument("experiment")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Rounds that count.")
@click.option("--warm", default=2, show_default=True, type=click.IntRange(1), help="Rounds before them that do not.")
@click.option("--workers", default="2", show_default=True, help="Numbers of workers, such as 1,2,4; none: no workers.")
@click.option("--engines", default="processes", show_default=True, help="What they are of: processes, ray, or both.")
@click.option(
    "--modes", default="", help="Fast modes as well: channels-last, step, together-4, or all; step compiles first."
)
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results/bench"),
    show_default=True,
    help="Folder for bench.json and the timelines.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but the folder.")
@guarded
def bench(
    experiment: str,
    overrides: tuple[str, ...],
    rounds: int,
    warm: int,
    workers: str,
    engines: str,
    modes: str,
    output: Path,
    quiet: bool,
) -> None:
    """Measure what a round of EXPERIMENT takes, and say what would make it faster.

    \b
    Beside each other, each in processes of its own, one after the other:
      loop       the same training of as many clients in plain PyTorch, in one process
      inline     umbel in one process; with --modes also in its fast modes
      processes  umbel on so many workers; or ray

    A round counts without evaluations and checkpoints, which are told of apart. Nothing of the runs is kept. The
    folder gets bench.json, a row for each contender, and pictures of when which process was at which client. Other work
    on the machine makes the figures worse, and is not noticed.

    \b
    Examples:
      umbel bench digits
      umbel bench my.yaml client.batch_size=64 --workers 1,2,4 --engines processes,ray
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from umbel.conf.load import load
    from umbel.conf.own_data import is_own
    from umbel.data import check
    from umbel.simulations.bench import measure
    from umbel.simulations.bench.advice import advice

    composed = load(experiment, overrides)
    check(composed.data)
    if is_own(composed):
        fail("The data of this experiment are with its sites: there is nothing to simulate here.", REFUSED)
    asked = _contenders(composed, workers, engines, modes)
    console = Console(stderr=True, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    rows: list[Row] = []
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        for number, each in enumerate(asked, start=1):
            task = progress.add_task(f"{each.name} ({number} of {len(asked)})", total=None)
            rows.append(measure.measure(each, experiment, overrides, rounds, warm, progress.refresh))
            progress.remove_task(task)
    sentences = advice(rows, composed.local.batch_size)
    _write(output, rows, sentences)
    if not quiet:
        console.print(_table(rows))
        for row in rows:
            if row.failure:
                console.print(f"{row.name}: {row.failure}", style="red", soft_wrap=True, markup=False)
        for line in sentences:
            console.print(f"* {line}", soft_wrap=True, markup=False)
        say(f"Timelines of the last rounds: {output}/*.png")
    click.echo(str(output))
    if all(row.failure for row in rows):
        fail("No contender came to its end.", FAILED)


def _contenders(composed: Experiment, workers: str, engines: str, modes: str) -> list[Contender]:
    from umbel.conf.load import build_strategy
    from umbel.core.names import unknown
    from umbel.simulations.bench import measure

    chosen = list(measure.MODES) if modes == "all" else [each.strip() for each in modes.split(",") if each.strip()]
    for mode in chosen:
        if mode not in measure.MODES:
            raise unknown("mode", mode, measure.MODES)
    named = [each.strip() for each in engines.split(",") if each.strip()]
    for engine in named:
        if engine not in _ENGINES:
            raise unknown("engine", engine, _ENGINES)
    try:
        numbers = [int(each) for each in workers.split(",") if each.strip() and workers != "none"]
    except ValueError:
        fail(f"--workers {workers}: expected numbers such as 1,2,4, or none.", REFUSED)
    if any(number < 1 for number in numbers):
        fail(f"--workers {workers}: at least one each.", REFUSED)
    return measure.contenders(composed, named, numbers, chosen, has_loop=not build_strategy(composed).own_model)


def _write(folder: Path, rows: Sequence[Row], sentences: Sequence[str]) -> None:
    from umbel.core.files import write_text
    from umbel.server.results import environment
    from umbel.simulations.plots.runs import save
    from umbel.simulations.plots.timeline import timeline

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png") if (folder / "bench.json").is_file() else ():  # of contenders that are not in now
        old.unlink()
    plain = [
        {name: value for name, value in asdict(row).items() if name not in ("times", "ends")} | {"round": row.round}
        if not row.failure
        else {"name": row.name, "overrides": row.overrides, "failure": row.failure}
        for row in rows
    ]
    content = {"rows": plain, "advice": list(sentences), "environment": environment()}
    write_text(folder / "bench.json", json.dumps(content, indent=1) + "\n")
    for row in rows:
        if not row.times:
            continue
        unit = 1e-3 if row.round < 1 else 1.0
        title = f"{row.name}: processes are at clients {row.busy:.0%} of a phase's time"
        name = row.name.replace(", ", "-").replace(" ", "-")
        save(timeline(row.times[-_SHOWN_ROUNDS:], row.ends[-_SHOWN_ROUNDS:], title, unit), folder / f"{name}.png")


def _table(rows: Sequence[Row]) -> Table:
    from rich.table import Table

    from umbel.simulations.bench.measure import LOOP

    done = [row for row in rows if not row.failure]
    base = next((row.round for row in done if row.name == LOOP), done[0].round if done else 1.0)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("")
    heads = ("a round", f"/ {done[0].name if done else LOOP}", "clients", "exchange", "server", "start-up", "memory")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in done:
        stages = [_time(row.stages[name]) if name in row.stages else "" for name in ("clients", "exchange", "server")]
        memory = f"{row.memory_bytes / 1e6:,.0f} MB"
        table.add_row(row.name, _time(row.round), f"{row.round / base:.2f}", *stages, f"{row.startup:.1f} s", memory)
    return table


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 10 else f"{seconds * 1e3:,.1f} ms"
