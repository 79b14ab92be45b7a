"""`umbel federate serve`, `join`, `logs`: what runs on the server and at a site."""

from __future__ import annotations

from pathlib import Path

import click

from umbel.core.refusal import Refusal
from umbel.simulations.commands.federate.options import CONTROL, FOLDER, reached
from umbel.simulations.commands.supervision import STOPPED, guarded, leave, say

_BACKGROUND = click.option("--background", is_flag=True, help="Go on after this command, and the terminal, have ended.")


@click.command(short_help="Run the server of a federation.")
@click.argument("folder", type=FOLDER)
@_BACKGROUND
@guarded
def serve(folder: Path, background: bool) -> None:
    """Start the SuperLink of FOLDER and keep it going: for sites with TLS and their keys, for all else on loopback.

    SIGTERM, Ctrl-C or `umbel federate down` let runs write their checkpoints and end it. It forgets nothing:
    started again it knows the same keys and runs. sites.yaml is read again when it changes.

    \b
    Examples:
      umbel federate serve fl/server
      umbel federate serve fl/server --background
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.sites import supervise
    from umbel.simulations.sites.folders import server_folder

    at = server_folder(folder.expanduser().absolute())
    if background:
        output = at / "logs" / "serve.out"
        ready = supervise.in_background(at, ["federate", "serve", str(at)], output)
        click.echo(output.read_text(encoding="utf-8").rstrip())
        say("It goes on." if ready else f"It is not up yet; see {output}.")
        return
    from umbel.simulations.sites.serve import serve as run

    run(at)


@click.command(short_help="Take part in a federation, as a site.")
@click.argument("folder", type=FOLDER)
@click.argument("experiment", default="")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--dry-run", is_flag=True, help="Say what EXPERIMENT would read and send here; send nothing.")
@_BACKGROUND
@guarded
def join(folder: Path, experiment: str, overrides: tuple[str, ...], dry_run: bool, background: bool) -> None:
    """Start the node of FOLDER, a site's folder, and keep it going. It connects outwards and opens no port.

    When it is not taken, it says why: no such name, port closed, another authority, an unknown key, a wrong clock.
    EXPERIMENT is for --dry-run alone; without it only the data are looked at.

    \b
    Examples:
      umbel federate join fl/sites/north --dry-run two_sites.yaml
      umbel federate join fl/sites/north
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.sites import supervise
    from umbel.simulations.sites.folders import kind_of

    at = folder.expanduser().absolute()
    if kind_of(at) != "site":
        raise Refusal(f"{folder} is no site's folder.", remedy="Name the one that has site.yaml.")
    if experiment and not dry_run:
        raise Refusal(
            f"A site takes the runs that come; {experiment} is an experiment.",
            key="--dry-run",
            remedy="Leave it out, or add --dry-run.",
        )
    if background and not dry_run:
        output = at / "logs" / "join.out"
        ready = supervise.in_background(at, ["federate", "join", str(at)], output, patience_seconds=30.0)
        click.echo(output.read_text(encoding="utf-8").rstrip())
        say("It goes on." if ready else f"It is not connected yet, and goes on trying; see {output}.")
        return
    from umbel.simulations.sites import join as joining

    if dry_run:
        joining.dry_run(at, experiment, overrides, click.echo)
    else:
        joining.join(at)


@click.command(short_help="Show the logs of a server, a site, or a run.")
@click.argument("folder", type=FOLDER)
@click.argument("run", default="")
@click.option("--follow", "-f", is_flag=True, help="Wait for more.")
@click.option("--lines", "-n", type=click.IntRange(min=1), default=20, show_default=True, help="How many of each log.")
@click.option("--site", default="", metavar="NAME", help="Only lines that name this site.")
@CONTROL
@guarded
def logs(folder: Path, run: str, follow: bool, lines: int, site: str, control: str) -> None:
    """Show the end of the logs of FOLDER, a server's or a site's; of a submitter's, the log of RUN.

    \b
    Examples:
      umbel federate logs fl/server -f
      umbel federate logs fl/server --site north
      umbel federate logs fl/submitters/alice digits-fedavg-s0-20260105-101500 -f
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    try:
        if run:
            _log_of_run(folder, run, follow, lines, control)
            return
        from umbel.simulations.sites import logs as files

        for line in files.lines(files.log_files(folder), lines, follow, site):
            click.echo(line)
    except KeyboardInterrupt:
        leave(STOPPED)


def _log_of_run(folder: Path, run: str, follow: bool, number: int, control: str) -> None:
    from umbel.simulations.sites.names import address_of
    from umbel.simulations.sites.submit import run_log
    from umbel.simulations.sites.tunnel import Submitter

    submitter = Submitter.read(folder, address_of(control, "--control") if control else None)
    with reached():
        for line in run_log(submitter, run, number, follow):
            click.echo(line)
