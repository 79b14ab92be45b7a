"""`umbel federate submit`, `stop`, `pull`: runs, from the machine of whoever submits them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from umbel.core.refusal import Refusal
from umbel.simulations.commands.federate.options import CONTROL, FOLDER, TO, reached
from umbel.simulations.commands.supervision import FAILED, INCOMPLETE, STOPPED, fail, guarded, leave, say

if TYPE_CHECKING:
    from umbel.simulations.commands.watcher import Watcher
    from umbel.simulations.sites.submit import Follower
    from umbel.simulations.sites.tunnel import Submitter


@click.command(short_help="Submit a signed run to a federation of sites.")
@click.argument("experiment", default="")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@TO
@CONTROL
@click.option("--resume", default="", metavar="RUN", help="Go on with this run; no experiment is named then.")
@click.option("--detach", is_flag=True, help="Do not follow the run.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but the run's name.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output, even at a terminal.")
@guarded
def submit(
    experiment: str,
    overrides: tuple[str, ...],
    to: Path,
    control: str,
    resume: str,
    detach: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Sign EXPERIMENT and this project's code, send both to the server, and follow the run.

    The server's control port is on its loopback; an SSH tunnel is made to it, to `ssh` of submit.yaml. Sites
    check the signature against the keys that they trust. The command ends as the run ends: 0 done, 1 failed, 2
    refused, 3 incomplete. Ctrl-C leaves the run running. The last line is the run's name.

    \b
    Examples:
      umbel federate submit digits --to fl/submitters/alice
      umbel federate submit digits model.name=cnn "model.sizes={width: 8}" --to alice
      umbel federate submit --resume digits-fedavg-s0-20260105-101500 --to alice
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from rich.console import Console

    from umbel.simulations.commands.display import watcher
    from umbel.simulations.sites import pull, submit
    from umbel.simulations.sites.names import address_of
    from umbel.simulations.sites.tunnel import Submitter

    submitter = Submitter.read(to, address_of(control, "--control") if control else None)
    with reached():
        if resume:
            more = (experiment, *overrides) if experiment else overrides
            name, text = pull.read_config(submitter, resume)
            composed = submit.compose_again(text, more)
        else:
            name = ""
            if not experiment:
                raise Refusal("Which experiment?", remedy="Name one of umbel list experiments, or a YAML file.")
            composed = submit.compose(experiment, overrides)
        run = submit.start(submitter, composed, name)
        if detach:
            say(f"Submitted. Follow it: umbel federate logs {to} {run.run_id} -f")
            click.echo(str(run.run_id))
            return
        shown = watcher(Console(stderr=True), quiet, as_json)
        follower = submit.Follower(submitter, run, composed, shown)
        _follow(follower, shown, submitter, run.run_id)
    click.echo(follower.folder.rpartition("/")[2])
    if shown.incomplete:
        say(f"Incomplete: {shown.incomplete}")
        leave(INCOMPLETE)


def _follow(follower: Follower, shown: Watcher, submitter: Submitter, run_id: int) -> None:
    """Follow a run, and end as it ends."""
    from umbel.server.errors import DivergedError, RunFailedError, RunStoppedError, StopRequested

    again = f"umbel federate submit --resume {{}} --to {submitter.folder}"
    try:
        follower.follow()
    except KeyboardInterrupt:
        shown.close()
        name = follower.folder.rpartition("/")[2] or str(run_id)
        say(f"The run goes on. Follow it: umbel federate logs {submitter.folder} {name} -f")
        say(f"Stop it: umbel federate stop {name} --to {submitter.folder}")
        leave(STOPPED)
    except StopRequested:
        shown.close()
        say(f"Stopped. Go on with: {again.format(follower.folder.rpartition('/')[2])}")
        leave(STOPPED)
    except (DivergedError, RunStoppedError) as error:
        shown.close()
        name = follower.folder.rpartition("/")[2]
        hint = f"\nGo on with: {again.format(name)}" if name and not isinstance(error, DivergedError) else ""
        fail(f"{error}{hint}", INCOMPLETE)
    except RunFailedError as error:
        shown.close()
        fail(error, FAILED)
    finally:
        shown.close()


@click.command(short_help="Ask a run of a federation to stop, saved.")
@click.argument("run")
@TO
@CONTROL
@guarded
def stop(run: str, to: Path, control: str) -> None:
    """Ask RUN to write a checkpoint and to end after what it is doing.

    It is asked by a file in its folder on the server: over SSH, or with --control, for who is on the server, right
    there. The account needs to be one that may write in that folder.

    \b
    Examples:
      umbel federate stop digits-fedavg-s0-20260105-101500 --to fl/submitters/alice
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.sites.names import address_of
    from umbel.simulations.sites.pull import stop_run
    from umbel.simulations.sites.tunnel import Submitter

    submitter = Submitter.read(to, address_of(control, "--control") if control else None)
    with reached():
        name = stop_run(submitter, run)
    say(f"Asked to stop. Go on with: umbel federate submit --resume {name} --to {to}")


@click.command(short_help="Fetch a run's folder from the server.")
@click.argument("run")
@TO
@click.option("--into", type=FOLDER, default="results", show_default=True, help="The folder in which it is put.")
@click.option(
    "--max-gigabytes", type=click.IntRange(min=1), default=64, show_default=True, help="The most that is taken."
)
@CONTROL
@guarded
def pull(run: str, to: Path, into: Path, max_gigabytes: int, control: str) -> None:
    """Fetch the folder of RUN: model, metrics, summary. It is then a run like any other here.

    It comes over SSH; with --control, which is for who is on the server, it is copied from its folder there.

    \b
    Examples:
      umbel federate pull digits-fedavg-s0-20260105-101500 --to fl/submitters/alice
      umbel report results/digits-fedavg-s0-20260105-101500
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.sites.names import address_of
    from umbel.simulations.sites.pull import pull as fetch
    from umbel.simulations.sites.tunnel import Submitter

    submitter = Submitter.read(to, address_of(control, "--control") if control else None)
    with reached():
        target = fetch(submitter, run, into, max_gigabytes << 30)
    if not (target / "summary.json").is_file():
        say("The run has not ended: this is what there was of it.")
    click.echo(str(target))
