"""The machines that tests of a federation share: made before the first of them, removed behind the last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from tests.end_to_end.federation import network, ssh
from tests.end_to_end.federation.machines import SITES, Machines
from tests.end_to_end.federation.network import Network, until
from umbel.simulations.sites import folders
from umbel.simulations.sites.folders import Plan


@pytest.fixture(scope="package")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    home = tmp_path_factory.mktemp("machines")
    with Network(("server", *SITES, "laptop", "stranger"), home) as net:
        address, folder = net.addresses["server"], home / "fl"
        plan = Plan("hospitals", (address,), SITES, ("alice",))
        folders.found_federation(folder, plan)
        net.start("server", *network.UMBEL, "federate", "serve", folder / "server", log="serve")
        until(folder / "server" / "logs" / "serve.log", "is up")
        for name in SITES:
            net.start(name, *network.UMBEL, "federate", "join", folder / "sites" / name, log=f"join-{name}")
        alice = home / "laptop" / "alice"
        shutil.copytree(folder / "submitters" / "alice", alice)
        place, options = "laptop", ()
        if ssh.sshd():
            command, reach = ssh.make(home / "ssh", address)
            net.start("server", *command, log="sshd")
            text = (alice / "submit.yaml").read_text()
            (alice / "submit.yaml").write_text(f"{text}ssh_options: {json.dumps(reach)}\n")
        else:
            place, options = "server", ("--control", "127.0.0.1:8000")
        for name in SITES:
            until(folder / "sites" / name / "logs" / "join.log", "Connected to", 300)
        yield Machines(net, folder, alice, place, options)
