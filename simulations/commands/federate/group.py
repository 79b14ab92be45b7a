"""`umbel federate`: the group, and what concerns one machine alone."""

from __future__ import annotations

from pathlib import Path

import click

from umbel.simulations.commands.federate.folders import admit, init, renew, revoke
from umbel.simulations.commands.federate.options import CONTROL, HOME
from umbel.simulations.commands.federate.running import join, logs, serve
from umbel.simulations.commands.federate.submitting import pull, stop, submit
from umbel.simulations.commands.supervision import guarded, say


@click.group(short_help="Real federations: on this machine (up, down), and of sites (init, serve, join, submit).")
def federate() -> None:
    """Run experiments where the data are: on processes of this machine, or at sites of their own.

    \b
    On this machine, unencrypted, on loopback:
      umbel federate up --nodes 4
      umbel run digits engine.name=grpc
      umbel federate down

    \b
    Across machines, encrypted, each site known by its key:
      umbel federate init fl --name hospitals --server fl.example.org \\
        --site north=0-3 --site south=4-7 --submitter alice
      umbel federate serve fl/server             on the server
      umbel federate join fl/sites/north         at a site, with its folder
      umbel federate submit digits --to fl/submitters/alice
    """  # noqa: D301 - click reads the backspace as "keep these lines"


@federate.command(short_help="Start a SuperLink and SuperNodes on this machine.")
@click.option("--nodes", type=click.IntRange(min=1), default=4, show_default=True, help="Number of SuperNodes.")
@click.option("--stock", is_flag=True, help="Flower's own way: a new process for each message, for comparison.")
@HOME
@guarded
def up(nodes: int, stock: bool, home: Path | None) -> None:
    """Start a SuperLink and SuperNodes; each node holds a share of the clients, however many there are.

    \b
    Examples:
      umbel federate up --nodes 4
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.engines import federate as federation

    click.echo(federation.up(nodes, home=home, stock=stock))


@federate.command(short_help="Stop what `up`, `serve` or `join` started.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), required=False)
@HOME
@guarded
def down(folder: Path | None, home: Path | None) -> None:
    """Stop the server or the node of FOLDER; without one, what `up` started.

    A server lets its runs write their checkpoints first.

    \b
    Examples:
      umbel federate down
      umbel federate down fl/server
      umbel federate down fl/sites/north
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    if folder is None:
        from umbel.simulations.engines import federate as federation

        click.echo(federation.down(home=home))
        return
    from umbel.simulations.sites import supervise
    from umbel.simulations.sites.folders import kind_of, server_folder

    at = folder.expanduser().absolute()
    kind = kind_of(at)
    stopped = supervise.stop(server_folder(at) if kind == "server" else at)
    what = {"server": "The server", "site": "The node"}.get(kind, "What runs")
    click.echo(f"{what} of {folder} is down." if stopped else f"Nothing ran in {folder}.")


@federate.command(short_help="Say what is up, who is there, and what is wrong.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), required=False)
@CONTROL
@HOME
@guarded
def status(folder: Path | None, control: str, home: Path | None) -> None:
    """Say how the federation is, as the owner of FOLDER sees it; without one, what `up` started.

    On the server: each site with its state, when it last said that it is there, its clock and version, the
    current round, and in words what is wrong.

    \b
    Examples:
      umbel federate status
      umbel federate status fl/server
      umbel federate status fl/sites/north
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    if folder is None:
        from umbel.simulations.engines import federate as federation

        click.echo(federation.status(home=home))
        return
    from umbel.simulations.commands.federate.options import reached
    from umbel.simulations.sites.names import address_of
    from umbel.simulations.sites.status import status as of

    with reached():
        click.echo(of(folder, address_of(control, "--control") if control else None).text())


@federate.command(short_help="Write the folder that `flwr build` and `flwr run` take.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
@guarded
def bundle(folder: Path) -> None:
    """Write the app that Flower ships to nodes into FOLDER/umbel, also from an installed wheel.

    On standard error stands the SHA-256 of the bundle that is made of it, for a site's list of code that it allows.

    \b
    Examples:
      umbel federate bundle app
      flwr build --app app/umbel
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    import hashlib

    from umbel.simulations.engines.app_folder import write_app
    from umbel.simulations.engines.flower_internals import build_bundle

    app = write_app(folder)
    say(f"SHA-256 of the bundle: {hashlib.sha256(build_bundle(app)).hexdigest()}")
    click.echo(str(app))


for each in (init, admit, renew, revoke, serve, join, logs, submit, stop, pull):
    federate.add_command(each)
