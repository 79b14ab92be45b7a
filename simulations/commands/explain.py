"""`umbel explain`: look inside a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from umbel.simulations.commands.supervision import guarded, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from umbel.simulations.explain.clients import Client


@click.command(short_help="Look inside a run's models: where they look, their filters, their collapse.")
@click.argument("folder", metavar="RUN")
@click.option("--clients", default=20, show_default=True, help="Clients to look at: -1 all, 0 none; drawn by the seed.")
@click.option("--images", default=6, show_default=True, help="Held-out images in the pictures.")
@click.option("--probe", default=256, show_default=True, help="Held-out images that numbers are taken from.")
@click.option("--shown", default=4, show_default=True, help="Clients with a column of their own in the pictures.")
@click.option("--layer", default="", help="Layer that Eigen-CAM reads; the last block with a map of 4 x 4 or more.")
@click.option(
    "--output", "-o", type=click.Path(file_okay=False, path_type=Path), help="Folder; RUN/explain if not said."
)
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but the folder.")
@guarded
def explain(
    folder: str, clients: int, images: int, probe: int, shown: int, layer: str, output: Path | None, quiet: bool
) -> None:
    """Look inside RUN, the folder of a finished run, at the global model and at each client's.

    \b
    It draws and writes down, on held-out images, each where the model has it:
      where a layer's activations vary most (Eigen-CAM), attention and gates
      statistics of 3 x 3 filters: drift from the global model, sparsity, entropy
      how far attention goes by position, by layer (ConViT)
      neural collapse; by round, if the run had evaluate.collapse=true

    A client's model is made again: it trains from the run's last checkpoint as it would in one round more, with
    the same bits every time. A client is suspect whose labels do not go with its images, and from whose data a model
    learns less than from others'. The pictures, explain.parquet and explain.json are in RUN/explain, and `umbel report
    RUN` shows them.

    \b
    Examples:
      umbel explain results/digits-fedavg-s0-20260105-101500
      umbel explain results/demo --clients -1 --layer stages.1.blocks.0
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from rich.console import Console
    from rich.progress import Progress

    from umbel.simulations.explain.look import Options
    from umbel.simulations.explain.look import explain as look

    console = Console(stderr=True, highlight=False)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("clients", total=None)
        inside = look(
            folder,
            Options(clients, images, probe, shown, layer),
            output,
            lambda done, of: progress.update(task, completed=done, total=of),
        )
    if not quiet:
        if inside.clients:
            console.print(_table(inside.clients))
        for note in inside.notes:
            console.print(note, style="dim", soft_wrap=True)
        for line in verdict(inside.clients):
            console.print(line, soft_wrap=True)
        if output is None:
            say(f"Next: umbel report {inside.path.parent}")
    click.echo(str(inside.path))


def verdict(clients: Sequence[Client]) -> list[str]:
    """Return a line about each suspect, with the signs that accuse it, or one that there is none.

    Who only drifts has a line too, since it is no suspect.
    """
    if not clients:
        return ["No client was looked at."]
    judged = [row for row in clients if row.bound is not None]
    lines = [_accusation(row) for row in clients if row.flagged]
    if not lines and judged:
        lines.append(f"No client is suspect among {len(judged)}.")
    if drifting := [row for row in clients if not row.flagged and row.out_of_the_ordinary]:
        who = ", ".join(f"{row.client} ({' and '.join(row.out_of_the_ordinary)})" for row in drifting)
        lines.append(f"Out of the ordinary, but not by labels: client{'s' * (len(drifting) > 1)} {who}.")
    return lines


def _accusation(row: Client) -> str:
    return (
        f"Client {row.client} is suspect: its labels go with its images by {row.labels:.2f} where {row.ordinary:.2f} "
        f"is ordinary (below {row.bound:.2f} they do not), and training on them changed what its model knows of its "
        f"classes by {row.gain:+.2f} where {row.ordinary_gain:+.2f} is ordinary. Look at its data."
    )


def _table(clients: Sequence[Client]) -> Table:
    from dataclasses import asdict

    from rich.table import Table

    from umbel.simulations.report.rows import inside_rows

    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for head in ("client", "acc.", "labels", "held-out", "after", "drift z", "update z", "CAM r", ""):
        table.add_column(head, justify="right" if head else "left", no_wrap=bool(head))
    keys = ("accuracy", "labels", "expected", "learned", "drift_z", "update_z", "correlation")
    for row, cells in zip(clients, inside_rows([asdict(row) for row in clients], keys), strict=True):
        # "labels shuffled" does not fit into 80 columns.
        table.add_row(*cells[:-1], cells[-1].replace("labels ", ""), style="red" if row.flagged else None)
    return table
