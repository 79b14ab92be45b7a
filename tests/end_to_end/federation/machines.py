"""The machines of a federation, and what is done on them: submit a run, fetch it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.federation import network
from tests.end_to_end.federation.network import Network

REASON = network.missing()
MARKS = [
    pytest.mark.exhaustive,
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(REASON), reason=REASON),
]
SITES = {"north": "0-1", "south": "2-3", "east": "4-5", "west": "6-7"}
SMALL = (
    *("model.name=cnn", "model.sizes={width: 8, hidden: 32}", "data.num_clients=8", "data.max_train=200"),
    *("data.alpha=1.0", "client.epochs=1", "run.rounds=2", "run.seed=3", "engine.node_timeout_seconds=300"),
)


@dataclass
class Machines:
    """The machines and their folders.

    Attributes:
        net: The network.
        folder: The federation's folder, as it was before each owner got theirs.
        alice: The submitter's folder, on the laptop.
        place: Where she calls from, and with which options: the laptop through SSH, or the server itself.
        options: These.
    """

    net: Network
    folder: Path
    alice: Path
    place: str
    options: tuple[str, ...]

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.folder / "server"

    def said(self) -> str:
        """What the server has said."""
        return (self.server / "logs" / "serve.log").read_text()


def submit(machines: Machines, *arguments: str) -> tuple[int, str, str]:
    """Submit a run; return its status, its name and all that was printed."""
    done = machines.net.umbel(
        machines.place, "federate", "submit", *arguments, "--to", machines.alice, *machines.options
    )
    lines = done.stdout.splitlines()
    return done.returncode, lines[-1] if lines else "", done.stdout + done.stderr


def pulled(machines: Machines, run: str, into: Path) -> Path:
    done = machines.net.umbel(
        machines.place, "federate", "pull", run, "--to", machines.alice, "--into", into, *machines.options
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())
