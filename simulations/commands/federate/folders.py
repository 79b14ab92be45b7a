"""`umbel federate init`, `admit`, `renew`, `revoke`: who takes part, and with which keys."""

from __future__ import annotations

from pathlib import Path

import click

from umbel.core.refusal import Refusal
from umbel.simulations.commands.federate.options import FOLDER
from umbel.simulations.commands.supervision import guarded, say


@click.command(short_help="Make a federation's folders, or a site's own key.")
@click.argument("folder", type=FOLDER)
@click.option("--name", default="", help="Name of the federation.")
@click.option("--server", default="", metavar="HOST[,IP...]", help="Names and addresses by which sites reach it.")
@click.option(
    "--site", "sites", multiple=True, metavar="NAME=CLIENTS", help="A site and its client numbers: north=0-3."
)
@click.option("--submitter", "submitters", multiple=True, metavar="NAME", help="Somebody who submits runs.")
@click.option("--port", type=click.IntRange(1, 65535), default=9092, show_default=True, help="Where sites connect to.")
@click.option(
    "--control-port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="On the server's loopback."
)
@click.option(
    "--ssh", default="", metavar="HOST", help="What submitters give to ssh; by default the first of --server."
)
@guarded
def init(
    folder: Path,
    name: str,
    server: str,
    sites: tuple[str, ...],
    submitters: tuple[str, ...],
    port: int,
    control_port: int,
    ssh: str,
) -> None:
    """Make FOLDER: a certificate authority, and a folder each for the server, the sites and the submitters.

    Each folder has what its owner needs, and a README. Send it to them over a way that nobody reads: it has
    their key. A site that lets nobody make its key makes it itself: `--site NAME` without clients. It sends the
    public half, and `umbel federate admit` takes it in.

    \b
    Examples:
      umbel federate init fl --name hospitals --server fl.example.org,10.0.0.5 \\
        --site north=0-3 --site south=4-7 --submitter alice
      umbel federate init east --site east --server fl.example.org
      umbel federate init bob --submitter bob --server fl.example.org
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.sites import folders

    hosts = [host.strip() for host in server.split(",") if host.strip()]
    if not name:
        _request(folder, hosts, sites, submitters)
        return
    held: dict[str, str] = {}
    for site in sites:
        site_name, _, clients = site.partition("=")
        if not clients:
            raise Refusal(f"--site {site} has no clients.", key="--site", remedy=f"Such as {site_name}=0-3.")
        if site_name in held:
            raise Refusal(f"--site {site_name} stands twice.", key="--site", remedy="Name all its clients at once.")
        held[site_name] = clients
    plan = folders.Plan(name, hosts, held, tuple(dict.fromkeys(submitters)), port, control_port, ssh)
    made = folders.found_federation(folder, plan)
    say(f"{made} has the authority, whose key `ca.key` is needed to renew and stays here, off the network.")
    say("Each of these folders has a key: send it to its owner alone, and keep no copy.")
    for owner in ("server", *(f"sites/{each}" for each in held), *(f"submitters/{each}" for each in plan.submitters)):
        click.echo(str(made / owner))


def _request(folder: Path, hosts: list[str], sites: tuple[str, ...], submitters: tuple[str, ...]) -> None:
    """Make the folder of somebody who keeps their key to themselves."""
    from umbel.simulations.sites import folders

    names = [("site", each) for each in sites] + [("submitter", each) for each in submitters]
    if len(names) != 1 or "=" in names[0][1] or len(hosts) != 1:
        raise Refusal(
            "Without --name this makes the key of one site or one submitter, for one --server.",
            key="--name",
            remedy="Give --name for a whole federation; or --site NAME --server HOST.",
        )
    mark = folders.make_request(folder, *names[0], hosts[0])
    say(f"The key of {names[0][1]} is called {mark}. Read this to whoever admits you, over another channel.")
    click.echo(str(folder.expanduser().absolute() / folders.REQUEST))


@click.command(short_help="Take in a site or a submitter that made its own key.")
@click.argument("folder", type=FOLDER)
@click.argument("request", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--clients", default="", metavar="RANGE", help="A site's client numbers: 4-7.")
@click.option("--max-examples", type=click.IntRange(min=1), help="The most examples that one of its clients may claim.")
@guarded
def admit(folder: Path, request: Path, clients: str, max_examples: int | None) -> None:
    """Write the key of REQUEST into FOLDER's list of sites, and make the folder to send back, without a key in it.

    The server takes it in while it is up. Compare the name of the key with what its owner reads to you.

    \b
    Examples:
      umbel federate admit fl request.yaml --clients 8-11
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.core.wire.identity import fingerprint, read_public
    from umbel.simulations.sites import folders
    from umbel.simulations.sites.settings import read_settings

    asked = read_settings(request, folders.Request)
    back = folders.admit(folder, request, clients, max_examples)
    say(f"{asked.name} is taken in, with the key {fingerprint(read_public(asked.key))}. Send this folder back:")
    click.echo(str(back))
    if asked.kind == "submitter":
        say("Sites take this submitter's runs once their trusted.yaml says so. Send them these lines:")
        say(f"{asked.name}: |\n  " + asked.key.strip().replace("\n", "\n  "))


@click.command(short_help="Give the server a new certificate.")
@click.argument("folder", type=FOLDER)
@click.option("--server", default="", metavar="HOST[,IP...]", help="Its names and addresses from now on.")
@guarded
def renew(folder: Path, server: str) -> None:
    """Give the server of FOLDER a new key and certificate, and the authority a certificate when it is nearly over.

    The server takes it when it is started again. Sites need nothing, except a new ca.pem when the command says so.

    \b
    Examples:
      umbel federate renew fl
      umbel federate renew fl --server fl.example.org,fl2.example.org
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.sites import folders
    from umbel.simulations.sites.authority import certificate_times

    renewed = folders.renew(folder, [host.strip() for host in server.split(",") if host.strip()])
    at = folder / "server"
    say(f"The server's certificate is good until {certificate_times(at / folders.SERVER_CERTIFICATE).ends:%Y-%m-%d}.")
    say(f"Copy {folders.SERVER_KEY} and {folders.SERVER_CERTIFICATE} to the server, and start it again.")
    if renewed:
        say(f"The authority has a new certificate: send {folders.CA} to all sites and submitters, and the server.")
    click.echo(str(at))


@click.command(short_help="Turn a site or a submitter away from now on.")
@click.argument("folder", type=FOLDER)
@click.argument("name")
@guarded
def revoke(folder: Path, name: str) -> None:
    """Turn the site or the submitter NAME away; a server that is up does so within seconds, also in a run.

    Its key never comes back: should it take part again, it makes a new one. A submitter's name is in the
    trusted.yaml of sites, too, which only they can change.

    \b
    Examples:
      umbel federate revoke fl south
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.simulations.sites import folders

    folders.revoke(folder, name)
    click.echo(f"{name} is revoked.")
