"""What several commands of `umbel federate` take, and how they say that a server cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from umbel.simulations.commands.supervision import FAILED, fail

HOME = click.option(
    "--home", type=click.Path(file_okay=False, path_type=Path), help="Folder of what `up` started: state and logs."
)
FOLDER = click.Path(file_okay=False, path_type=Path)
TO = click.option("--to", type=FOLDER, required=True, metavar="FOLDER", help="Your folder, as a submitter.")
CONTROL = click.option(
    "--control", default="", metavar="HOST:PORT", help="The control port, for who is on the server: no SSH tunnel."
)


@contextmanager
def reached() -> Iterator[None]:
    """End with a message where the server cannot be reached."""
    from umbel.simulations.sites.flower_door import ControlError
    from umbel.simulations.sites.tunnel import TunnelError

    try:
        yield
    except (ControlError, TunnelError) as error:
        fail(error, FAILED)
