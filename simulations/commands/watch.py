"""`umbel watch`: runs as they grow, on a page of this machine."""

from __future__ import annotations

import threading
import webbrowser
from pathlib import Path

import click

from umbel.simulations.commands.supervision import Stopper, guarded, say

PORT = 8640


@click.command(short_help="A page that shows runs as they grow.")
@click.argument("folder", type=click.Path(path_type=Path), default="results")
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0 takes a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Another address lets other machines in.")
@click.option("--open", "opens", is_flag=True, help="Open it in the browser.")
@guarded
def watch(folder: Path, port: int, host: str, opens: bool) -> None:
    """Show the runs in FOLDER (results), and in comparisons within it, on a page of this machine.

    The page has runs under way and runs that have ended, with their curves, clients, stages and bytes, and
    lays the curves of several over each other. It reads what is appended to their folders and writes nothing.
    Its address is printed on standard output; Ctrl-C ends it.

    Only this machine reaches it. On a server, go there by SSH (ssh -L 8640:localhost:8640 SERVER); with --host
    anybody who reaches that address can read what the page shows: there is no password, and no encryption.

    \b
    Examples:
      umbel watch
      umbel watch /data/runs --port 0 --open
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    with Stopper():
        from umbel.simulations.watch.server import Server, address_of, bind, is_loopback
        from umbel.simulations.watch.shelf import Shelf

        shelf = Shelf(folder)
        opened = bind(host, port)
        address = address_of(opened, host)
        if not is_loopback(host):
            say(f"Whoever reaches {host} can read what this page shows: there is no password, and no encryption.")
        click.echo(address)
        say(f"The runs in {folder}. Ctrl-C ends it.")
        if opens:  # some browsers are waited for
            threading.Thread(target=_open, args=(address,), daemon=True).start()
        Server(shelf, opened, host).run()


def _open(address: str) -> None:
    if not webbrowser.open(address):
        say(f"No browser could be opened. Open it yourself: {address}")
