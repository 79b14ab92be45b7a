"""What breaks in a real federation, broken on purpose: processes that die, states that are stale, signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app import Error, Message

from tests.places import ROOT
from umbel import resume, run
from umbel.client.node.supernode import Node, WarmProcess
from umbel.core.files import write_json
from umbel.core.messages import encode_json
from umbel.core.refusal import Refusal
from umbel.server.errors import RunStoppedError, StopRequested
from umbel.server.flower.inbox import FlowerPort
from umbel.server.listener import PROGRESS_FILE, Listener
from umbel.server.lock import exclusive, is_free
from umbel.server.nodes import Directory
from umbel.simulations.engines import federate, grpc_engine, processes
from umbel.simulations.engines.federate import Federation
from umbel.simulations.engines.flower_internals import identify

# Ray and processes that outlive the call that started them leave open files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")


def slow(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that starts Ray or a federation."""
    return pytest.mark.slow(pytest.mark.processes(test))


UMBEL = str(Path(sys.executable).parent / "umbel")
SMALL = (
    "model.name=cnn",
    "model.sizes={width: 4, hidden: 16}",
    "data.num_clients=4",
    "data.max_train=100",
    "client.epochs=1",
    "evaluate.every=0",
    "checkpoint.every=0",
)
ENDLESS = (*SMALL, "run.rounds=100000", "run.name=run")


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def events(folder: Path, kind: str) -> list[dict]:
    file = folder / PROGRESS_FILE
    lines = file.read_text().splitlines() if file.is_file() else []
    return [entry for line in lines if line.endswith("}") and (entry := json.loads(line))["event"] == kind]


def start(results: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [UMBEL, "run", "digits", *ENDLESS, f"run.results={results}", *options],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def mentioning(folder: Path) -> list[str]:
    """Command lines of living processes that work in a folder or name it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if command and (str(folder) in command or str((process / "cwd").readlink()).startswith(str(folder))):
                found.append(command)
        except OSError:
            continue
    return found


# Without a federation -------------------------------------------------------------------------------------


class Polled:
    """A SuperLink's grid: pushed to and pulled from; `answer` makes what comes back for a message, or None."""

    def __init__(self, nodes, answer):
        identify()
        self.nodes, self._answer, self._sent = nodes, answer, {}

    def get_node_ids(self):
        return list(self.nodes)

    def push_messages(self, messages):
        for number, message in enumerate(messages, len(self._sent)):
            message.metadata.__dict__["_message_id"] = f"m{number}"
            self._sent[f"m{number}"] = message
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, identifiers):
        return [reply for name in identifiers if (reply := self._answer(self._sent[name])) is not None]


def greeting(message, partitions):
    return Message(encode_json({"partitions": partitions, "config_hash": "hash"}), reply_to=message)


def as_the_superlink(message):
    """What a SuperLink says, in its own name, for a node that is gone."""
    reply = Message(Error(1, "Node Unavailable"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = 1
    return reply


def test_a_node_that_is_gone_answers_at_once_and_under_its_own_name():
    grid = Polled([7, 8], lambda m: as_the_superlink(m) if m.metadata.dst_node_id == 7 else greeting(m, [0]))
    messages = [Message(encode_json({}), node, "train") for node in (7, 8)]
    found = {reply.metadata.src_node_id: reply for reply in FlowerPort(grid).stream(messages, time.monotonic() + 60)}
    assert found.keys() == {7, 8}
    assert found[7].has_error() and "Unavailable" in found[7].error.reason
    assert all(message.metadata.ttl < 70 for message in messages)  # nodes know when nobody waits any more


def test_a_silent_node_is_waited_for_until_the_deadline_and_no_longer():
    grid = Polled([7], lambda message: None)
    began = time.monotonic()
    assert not list(FlowerPort(grid).stream([Message(encode_json({}), 7, "train")], began + 0.2))
    assert 0.2 <= time.monotonic() - began < 5


class Stuck(Polled):
    """A grid that, as Flower's, waits for the rest of a reply whose node died in the middle of sending it."""

    def __init__(self, nodes, dead):
        super().__init__(nodes, lambda message: greeting(message, [0]))
        self._dead = dead

    def pull_messages(self, identifiers):
        if any(self._sent[name].metadata.dst_node_id == self._dead for name in identifiers):
            self.nodes = [node for node in self.nodes if node != self._dead]
            time.sleep(60)
        return super().pull_messages(identifiers)


def test_many_replies_that_are_there_are_all_taken():
    nodes = list(range(10, 410))
    grid = Polled(nodes, lambda message: greeting(message, [0]) if time.monotonic() > began + 5 else None)
    began = time.monotonic()
    messages = [Message(encode_json({}), node, "train") for node in nodes]
    found = {reply.metadata.src_node_id for reply in FlowerPort(grid).stream(messages, began + 7)}
    assert found == set(nodes)


def test_a_node_that_dies_with_its_reply_half_sent_holds_nobody_up(monkeypatch):
    monkeypatch.setattr("umbel.server.flower.inbox._PRESENCE_SECONDS", 0.5)
    messages = [Message(encode_json({}), node, "train") for node in (7, 8)]
    began, found, seconds = time.monotonic(), {}, {}
    for reply in FlowerPort(Stuck([7, 8], 7)).stream(messages, began + 600):
        found[reply.metadata.src_node_id] = reply
        seconds[reply.metadata.src_node_id] = time.monotonic() - began
    assert found[7].has_error() and "left before its reply was complete" in found[7].error.reason
    assert not found[8].has_error()
    assert seconds[8] < seconds[7] < 30


def test_what_the_grid_raises_is_raised_and_what_it_does_not_take_is_not_waited_for():
    def answer(message):
        raise ConnectionError("the SuperLink is gone")

    with pytest.raises(ConnectionError, match="the SuperLink is gone"):
        list(FlowerPort(Polled([7], answer)).stream([Message(encode_json({}), 7, "train")], time.monotonic() + 60))

    class Full(Polled):
        def push_messages(self, messages):
            return [None for _ in messages]

    began = time.monotonic()
    assert not list(FlowerPort(Full([7], answer)).stream([Message(encode_json({}), 7, "train")], began + 60))
    assert time.monotonic() - began < 30


def test_a_node_that_starts_again_takes_its_clients_over_and_nobody_waits_for_one_that_is_silent():
    grid = Polled([5], lambda message: greeting(message, [0, 1]) if message.metadata.dst_node_id != 6 else None)
    directory = Directory(FlowerPort(grid), "hash", 2, 30.0)
    directory.wait()
    grid.nodes = [5, 6, 9]  # 9 is what 5 was, 6 has just come and is busy
    began = time.monotonic()
    directory.refresh()
    assert time.monotonic() - began < 5
    until(lambda: directory.refresh() or directory.split([0, 1]) == ({9: frozenset({0, 1})}, []))
    grid.nodes = [9]
    directory.refresh()
    assert directory.split([0, 1]) == ({9: frozenset({0, 1})}, [])


def test_a_greeting_may_fail_twice():
    failed = []

    def answer(message):
        if len(failed) < 2:
            failed.append(message)
            return Message(Error(3, "killed"), reply_to=message)
        return greeting(message, [0])

    directory = Directory(FlowerPort(Polled([5], answer)), "hash", 1, 30.0)
    directory.wait()
    assert directory.split([0]) == ({5: frozenset({0})}, []) and len(failed) == 2


def test_silent_nodes_are_named():
    with pytest.raises(RunStoppedError, match="No answer yet from node 5"):
        Directory(FlowerPort(Polled([5], lambda message: None)), "hash", 1, 0.2).wait()


def test_clients_that_nobody_holds_are_named():
    grid = Polled([5, 6], lambda message: greeting(message, [0, 1] if message.metadata.dst_node_id == 5 else [3]))
    with pytest.raises(RunStoppedError, match=r"nobody holds the clients 2, 4-7 of 8\. Start more nodes"):
        Directory(FlowerPort(grid), "hash", 8, 0.3).wait()


def test_a_reply_that_is_still_on_its_way_up_is_looked_for_soon(monkeypatch):
    """If Flower renames what we turn, a round over gRPC takes a second more, and nothing else would say so."""
    from flwr.supercore.inflatable.inflatable_utils import pull_objects

    from umbel.server.flower import submitted

    monkeypatch.setitem(pull_objects.__kwdefaults__, "initial_backoff", 1.0)
    submitted._hasten()
    assert pull_objects.__kwdefaults__["initial_backoff"] == 0.02


def test_one_process_at_a_time_works_on_a_run(tmp_path):
    with exclusive(tmp_path):
        assert not is_free(tmp_path)
        with pytest.raises(RunStoppedError, match="Another process is at work on"), exclusive(tmp_path, 0.2):
            pass
    assert is_free(tmp_path)


def test_a_line_that_is_written_by_halves_waits_for_its_end(tmp_path):
    file = tmp_path / PROGRESS_FILE
    file.write_bytes(b'{"old": 1}\n')
    progress = grpc_engine._Progress(file)
    whole = '{"event": "é"}\n'.encode()
    for cut in (whole[:11], whole[11:13]):  # in the middle of a letter
        with file.open("ab") as out:
            out.write(cut)
        assert progress.lines() == []
    with file.open("ab") as out:
        out.write(whole[13:] + b"{")
    assert progress.lines() == [whole.decode().strip()]


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def stale(home: Path, pid: int, born: int) -> None:
    state = Federation(str(home), 1, 2, pid, (pid,), False, (born, born))
    write_json(home / federate.STATE, asdict(state))


def test_down_leaves_a_stranger_alone_who_got_the_number_of_one_of_ours(tmp_path, stranger):
    born = processes.birth(stranger.pid)
    assert born > 0
    stale(tmp_path, stranger.pid, born - 10)
    assert federate.find(tmp_path) is None
    assert "No federation is up" in federate.status(tmp_path)
    assert federate.stop(tmp_path)
    assert stranger.poll() is None
    stale(tmp_path, stranger.pid, born)
    assert federate.find(tmp_path) is not None
    with pytest.raises(federate.FederationError, match="up already"):
        federate.start(1, tmp_path)
    assert federate.down(tmp_path) == "The federation is down."
    stranger.wait(5)  # which has been waited for already, so that nobody knows its exit code
    assert federate.down(tmp_path) == "No federation was up."


def test_a_state_file_that_cannot_be_read(tmp_path):
    (tmp_path / federate.STATE).write_text("{")
    with pytest.raises(federate.FederationError, match=r"cannot be read.*remove it"):
        federate.find(tmp_path)


def test_two_cannot_start_the_same_federation_at_once(tmp_path):
    with federate._one_at_a_time(tmp_path), pytest.raises(federate.FederationError, match="right now"):
        federate.start(1, tmp_path)


# A warm node's process ------------------------------------------------------------------------------------


class FakeNode(Node):
    """A node whose client process is a program of the test's."""

    def __init__(self, tmp_path, program, get_run=lambda run_id: None):
        identify()
        nothing = [None] * 4
        super().__init__((1, None, None, get_run, *nothing), {}, tmp_path)
        package = tmp_path / "umbel" / "client" / "node"  # in place of the bundle's
        package.mkdir(parents=True)
        for folder in (package, package.parent, package.parent.parent):
            (folder / "__init__.py").touch()
        (package / "serve.py").write_text(f"{program}\n")
        self._bundle = tmp_path

    def _process(self, run_id):
        if run_id not in self._processes:
            self._processes[run_id] = WarmProcess(self._bundle, {})
        return self._processes[run_id]


def question(ttl=60.0):
    identify()
    message = Message(encode_json({}), 1, "train")
    message.metadata.ttl = ttl
    return message


@pytest.mark.parametrize("program", ["", "import time; time.sleep(0.3)"], ids=["at once", "while it works"])
def test_a_client_process_that_dies_is_an_error_reply(tmp_path, program):
    node = FakeNode(tmp_path, program)
    for _ in range(2):  # and the node lives on
        reply = node._run(1, question())
        assert reply.has_error() and reply.error.reason.startswith("BrokenPipeError")
        assert not node._processes


def test_a_client_process_that_hangs_is_given_up_when_nobody_waits_any_more(tmp_path, monkeypatch):
    monkeypatch.setattr("umbel.client.node.supernode._ASK_SECONDS", 0.1)
    node = FakeNode(tmp_path, "import time; time.sleep(60)")
    reply = node._run(1, question(ttl=0.5))
    assert "deadline" in reply.error.reason and not node._processes


# Ray ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("engine.ray_address=auto",), r"engine\.ray_address=auto: no Ray cluster answers there"),
        pytest.param(
            ("engine.gpus_per_worker=0.5",), r"0\.5 GPU each do not fit: Ray has 0 GPU", marks=pytest.mark.slow
        ),
        pytest.param(("client.device=cuda",), r"client\.device=cuda", marks=pytest.mark.slow),
    ],
)
@pytest.mark.processes
@pytest.mark.usefixtures("no_cluster")
def test_ray_refuses_and_leaves_nothing(options, message, tmp_path, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("asks for what this machine has")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(Refusal, match=message):
        run("digits", *SMALL, "engine.name=ray", "engine.workers=1", *options, f"run.results={tmp_path}")
    assert not list(tmp_path.iterdir())
    import ray

    assert not ray.is_initialized()


@slow
def test_sigterm_stops_a_ray_run_with_a_checkpoint(tmp_path):
    """Ray has a handler of its own, which ends the process at once."""
    process = start(tmp_path, "engine.name=ray", "engine.workers=1")
    folder = tmp_path / "run"
    try:
        until(lambda: len(events(folder, "round")) > 2)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors[-2000:]
    assert f"Go on with: umbel resume {folder}" in errors
    assert list((folder / "checkpoints").glob("round-*"))
    assert not (folder / "ray").exists()


# A federation of real processes ---------------------------------------------------------------------------


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

    def kill() -> None:
        for child in children(node):
            os.kill(child, signal.SIGKILL)

    heard = Killer(2, kill)
    result = run("digits", *SMALL, "run.rounds=4", "engine.name=grpc", f"run.results={tmp_path}", listener=heard)
    assert set(heard.reasons) <= {2}  # killed while it worked, or between two messages
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
    with pytest.raises(Refusal, match=r"only_here_strategy.*must be installed here, or be in"):
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
from umbel.client.node import supernode as node

def push(objects, push_object_fn, object_ids_to_push):
    if len(objects) > 1 and os.path.exists("die"):  # which is also true of greetings
        os.kill(os.getpid(), signal.SIGKILL)
    flower(objects, push_object_fn, object_ids_to_push=object_ids_to_push)

flower, node.push_objects = node.push_objects, push
node.main()
"""


def replace_node(home: Path, *program: str) -> None:
    """Kill the first node and start another in its place, perhaps one that runs another program."""
    found = federate.find(home)
    with contextlib.suppress(ProcessLookupError):
        os.kill(found.nodes[0], signal.SIGKILL)
    folder = home / "nodes" / "0"
    config = f'partition-id=0 num-partitions=2 state-folder="{folder / "state"}"'
    command = federate._node_command(folder, config, found.fleet_port, 0, False)
    if program:
        command = [command[0], *program, *command[command.index("umbel.client.node.supernode") + 1 :]]
    again = processes.spawn(home, "node-0", command, tied=True)
    births = (found.births[0], processes.birth(again.pid), found.births[2])
    renewed = replace(found, nodes=(again.pid, found.nodes[1]), births=births)
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
