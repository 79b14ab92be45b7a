"""Who must not get in, does not: each is refused, and named in a log."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from tests.end_to_end.federation import network
from tests.end_to_end.federation.machines import MARKS, SMALL, Machines, submit
from tests.end_to_end.federation.network import until
from umbel.core.wire.identity import fingerprint, new_key, read_key, write_key
from umbel.simulations.sites import authority

pytestmark = MARKS


def join(machines: Machines, machine: str, folder: Path, words: str) -> str:
    """Have a machine try to join until its log says something; return all that it said."""
    machines.net.start(machine, *network.UMBEL, "federate", "join", folder, log=f"join-{folder.name}")
    try:
        return until(folder / "logs" / "join.log", words)
    finally:
        machines.net.umbel(machine, "federate", "down", folder)


def copied(machines: Machines, name: str, tmp_path: Path) -> Path:
    """A site's folder as somebody else has it."""
    target = tmp_path / name
    shutil.copytree(
        machines.folder / "sites" / "north",
        target,
        ignore=shutil.ignore_patterns("logs", "state", "running.json", ".*"),
    )
    return target


def test_a_strangers_key_is_turned_away_and_named(machines: Machines, tmp_path: Path) -> None:
    folder = copied(machines, "somebody", tmp_path)
    (folder / "site.key").unlink()
    write_key(folder / "site.key", new_key())
    join(machines, "stranger", folder, "does not know this key, or it was revoked")
    until(machines.server / "logs" / "serve.log", fingerprint(read_key(folder / "site.key")))


def test_a_node_without_a_key_is_turned_away_and_named(machines: Machines) -> None:
    before = machines.said().count("was turned away: sites.yaml")
    done = machines.net.run(
        "stranger",
        *("timeout", "60", sys.executable, "-m", "umbel.client.node.supernode", "--max-wait-time", "10"),
        *("--superlink", f"{machines.net.addresses['server']}:9092"),
        *("--root-certificates", machines.folder / "sites" / "north" / "ca.pem", "--node-config", "partitions='0-7'"),
    )
    assert done.returncode != 0
    deadline = time.monotonic() + 20
    while machines.said().count("was turned away: sites.yaml") == before:
        assert time.monotonic() < deadline, machines.said()
        time.sleep(0.2)


def test_a_node_without_encryption_is_turned_away_and_named(machines: Machines, tmp_path: Path) -> None:
    machines.net.run(
        "stranger",
        *("timeout", "30", sys.executable, "-m", "umbel.client.node.supernode", "--max-wait-time", "5", "--insecure"),
        *("--superlink", f"{machines.net.addresses['server']}:9092", "--home", tmp_path),
    )
    until(machines.server / "logs" / "serve.log", "it spoke no TLS")


def test_a_site_refuses_a_server_of_another_authority(machines: Machines, tmp_path: Path) -> None:
    folder = copied(machines, "elsewhere", tmp_path)
    (tmp_path / "other").mkdir()
    authority.make(tmp_path / "other", "hospitals")
    shutil.copyfile(tmp_path / "other" / "ca.pem", folder / "ca.pem")
    said = join(machines, "stranger", folder, "another authority than ca.pem")
    assert "Connected to" not in said


def test_a_bundle_that_nobody_signed_reaches_no_site(machines: Machines, tmp_path: Path) -> None:
    """By Flower's own command, from the server's own machine: the server stops it, and each site would refuse it."""
    home = tmp_path / "flwr"
    home.mkdir()
    certificate = machines.server / "ca.pem"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "there"\n\n[superlink.there]\naddress = "127.0.0.1:8000"\n'
        f'root-certificates = "{certificate}"\n'
    )
    made = machines.net.umbel("server", "federate", "bundle", tmp_path)
    flwr = shutil.which("flwr", path=str(Path(network.UMBEL[0]).parent))
    done = machines.net.run("server", flwr, "run", made.stdout.strip(), "there", environment={"FLWR_HOME": str(home)})
    assert "Successfully started run" in done.stdout, done.stdout + done.stderr
    until(machines.server / "logs" / "serve.log", "is stopped: it is not signed")


def test_a_run_that_a_sites_policy_forbids_is_named_to_the_server(machines: Machines) -> None:
    policy = machines.folder / "sites" / "south" / "policy.yaml"
    before = policy.read_text()
    policy.write_text("strategies: [fedavg]\n")
    try:
        overrides = (*SMALL, "strategy.name=fedprox", "engine.node_timeout_seconds=60")
        status, _, printed = submit(machines, "digits", *overrides)
    finally:
        policy.write_text(before)
    assert status == 3, printed
    assert "This site does not allow the strategy 'fedprox'; it allows fedavg" in printed
    until(machines.folder / "sites" / "south" / "logs" / "join.log", "does not allow the strategy 'fedprox'")


def test_a_submitter_whom_the_sites_do_not_trust_is_stopped(machines: Machines, tmp_path: Path) -> None:
    bob = tmp_path / "bob"
    shutil.copytree(machines.alice, bob)
    (bob / "alice.key").unlink()
    write_key(bob / "alice.key", new_key())  # calls himself alice
    done = machines.net.umbel(machines.place, "federate", "submit", "digits", *SMALL, "--to", bob, *machines.options)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "is stopped: the key of alice did not sign it" in machines.said()


def test_a_revoked_site_is_out_within_seconds_and_named(machines: Machines) -> None:
    assert machines.net.umbel("server", "federate", "revoke", machines.folder, "west").returncode == 0
    until(machines.server / "logs" / "serve.log", "west is no longer taken", 30)
    until(machines.folder / "sites" / "west" / "logs" / "join.log", "does not know this key, or it was revoked", 120)
    state = machines.net.umbel("server", "federate", "status", machines.server).stdout
    assert any(line.split()[:2] == ["west", "revoked"] for line in state.splitlines()), state


def test_an_ended_certificate_is_named_on_both_sides(machines: Machines, tmp_path: Path) -> None:
    """Last: the server is stopped for it."""
    machines.net.umbel("server", "federate", "down", machines.server)
    key = read_key(machines.server / "server.key")
    ended = authority.issue(machines.folder / "authority", key, [machines.net.addresses["server"]], days=1 / 48)
    (machines.server / "server.pem").write_bytes(ended)  # it began an hour ago and was good for half an hour
    done = machines.net.umbel("server", "federate", "serve", machines.server)
    assert done.returncode == 2
    assert "ended" in done.stderr
    assert "umbel federate renew" in done.stderr
    context = (
        "import socket, ssl, sys\n"
        "context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n"
        "context.load_cert_chain(sys.argv[1] + '/server.pem', sys.argv[1] + '/server.key')\n"
        "listener = socket.create_server(('', 9092))\n"
        "while True:\n"
        "    try:\n"
        "        context.wrap_socket(listener.accept()[0], server_side=True).recv(1)\n"
        "    except OSError:\n"
        "        pass\n"
    )
    machines.net.start("server", sys.executable, "-c", context, machines.server, log="ended")
    join(machines, "stranger", copied(machines, "late", tmp_path), "its certificate has expired")
