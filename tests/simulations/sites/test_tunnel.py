"""The way to the Control API: a socket that nobody else of this machine reaches, through SSH, and no proxy."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.federation import ssh
from tests.project.pages import DOCS
from tests.simulations.sites.control import Known, served
from umbel.core.wire.identity import new_key, public_text
from umbel.simulations.engines.processes import free_ports
from umbel.simulations.sites import folders
from umbel.simulations.sites.flower_door import ControlError, connected
from umbel.simulations.sites.folders import CA, Plan
from umbel.simulations.sites.names import Address
from umbel.simulations.sites.settings import SubmitSettings
from umbel.simulations.sites.tunnel import Submitter, TunnelError


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = Plan("hospitals", ("fl.example.org",), {"north": "0"}, ("alice",))
    return folders.found_federation(tmp_path_factory.mktemp("federation") / "fl", plan)


@pytest.fixture
def known() -> Known:
    made = Known()
    made.add_node(public_text(new_key()), "north")
    return made


def names(place: Address | Path, ca: Path) -> list[str]:
    with connected(place, ca) as control:
        return [node.name for node in control.nodes()]


def test_the_control_api_is_reached_at_a_socket_under_the_servers_certificate(
    federation: Path, known: Known, tmp_path: Path
) -> None:
    other = folders.found_federation(tmp_path / "other", Plan("other", ("localhost",), {}))
    with served(known, federation / "server", tmp_path / "here") as place:
        assert names(place, federation / "submitters" / "alice" / CA) == ["north"]
        with pytest.raises(ControlError, match="certificate is not taken"):
            names(place, other / "authority" / CA)


def test_no_proxy_is_asked(federation: Path, known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_ports(1)[0]}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with served(known, federation / "server") as place:
        assert names(place, federation / "submitters" / "alice" / CA) == ["north"]


@pytest.fixture
def reach(tmp_path: Path) -> Iterator[list[str]]:
    """The options by which `ssh` reaches a server of SSH on this machine."""
    if not ssh.sshd() or os.geteuid() != 0:
        pytest.skip("OpenSSH's server is not here, or not for whoever runs this test")
    (port,) = free_ports(1)
    command, options = ssh.make(tmp_path / "ssh", "127.0.0.1", port)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert any("listening" in line for line in server.stderr)
        threading.Thread(target=server.stderr.read, daemon=True).start()
        yield options
        server.kill()


@pytest.mark.processes
def test_the_end_of_the_tunnel_is_for_the_submitter_alone(federation: Path, known: Known, reach: list[str]) -> None:
    folder = federation / "submitters" / "alice"
    with served(known, federation / "server") as there:
        assert isinstance(there, Address)
        settings = SubmitSettings("alice", "hospitals", "127.0.0.1", reach, there.port)
        with Submitter(folder, settings).way() as place:
            assert isinstance(place, Path) and place.is_socket()
            assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
            assert names(place, folder / CA) == ["north"]
            (client,) = [each for each in psutil.Process().children() if "-L" in each.cmdline()]
            tcp = client.net_connections("tcp")
            assert tcp and not [each for each in tcp if each.status == psutil.CONN_LISTEN]
        assert not place.parent.exists()


@pytest.mark.processes
def test_a_key_that_may_forward_and_nothing_else_makes_the_tunnel(
    federation: Path, known: Known, reach: list[str], tmp_path: Path
) -> None:
    """As docs/federation/threats.md has it."""
    folder, authorized = federation / "submitters" / "alice", tmp_path / "ssh" / "authorized"
    with served(known, federation / "server") as there:
        assert isinstance(there, Address)
        limits = f'restrict,port-forwarding,permitopen="127.0.0.1:{there.port}",command="/bin/false"'
        assert limits.replace(str(there.port), "8000") in (DOCS / "federation" / "threats.md").read_text()
        authorized.write_text(f"{limits} {authorized.read_text()}")
        submitter = Submitter(folder, SubmitSettings("alice", "hospitals", "127.0.0.1", reach, there.port))
        with submitter.way() as place:
            assert names(place, folder / CA) == ["north"]
        with pytest.raises(TunnelError, match=r"cannot be done on 127\.0\.0\.1"):
            submitter.there("cat", "/etc/hostname")


@pytest.mark.processes
def test_who_is_not_let_in_by_ssh_is_told_what_it_says(federation: Path, reach: list[str]) -> None:
    settings = SubmitSettings("alice", "hospitals", "127.0.0.1", ["-l", "nobody-of-this-name", *reach])
    submitter = Submitter(federation / "submitters" / "alice", settings)
    with pytest.raises(TunnelError, match=r"cannot be reached by ssh: .*Permission denied"), submitter.way():
        pass
