"""A federation of real processes whose processes are killed: noticed, left out, replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.end_to_end.faults.helpers import ENDLESS, SMALL, events, mentioning, slow, start, until
from umbel import RunResult, resume, run
from umbel.core.files import write_json
from umbel.core.refusal import Refusal
from umbel.server.errors import RunStoppedError, StopRequested
from umbel.server.listener import Listener
from umbel.server.lock import is_free
from umbel.simulations.engines import federate, processes

# Ray and processes that outlive the call that started them leave open files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")


class Killer(Listener):
    """Does something once, when a round begins its first phase."""

    def __init__(self, round_: int, kill: Callable[[], None]) -> None:
        self._round, self._kill, self.reasons = round_, kill, {}

    def phase(self, round_: int, phase: str, num_clients: int) -> None:
        if round_ == self._round:
            self._kill()

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        self.reasons.setdefault(round_, {})[client] = reason


def children(pid: int) -> list[int]:
    return [child for child, _ in processes.descendants([pid])]


@slow
@pytest.mark.exhaustive
def test_two_runs_share_a_federation(federation, tmp_path):
    def one(name: str) -> str:
        options = (*SMALL, "run.rounds=2", "engine.name=grpc", f"run.results={tmp_path}", f"run.name={name}")
        return run("digits", *options).summary["weights_sha256"]

    with ThreadPoolExecutor(2) as pool:
        left, right = pool.map(one, ("a", "b"))
    assert left == right
    # Unpacked before Flower did: its own installation is no place for two to meet.
    installed = [path.name for path in (federation / "flwr" / "apps").iterdir()]
    assert len(installed) == 1, installed


@slow
@pytest.mark.exhaustive
def test_a_client_process_that_is_killed_is_replaced(federation, tmp_path):
    node = federate.find(federation).nodes[1]
    killed: list[int] = []

    def kill() -> None:
        killed.extend(children(node))
        for child in killed:
            os.kill(child, signal.SIGKILL)

    heard = Killer(2, kill)
    result = run("digits", *SMALL, "run.rounds=4", "engine.name=grpc", f"run.results={tmp_path}", listener=heard)
    assert killed and set(heard.reasons) <= {2}  # while it worked, or between two messages
    assert result.summary["rounds"] == 4


@slow
def test_a_server_that_dies_is_noticed_at_once(federation, tmp_path):
    superlink = federate.find(federation).superlink

    def kill() -> None:
        for child in children(children(superlink)[0]):
            os.kill(child, signal.SIGKILL)

    began = time.monotonic()
    with pytest.raises(RunStoppedError, match="ended without a word"):
        run("digits", *ENDLESS, "engine.name=grpc", f"run.results={tmp_path}", listener=Killer(2, kill))
    assert time.monotonic() - began < 50
    # What it left can be gone on with, here and now.
    assert resume(tmp_path / "run", "run.rounds=2").summary["rounds"] == 2


@slow
def test_a_strategy_that_nodes_cannot_import_is_said_in_seconds(federation, tmp_path, monkeypatch):
    (tmp_path / "only_here_strategy.py").write_text("from umbel.strategies.fedavg import FedAvg as Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Refusal, match=r"only_here_strategy.*must be installed, or lie in a folder"):
        run(
            "digits",
            *SMALL,
            "strategy.name=only_here_strategy:Mine",
            "engine.name=grpc",
            f"run.results={tmp_path / 'results'}",
        )


class Revived(Killer):
    """Stops the run once a round has gone well after some that have not."""

    def begin(self, experiment, folder: str) -> None:
        self._folder = Path(folder)

    def round(self, round_: int, num_rounds: int, metrics, seconds: float) -> None:
        if self.reasons and round_ not in self.reasons:
            (self._folder / "stop").touch()


# A node whose machine fails when half of a reply is up.
DYING = """
import os, signal
from umbel.client.node import flower_common as pieces, supernode as node

def push(objects, push_object_fn, object_ids_to_push):
    if len(objects) > 1 and os.path.exists("die"):  # which is also true of greetings
        os.kill(os.getpid(), signal.SIGKILL)
    flower(objects, push_object_fn, object_ids_to_push=object_ids_to_push)

flower, pieces.push_objects = pieces.push_objects, push
node.main()
"""


def replace_node(home: Path, *program: str) -> None:
    """Kill the first node and start another in its place, perhaps one that runs another program."""
    federation = federate.find(home)
    with contextlib.suppress(ProcessLookupError):
        os.kill(federation.nodes[0], signal.SIGKILL)
    folder = home / "nodes" / "0"
    config = f'partition-id=0 num-partitions=2 state-folder="{folder / "state"}"'
    command = federate._node_command(folder, config, federation.fleet_port, 0, False)
    if program:
        command = [command[0], *program, *command[command.index("umbel.client.node.supernode") + 1 :]]
    again = processes.spawn(home, "node-0", command, tied=True)
    births = (federation.births[0], processes.birth(again.pid), federation.births[2])
    renewed = replace(federation, nodes=(again.pid, federation.nodes[1]), births=births)
    write_json(home / federate.STATE, asdict(renewed))


@slow
@pytest.mark.exhaustive  # a minute: a node counts as gone after 20 s, and another comes
@pytest.mark.parametrize("half_sent", [False, True])
def test_a_node_that_is_killed_is_left_out_long_before_the_deadline_and_may_come_back(half_sent, federation, tmp_path):
    if half_sent:
        replace_node(federation, "-c", DYING)

    def kill() -> None:
        if half_sent:
            dying = federate.find(federation).nodes[0]
            (Path(f"/proc/{dying}/cwd") / "die").touch()
            until(lambda: not processes.alive(dying))
        replace_node(federation)

    heard = Revived(2, kill)
    began = time.monotonic()
    with pytest.raises(StopRequested):
        run("digits", *ENDLESS, "engine.name=grpc", f"run.results={tmp_path}", listener=heard)
    assert time.monotonic() - began < 90  # two heartbeats of ten seconds; the deadline is an hour
    first = heard.reasons[min(heard.reasons)]  # the second round, or one soon after: news travels
    assert all("Node Unavailable" in reason for reason in first.values())
    assert all(set(failed) == {0, 1} for failed in heard.reasons.values())


@slow
@pytest.mark.exhaustive  # half a minute: a node counts as gone after 20 s, and nobody comes in its place
def test_a_run_that_lost_a_node_for_good_ends_with_a_model_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "none"))
    process = start(tmp_path, "engine.name=grpc", "engine.nodes=2", "run.rounds=12")
    folder = tmp_path / "run"
    try:
        until(lambda: events(folder, "round"), 180)
        os.kill(federate.find(folder / "federation").nodes[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 3, errors[-2000:]
    lost, remedy = errors.strip().splitlines()[-2:]
    assert lost == "Incomplete: Clients 2-3 of 4 were lost for good; the model is that of the others."
    assert remedy.endswith(f"umbel resume {folder} run.rounds=24")
    result = RunResult(folder)
    covered = result.summary["coverage"]
    assert (result.summary["rounds"], covered["lost"], covered["never"]) == (12, [2, 3], [])
    assert covered["rounds"][0]["answered"] == 4 and covered["rounds"][-1]["answered"] == 2
    assert covered["rounds"][-1]["last_round"] == 12
    assert [entry["text"] for entry in events(folder, "lost")] == [result.lost]
    assert (folder / "model.safetensors").is_file()


@slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to end children with their parent")
@pytest.mark.exhaustive  # half a minute: a federation of its own
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_federation_for_one_run_ends_with_it(number, tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "none"))
    process = start(tmp_path, "engine.name=grpc", "engine.nodes=1")
    folder = tmp_path / "run"
    try:
        until(lambda: events(folder, "round"))
        process.send_signal(number)
        _, errors = process.communicate(timeout=90)
    finally:
        process.kill()
    if number == signal.SIGTERM:
        assert process.returncode == 130, errors[-2000:]
        assert f"Go on with: umbel resume {folder}" in errors
        assert list((folder / "checkpoints").glob("round-*"))
        assert not mentioning(folder)
    until(lambda: not mentioning(folder) and is_free(folder))


@slow
@pytest.mark.exhaustive
def test_a_superlink_that_dies_is_noticed_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "none"))

    def kill() -> None:
        os.kill(federate.find(tmp_path / "run" / "federation").superlink, signal.SIGKILL)

    killed = SimpleNamespace(at=0.0)

    def note() -> None:
        kill()
        killed.at = time.monotonic()

    with pytest.raises(RunStoppedError, match="its SuperLink is gone"):
        run(
            "digits",
            *ENDLESS,
            "engine.name=grpc",
            "engine.nodes=1",
            f"run.results={tmp_path}",
            listener=Killer(2, note),
        )
    assert time.monotonic() - killed.at < 20
