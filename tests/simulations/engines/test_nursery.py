"""Workers that are copies of a process: they come, they end with it, and why one has ended is known."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.faults.helpers import SMALL, events, start, until
from umbel import run
from umbel.conf.load import load
from umbel.core.refusal import Refusal
from umbel.server.errors import RunStoppedError
from umbel.server.listener import Listener
from umbel.simulations.engines import lines, nursery, processes_engine
from umbel.simulations.engines.line import Line
from umbel.simulations.engines.lines import Lines
from umbel.simulations.engines.nursery import Nursery
from umbel.simulations.engines.processes_engine import ProcessesPort, _Born, _Worker
from umbel.simulations.engines.worker import WorkerProcess
from umbel.simulations.engines.workers import WorkerDiedError, WorkerFailedError

pytestmark = pytest.mark.skipif(not lines.is_possible(), reason="memory without a name is Linux's")
TWO = ("engine.name=processes", "engine.workers=2")


class Echo(WorkerProcess):
    """A worker that has no experiment."""

    def __init__(self, text):
        self._error, self.text = None, text

    def say(self):
        return self.text, os.getpid(), os.environ.get("OF_ONE_ALONE", "")

    def handlers(self):
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def leave(self, code):
        sys.exit(code)

    def crash(self):
        os.kill(os.getpid(), signal.SIGUSR2)

    def print_much(self):
        print("x" * 100_000, file=sys.stderr, flush=True)
        print("x" * 100_000, flush=True)
        return len(threading.enumerate())


@pytest.fixture
def born(monkeypatch):
    monkeypatch.setattr(nursery, "WorkerProcess", Echo)
    home = Nursery(("hello",), copies=True)
    door = Lines(_Born(home))
    yield door, home
    door.close()
    home.close()


def asked(door, worker, method, *arguments):
    given = door.ask(worker, method, *arguments)
    while door.wait([given], 20.0) is None:
        pass
    return door.take(given)


def test_workers_are_copies_and_each_its_own_process(born, monkeypatch):
    door, _ = born
    workers = [_Worker(), _Worker()]
    for worker in workers:
        door.open(worker)
    said = [asked(door, worker, "say") for worker in workers]
    assert [text for text, _, _ in said] == ["hello", "hello"]
    assert len({os.getpid(), *(pid for _, pid, _ in said)}) == 3
    parents = {psutil.Process(pid).ppid() for _, pid, _ in said}
    assert len(parents) == 1 and psutil.Process(parents.pop()).ppid() == os.getpid()


def test_a_worker_sees_the_gpu_that_it_is_given(born):
    door, _ = born
    worker = _Worker(gpu="3")
    door.open(worker)
    assert asked(door, worker, "_gpu") == "3"


def test_a_worker_answers_no_signal_for_the_driver(born):
    """Nor does it write where the driver does."""
    door, _ = born
    worker = _Worker()
    door.open(worker)
    assert asked(door, worker, "handlers") == [signal.SIG_IGN, signal.SIG_DFL, signal.SIG_IGN]
    assert asked(door, worker, "print_much") == 1


def test_threads_of_the_driver_are_no_hindrance(monkeypatch):
    """Nor is a lock that one of them holds just then, if it is one that Python makes anew in a copy."""
    monkeypatch.setattr(nursery, "WorkerProcess", Echo)
    ends, holds, handler = threading.Event(), threading.Event(), logging.NullHandler()
    handler.createLock()

    def hold():
        handler.acquire()
        holds.set()
        ends.wait(60)
        handler.release()

    monkeypatch.setattr(Echo, "say", lambda self: (self.text, handler.acquire() or handler.release(), ""))
    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait()
    try:
        home = Nursery(("hello",), copies=True)
        door, worker = Lines(_Born(home)), _Worker()
        door.open(worker)
        assert asked(door, worker, "say")[0] == "hello"
        door.close()
        home.close()
    finally:
        ends.set()
        thread.join()


def test_a_thread_may_start_them(monkeypatch):
    """Its copy is a process whose one thread answers signals."""
    monkeypatch.setattr(nursery, "WorkerProcess", Echo)
    said = []

    def start():
        home = Nursery(("hello",), copies=True)
        door, worker = Lines(_Born(home)), _Worker()
        door.open(worker)
        said.append(asked(door, worker, "handlers"))
        door.close()
        home.close()

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert said == [[signal.SIG_IGN, signal.SIG_DFL, signal.SIG_IGN]]


def test_a_system_without_room_for_the_first_is_told(monkeypatch):
    monkeypatch.setattr(nursery.os, "fork", lambda: (_ for _ in ()).throw(OSError(11, "no more processes")))
    with pytest.raises(RunStoppedError, match=r"No worker can be started: .*no more processes"):
        Nursery(("hello",), copies=True)


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [("leave", (3,), "it ended with status 1"), ("crash", (), "it was ended by SIGUSR2")],
)
def test_why_a_worker_has_ended_is_known_and_another_comes(born, method, arguments, words):
    door, home = born
    worker, other = _Worker(), _Worker()
    door.open(worker)
    with pytest.raises(WorkerDiedError, match=words):
        asked(door, worker, method, *arguments)
    door.forget(worker)
    home.end(worker.number)
    door.open(other)
    assert asked(door, other, "say")[0] == "hello"


def test_what_a_worker_raises_is_its_answer(born):
    door, _ = born
    worker = _Worker()
    door.open(worker)
    with pytest.raises(WorkerFailedError, match="AttributeError"):
        asked(door, worker, "dance")
    assert asked(door, worker, "say")[0] == "hello"


def test_a_nursery_that_is_closed_leaves_nothing(born):
    door, home = born
    worker = _Worker()
    door.open(worker)
    pid = asked(door, worker, "say")[1]
    files = len(list(Path("/proc/self/fd").iterdir()))
    home.close()
    assert not psutil.pid_exists(pid) and home._process.has_ended()
    assert len(list(Path("/proc/self/fd").iterdir())) == files - 1


def test_a_nursery_that_was_killed_ends_the_run_with_a_word(born):
    door, home = born
    worker = _Worker()
    door.open(worker)
    pid = asked(door, worker, "say")[1]
    home.check()
    os.kill(home._process.pid, signal.SIGKILL)
    with pytest.raises(RunStoppedError, match="process that starts the workers has ended: it was killed"):
        home.last_words(worker.number, has_hung_up=True)
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_system_without_room_is_told(born, monkeypatch):
    """It is the nursery that has no room for a worker, so it is asked what it would say."""
    one, other = nursery.socket.socketpair()
    monkeypatch.setattr(nursery.os, "fork", lambda: (_ for _ in ()).throw(OSError(11, "no more processes")))
    line = Line(other)
    line.send(nursery._Begin(0, "nowhere", {}))
    thread = threading.Thread(target=nursery._nurse, args=(Line(one), lambda: None))
    thread.start()
    assert "no more processes" in line.receive().reason
    line.close()
    thread.join()
    one.close()


def test_a_nursery_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(nursery, "WorkerProcess", lambda text: signal.pause())
    home = Nursery(("hello",), copies=True, seconds=0.2)
    with pytest.raises(RunStoppedError, match="does not answer"):
        home.last_words(0, has_hung_up=False)
    monkeypatch.setattr(nursery, "_PATIENCE_SECONDS", 0.1)
    home.close()
    assert home._process.has_ended(10.0)


def test_the_end_is_known_also_where_another_process_has_a_copy_of_the_line(born):
    _, home = born
    held = os.dup(home._line.socket.fileno())
    home._process.end = lambda seconds: None
    home.close()
    assert home._process.has_ended(10.0)
    os.close(held)


# With an experiment ---------------------------------------------------------------------------------------------


def test_what_keeps_a_worker_from_starting_is_told_at_once(tmp_path, monkeypatch):
    def broken(self, *arguments):
        raise Refusal("There is no such thing.", key="model.name", remedy="Take another.")

    monkeypatch.setattr(WorkerProcess, "_begin", broken)
    with pytest.raises(Refusal, match="There is no such thing"):
        run("digits", *SMALL, *TWO, "run.rounds=1", f"run.results={tmp_path}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("engine.gpus_per_worker=0.5",), r"engine\.gpus_per_worker=0\.5, and clients compute on cpu"),
        (("client.device=cuda",), r"client\.device=cuda"),
    ],
)
def test_what_is_refused_leaves_nothing(options, message, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("asks for what this machine has")
    with pytest.raises(Refusal, match=message):
        run("digits", *SMALL, *TWO, *options, "run.rounds=1", f"run.results={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_another_system_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(processes_engine, "is_possible", lambda: False)
    with pytest.raises(Refusal, match="only Linux has"):
        run("digits", *SMALL, *TWO, "run.rounds=1", f"run.results={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_as_many_workers_as_are_of_use(tmp_path):
    class Notices(Listener):
        texts: list[str] = []  # noqa: RUF012

        def notice(self, text):
            self.texts.append(text)

    run(
        *(
            "digits",
            *SMALL,
            "engine.name=processes",
            "engine.workers=auto",
            "run.rounds=1",
            "engine.ray_address=auto",
            f"run.results={tmp_path}",
        ),
        listener=Notices(),
    )
    assert sum(text.startswith("engine.workers=auto: ") for text in Notices.texts) == 1
    assert sum(text.startswith("engine.ray_address=auto is of engine.name=ray") for text in Notices.texts) == 1


def test_all_gpus_are_shared_out(monkeypatch):
    """By their names in the environment; where the experiment names one, all of it is on that."""
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert processes_engine._gpus(torch.device("cuda")) == ("0", "1")
    assert processes_engine._gpus(torch.device("cuda:1")) == ("",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b,GPU-c")
    assert processes_engine._gpus(torch.device("cuda")) == ("GPU-a", "GPU-b", "GPU-c")
    port = ProcessesPort.__new__(ProcessesPort)
    port._gpus, port._workers = ("a", "b"), []
    port._reach = type("Reach", (), {"open": lambda self, worker: None})()
    monkeypatch.setattr(ProcessesPort, "_all_of", lambda self, workers, method: [(0, None, "")] * len(workers))
    assert [worker.gpu for worker in port.more(4, 2)] == ["a", "a", "b", "b"]
    with pytest.raises(Refusal, match=r"engine\.workers=5 with 2 on a GPU do not fit on 2"):
        port.more(5, 2)


@pytest.mark.parametrize(("threads", "cuda", "copies"), [(1, False, True), (2, False, False), (1, True, False)])
def test_what_a_copy_cannot_go_on_with_begins_anew(threads, cuda, copies, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert processes_engine.may_copy(load("digits", [f"run.threads={threads}"])) is copies


def living(processes):
    """Return those of some processes that still run."""
    alive = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_whatever_ends_the_driver_ends_all(number, tmp_path):
    """Signals may go to all of a group; the driver alone answers, and writes a checkpoint."""
    process = start(tmp_path, *TWO)
    try:
        until(lambda: len(events(tmp_path / "run", "round")) > 2)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 3  # two workers, and what starts them
        for child in children if number != signal.SIGKILL else ():  # what starts them is the first
            child.send_signal(number)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    until(lambda: not living(children))
    if number != signal.SIGKILL:
        assert process.returncode == 130, said[-2000:]
        assert f"Go on with: umbel resume {tmp_path / 'run'}" in said
        assert list((tmp_path / "run" / "checkpoints").glob("round-*"))


@pytest.mark.slow
@pytest.mark.processes
def test_a_killed_nursery_stops_a_run_that_can_go_on(tmp_path):
    process = start(tmp_path, *TWO)
    try:
        until(lambda: len(events(tmp_path / "run", "round")) > 2)
        (home,) = psutil.Process(process.pid).children()
        home.kill()
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 3, said[-2000:]
    assert "starts the workers has ended" in said and f"Go on with: umbel resume {tmp_path / 'run'}" in said
