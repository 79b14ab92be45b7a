"""`umbel ls` and `umbel diff`: which runs there are, and in what two of them differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from umbel.simulations.commands.supervision import guarded

if TYPE_CHECKING:
    from rich.console import Console

    from umbel.simulations.runs.difference import Pairs

_BITS = {True: "Both ended with the same weights.", False: "They ended with other weights.", None: "One has not ended."}
_STYLES = {
    "running": "green",
    "stopped": "yellow",
    "incomplete": "yellow",
    **dict.fromkeys(("failed", "died", "damaged"), "red"),
}


@click.command("ls", short_help="Which runs there are, and how far.")
@click.argument("folder", type=click.Path(path_type=Path), default="results")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output.")
@guarded
def ls(folder: Path, as_json: bool) -> None:
    """List the runs in FOLDER (results), and in comparisons within it, the newest first.

    A run is done; ended, by a rule of its own before its last round; incomplete, where it lost clients for good;
    running; stopped, as somebody asked; failed, by an error; died, where its process has gone without a word
    (killed, power); or damaged. `umbel resume` goes on with those that stopped, failed or died.

    \b
    Examples:
      umbel ls
      umbel ls results/compare-digits --json
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.runs.overview import find

    found = find(folder)
    if as_json:
        for seen in found:
            click.echo(json.dumps(seen.plain(folder)))
        return
    from rich.table import Table
    from rich.text import Text

    console = _console()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("run", "state", "strategy", "seed", "round", "result", "time"):
        table.add_column(head, justify="right" if head in ("seed", "round", "time") else "left", overflow="fold")
    for seen in found:
        plain = seen.plain(folder)
        state = Text(seen.state, style=_STYLES.get(seen.state, ""))
        if seen.state == "damaged":
            table.add_row(Text(plain["run"]), state, "", "", "", Text(seen.flaw), "")
            continue
        rounds = f"{seen.round}/{seen.rounds}"
        result = "; ".join(filter(None, (seen.result, seen.flaw)))
        texts = (seen.strategy, str(seen.seed), rounds, result, f"{seen.seconds:.0f} s")
        table.add_row(Text(plain["run"]), state, *map(Text, texts))
    console.print(table if found else Text(f"{folder} has no runs."))


@click.command("diff", short_help="In what two runs differ.")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@guarded
def diff(first: Path, second: Path, as_json: bool) -> None:
    """Say in what the runs FIRST and SECOND differ: keys, versions and code, metrics, and whether their bits do.

    \b
    Examples:
      umbel diff results/a results/b
      umbel diff results/a results/b --json
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.core.files import plain
    from umbel.simulations.runs.difference import difference

    found = difference(first, second)
    if as_json:
        click.echo(json.dumps(plain(vars(found))))
        return
    console = _console()
    parts = {"Configuration": found.configuration, "Where and by what": found.environment, "Metrics": found.metrics}
    for title, pairs in parts.items():
        _print(console, title, pairs, first, second)
    console.print(_BITS[found.same_bits])


def _print(console: Console, title: str, pairs: Pairs, first: Path, second: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    if not pairs:
        console.print(f"{title}: the same.")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title=title, title_justify="left")
    for head in ("", first.resolve().name, second.resolve().name):
        table.add_column(Text(head), overflow="fold")
    for key, values in pairs.items():
        table.add_row(Text(key), *(Text(_text(value)) for value in values))
    console.print(table)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)
