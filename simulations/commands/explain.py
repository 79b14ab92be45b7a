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
    the same bits every time. A client whose filters have drifted out of the ordinary is flagged. The pictures,
    explain.parquet and explain.json are in RUN/explain, and `umbel report RUN` shows them.

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
        found = look(
            folder,
            Options(clients, images, probe, shown, layer),
            output,
            lambda done, of: progress.update(task, completed=done, total=of),
        )
    if not quiet:
        if found.clients:
            console.print(_table(found.clients))
        for note in found.notes:
            console.print(note, style="dim", soft_wrap=True)
        console.print(_verdict(found.clients), soft_wrap=True)
        if output is None:
            say(f"Next: umbel report {found.path.parent}")
    click.echo(str(found.path))


def _verdict(clients: Sequence[Client]) -> str:
    """Return a line about who stands out."""
    flagged = [str(row.client) for row in clients if row.flagged]
    if not clients:
        return "No client was looked at."
    if not any(row.drift is not None for row in clients):
        return "No filters to compare clients by."
    if len(clients) < 3:
        return "Fewer than three clients: none can stand out."
    if not flagged:
        return f"No client's filters stand out among {len(clients)}."
    who, whose = ("client", "its") if len(flagged) == 1 else ("clients", "their")
    return f"The filters of {who} {', '.join(flagged)} stand out among {len(clients)}: look at {whose} data."


def _table(clients: Sequence[Client]) -> Table:
    from dataclasses import asdict

    from rich.table import Table

    from umbel.simulations.report.rows import inside_rows

    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for head in ("client", "acc.", "drift", "z", "kernels", "z", "update", "z", "CAM r", "IoU", ""):
        table.add_column(head, justify="right" if head else "left", no_wrap=bool(head))
    for row, cells in zip(clients, inside_rows([asdict(row) for row in clients]), strict=True):
        # "labels shuffled" does not fit into 80 columns.
        table.add_row(*cells[:-1], cells[-1].replace("labels ", ""), style="red" if row.flagged else None)
    return table
