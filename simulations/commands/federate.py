"""`umbel federate`: a real federation on this machine, with Flower's SuperLink and SuperNodes."""

from __future__ import annotations

from pathlib import Path

import click

from umbel.simulations.commands.supervision import guarded

_HOME = click.option("--home", type=click.Path(file_okay=False, path_type=Path), help="Folder of its state and logs.")


@click.group(short_help="A real federation over gRPC on this machine: up, status, down.")
def federate() -> None:
    """Start and stop Flower's SuperLink and SuperNodes here, to run `engine.name=grpc` on.

    \b
    Examples:
      umbel federate up --nodes 4
      umbel run digits engine.name=grpc
      umbel federate down
    """  # noqa: D301 - click reads the backspace as "keep these lines"


@federate.command(short_help="Start a SuperLink and SuperNodes.")
@click.option("--nodes", type=click.IntRange(min=1), default=4, show_default=True, help="Number of SuperNodes.")
@click.option("--stock", is_flag=True, help="Flower's own way: a new process for each message, for comparison.")
@_HOME
@guarded
def up(nodes: int, stock: bool, home: Path | None) -> None:
    """Start a SuperLink and SuperNodes; each node holds a share of the clients, however many there are.

    \b
    Examples:
      umbel federate up --nodes 4
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.engines import federate as federation

    click.echo(federation.up(nodes, home=home, stock=stock))


@federate.command(short_help="Stop what `up` started.")
@_HOME
@guarded
def down(home: Path | None) -> None:
    """Stop what `up` started.

    \b
    Examples:
      umbel federate down
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.engines import federate as federation

    click.echo(federation.down(home=home))


@federate.command(short_help="Say what is up.")
@_HOME
@guarded
def status(home: Path | None) -> None:
    """Say which SuperLink and SuperNodes are up.

    \b
    Examples:
      umbel federate status
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.engines import federate as federation

    click.echo(federation.status(home=home))


@federate.command(short_help="Write the folder that `flwr build` and `flwr run` take.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
@guarded
def bundle(folder: Path) -> None:
    """Write the app that Flower ships to nodes into FOLDER/umbel, also from an installed wheel.

    \b
    Examples:
      umbel federate bundle app
      flwr build --app app/umbel
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.engines.app_folder import write_app

    click.echo(str(write_app(folder)))
