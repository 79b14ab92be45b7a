"""A federation of four sites over a network: server, sites and a laptop are machines of their own, by namespaces.

It takes minutes: each site has a node, each run starts a process on each, as it would between machines.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.federation import network
from tests.end_to_end.federation.machines import MARKS, SITES, SMALL, Machines, pulled, submit
from tests.end_to_end.federation.network import until
from umbel.core.files import read_json
from umbel.server import reading

pytestmark = MARKS
STRATEGIES = {
    "fedloge": ("strategy.name=fedloge",),
    "fot": (
        *("strategy.name=fot", "strategy.threshold=0.7"),
        *("data.partition=permuted_tasks", "data.num_tasks=2", "data.rounds_per_task=1"),
    ),
}


@pytest.fixture(scope="module")
def frames(machines: Machines) -> Path:
    """All frames on the network while the first run ran."""
    return machines.folder.parent / "frames"


def test_every_site_is_there_with_its_clients(machines: Machines) -> None:
    done = machines.net.umbel("server", "federate", "status", machines.server)
    for name, held in SITES.items():
        assert any(line.split()[:3] == [name, "connected", held] for line in done.stdout.splitlines()), done.stdout
    assert "!" not in done.stdout


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_over_the_network_has_the_bits_of_inline(
    machines: Machines, strategy: str, frames: Path, tmp_path: Path
) -> None:
    overrides = (*SMALL, *STRATEGIES[strategy])
    with machines.net.captured("switch", frames.with_name(f"frames-{strategy}")):
        status, name, printed = submit(machines, "digits", *overrides)
    assert status == 0, printed
    target = pulled(machines, name, tmp_path)
    inline = machines.net.umbel("stranger", "run", "digits", *overrides, f"run.results={tmp_path}", "--quiet")
    there = reading.summary(Path(inline.stdout.strip()))
    assert reading.summary(target)["weights_sha256"] == there["weights_sha256"]
    assert reading.summary(target)["num_failures"] == 0
    assert {entry["site"] for entry in read_json(target / "nodes.json")["nodes"]} == set(SITES)


def chunks(run: Path) -> list[bytes]:
    """Pieces of a run's model as its tensors are sent, without those that other bytes could be by chance."""
    content = (run / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    body = content[8 + length :]
    pieces = [body[at : at + 24] for at in range(0, len(body) - 24, 480)]
    return [piece for piece in pieces if len(set(piece)) > 12]


WORDS = (b"num_clients", b"safetensors", b"F32", b"head.weight", b'"phase"', b"weights", b"BEGIN PRIVATE KEY", b"alice")


def test_nothing_of_a_run_is_readable_on_the_wire(machines: Machines, tmp_path: Path) -> None:
    """The same search finds the model in what an unencrypted run sends, on the server's loopback."""
    runs = sorted((machines.server / "results").glob("digits-fedloge-*"), key=lambda path: path.stat().st_mtime)
    encrypted = (machines.folder.parent / "frames-fedloge").read_bytes()
    assert len(encrypted) > 500_000
    pieces = chunks(runs[-1])
    assert len(pieces) > 20
    assert [piece for piece in pieces if piece in encrypted] == []
    assert [word for word in WORDS if word in encrypted] == []
    home = {"UMBEL_HOME": str(tmp_path / "up"), "UMBEL_STATE": str(tmp_path / "state")}
    with machines.net.captured("stranger", tmp_path / "plain"):
        started = machines.net.run("stranger", *network.UMBEL, "federate", "up", "--nodes", "1", environment=home)
        assert started.returncode == 0, started.stderr
        try:
            overrides = (*SMALL, *STRATEGIES["fedloge"], "engine.name=grpc", f"run.results={tmp_path}", "--quiet")
            done = machines.net.run("stranger", *network.UMBEL, "run", "digits", *overrides, environment=home)
            assert done.returncode == 0, done.stderr
        finally:
            machines.net.run("stranger", *network.UMBEL, "federate", "down", environment=home)
    plain = (tmp_path / "plain").read_bytes()
    open_ones = chunks(Path(done.stdout.strip()))
    assert [piece for piece in open_ones if piece in plain]
    assert b"num_clients" in plain


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(machines: Machines, tmp_path: Path) -> None:
    overrides = (*SMALL, "run.name=stopped", "evaluate.every=0")
    status, number, printed = submit(machines, "digits", *overrides, "run.rounds=5000", "--detach")
    assert status == 0, printed
    folder = machines.server / "results" / "stopped"
    until(folder / "progress.jsonl", '"event": "round"', 600)
    there = ("--to", machines.alice, *machines.options)
    stopped = machines.net.umbel(machines.place, "federate", "stop", number, *there)
    assert stopped.returncode == 0, stopped.stderr
    told = [json.loads(line) for line in until(folder / "progress.jsonl", '"event": "end"').splitlines()]
    rounds = max(entry["round"] for entry in told if entry["event"] == "round") + 2
    assert told[-1]["error"] == {"how": "asked"}
    more = ("--resume", "stopped", f"run.rounds={rounds}")
    resumed = machines.net.umbel(machines.place, "federate", "submit", *more, *there)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    whole = (*overrides, f"run.rounds={rounds}", f"run.results={tmp_path}", "--quiet")
    inline = machines.net.umbel("stranger", "run", "digits", *whole)
    expected = reading.summary(Path(inline.stdout.strip()))["weights_sha256"]
    assert reading.summary(folder)["weights_sha256"] == expected


@pytest.mark.parametrize("machine", ["north", "laptop", "stranger"])
def test_the_control_port_is_closed_from_everywhere_else(machines: Machines, machine: str) -> None:
    program = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
    address = machines.net.addresses["server"]
    ports = {port: machines.net.run(machine, sys.executable, "-c", program, address, port) for port in (8000, 9092)}
    assert "ConnectionRefusedError" in ports[8000].stderr
    assert ports[9092].returncode == 0


def test_a_server_that_starts_again_knows_its_keys_and_runs(machines: Machines, tmp_path: Path) -> None:
    before = machines.said().count("is taken, with the clients")
    assert machines.net.umbel("server", "federate", "down", machines.server).returncode == 0
    until(machines.folder / "sites" / "east" / "logs" / "join.log", "The connection is lost")
    wal = machines.server / "state" / "superlink.db-wal"
    assert not wal.exists() or wal.stat().st_size == 0
    machines.net.start("server", *network.UMBEL, "federate", "serve", machines.server, log="serve-again")
    deadline = time.monotonic() + 300
    while True:
        state = machines.net.umbel("server", "federate", "status", machines.server).stdout
        if all(f"{name} " in state for name in SITES) and state.count("connected") == len(SITES):
            break
        assert time.monotonic() < deadline, state
    assert machines.said().count("is taken, with the clients") == before  # the keys were in its database
    seen = machines.net.umbel(machines.place, "federate", "status", machines.alice, *machines.options).stdout
    assert "digits-fedloge" in seen  # and the runs
    status, name, printed = submit(machines, "digits", *SMALL, *STRATEGIES["fedloge"])
    assert status == 0, printed
    first = sorted((machines.server / "results").glob("digits-fedloge-*/summary.json"))[0]
    again = pulled(machines, name, tmp_path)
    assert reading.summary(again)["weights_sha256"] == read_json(first)["weights_sha256"]
