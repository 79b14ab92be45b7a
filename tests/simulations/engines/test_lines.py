"""Lines to workers of this machine: all that is said arrives, in order, and who is gone is noticed."""

from __future__ import annotations

import gc
import mmap
import os
import resource
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from umbel.core.flat import Outline
from umbel.core.folds import Partial
from umbel.core.records import Payload
from umbel.core.wire.packed import Packed
from umbel.core.wire.work import Outcome, Work
from umbel.server.port import Task
from umbel.simulations.engines import lines
from umbel.simulations.engines.line import Line, LineError, Memory
from umbel.simulations.engines.lines import Lines
from umbel.simulations.engines.workers import WorkerDiedError, WorkerFailedError

pytestmark = pytest.mark.skipif(not lines.is_possible(), reason="memory without a name is Linux's")
PAYLOAD = Payload({"model": {"w": torch.arange(5.0), "b": torch.tensor(2, dtype=torch.int64)}}, {"rate": 0.5})
TASK = Task(1, Work("run", "a", 1, 0, "train", "hash", 0, 2, {3: 0, 5: 1}), PAYLOAD)


@pytest.fixture
def ends():
    one, other = (Line(end) for end in socket.socketpair(socket.AF_UNIX))
    yield one, other
    one.close()
    other.close()


def test_what_is_said_arrives(ends):
    one, other = ends
    said = [None, 7, {"a": [1, 2]}, "x" * 100_000]
    for content in said:
        one.send(content)
    assert [other.receive() for _ in said] == said


def test_memory_is_handed_over_once_and_is_one(ends):
    one, other = ends
    memory = Memory()
    for round_ in range(3):
        memory.of(1000)[:] = round_
        one.send(round_, memory)
        assert other.receive() == round_ and (other.memory(1000) == round_).all()
    num_files = len(list(Path("/proc/self/fd").iterdir()))
    memory.of(1000)[:] = 9
    assert (other.memory(1000) == 9).all()  # without a word: it is the same memory
    with pytest.raises(ValueError, match="read-only"):
        other.memory(1000)[:] = 1
    memory.of(100_000)[:] = 4  # another one, as the first is too small
    one.send("larger", memory)
    assert other.receive() == "larger" and (other.memory(100_000) == 4).all()
    assert len(list(Path("/proc/self/fd").iterdir())) == num_files
    assert len(memory.of(0)) == len(other.memory(0)) == 0
    memory.close()


def test_a_full_disk_leaves_a_large_answer_in_memory(ends, monkeypatch):
    one, other = ends
    monkeypatch.setattr("umbel.simulations.engines.line._MOST_KEPT", 0)
    monkeypatch.setattr("umbel.core.stored.File.new", lambda: (_ for _ in ()).throw(OSError(28, "no space")))
    trees = {"a": {"w": torch.arange(4.0)}}
    memory, outline = Memory(), Outline.of(trees)
    told = []
    assert memory.lay(trees, outline, told.append) is False
    assert len(told) == 1 and "no space" in told[0] and tempfile.gettempdir() in told[0]
    one.send("laid", memory)
    assert other.receive() == "laid"
    assert outline.read(torch.from_numpy(other.memory(outline.num_bytes).copy()))["a"]["w"].tolist() == [0, 1, 2, 3]
    memory.close()


def test_a_large_answer_is_held_by_who_has_it_and_nobody_else(ends, monkeypatch):
    one, other = ends
    monkeypatch.setattr("umbel.simulations.engines.line._MOST_KEPT", 0)
    num_files = len(list(Path("/proc/self/fd").iterdir()))
    trees = {"a": {"w": torch.arange(4.0)}}
    memory, outline = Memory(), Outline.of(trees)
    for _ in range(2):
        assert memory.lay(trees, outline) is True
        one.send("laid", memory)
        memory.given_away()
        assert other.receive() == "laid"
        file = other.file_of_answer()
        into = torch.empty(4)
        file.read(into, 0)
        assert into.tolist() == [0.0, 1.0, 2.0, 3.0]
        del file
        gc.collect()
        assert len(list(Path("/proc/self/fd").iterdir())) == num_files


def resident(address, num_bytes):
    """Which of a memory's pages this process has in its own tables."""
    with Path("/proc/self/pagemap").open("rb") as pages:
        pages.seek(address // mmap.PAGESIZE * 8)
        entries = np.frombuffer(pages.read(num_bytes // mmap.PAGESIZE * 8), np.uint64)
    return int((entries >> np.uint64(63)).sum())


def test_a_large_phase_is_in_no_memory_of_who_laid_it_and_nowhere_once_it_is_over(ends, monkeypatch):
    one, other = ends
    monkeypatch.setattr("umbel.simulations.engines.line._LARGE", 1 << 16)
    memory = Memory()
    laid = memory.of(1 << 20)
    laid[:] = 7
    one.send("laid", memory)
    assert other.receive() == "laid"
    assert resident(laid.ctypes.data, 1 << 20) == (1 << 20) // mmap.PAGESIZE
    memory.look_away()
    assert resident(laid.ctypes.data, 1 << 20) == 0
    assert (other.memory(1 << 20) == 7).all() and (laid == 7).all()
    assert os.fstat(memory.file).st_blocks
    memory.empty()
    assert os.fstat(memory.file).st_blocks == 0
    assert not other.memory(1 << 20).any()
    memory.of(1 << 20)[:] = 8
    assert (other.memory(1 << 20) == 8).all()
    memory.close()


def test_a_small_phase_stays_where_it_is(ends):
    one, other = ends
    memory = Memory()
    memory.of(1 << 16)[:] = 7
    memory.look_away()
    memory.empty()
    one.send("laid", memory)
    assert other.receive() == "laid" and (other.memory(1 << 16) == 7).all()
    memory.close()


def test_a_process_without_room_for_a_file_says_so(ends):
    """What was handed over before is not taken for it."""
    one, other = ends
    memory = Memory()
    memory.of(100)[:] = 1
    one.send("first", memory)
    assert other.receive() == "first"
    memory.close()
    memory.of(100)[:] = 2
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(p.name) for p in Path("/proc/self/fd").iterdir()), hard))
    try:
        one.send("second", memory)
        taken = []
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        with pytest.raises(LineError, match=r"(?i)too many open files"):
            other.receive()
    finally:
        for file in taken:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        memory.close()


def test_who_has_hung_up_is_noticed(ends):
    one, other = ends
    other.close()
    with pytest.raises(LineError):
        one.receive()
    with pytest.raises(LineError):
        one.send("x" * 10**6)


class OddError(Exception):
    """An error that cannot be made again of what it carries, as many own ones."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


class Worker:
    """What `WorkerProcess` does with what comes, in a thread of this process."""

    def __init__(self):
        self.openings, self.ran = [], []

    def run(self, opening, clients, closes, memory):
        if opening is not None:
            model = opening.outline.read(torch.from_numpy(np.array(opening.memory)))["model"]
            self.openings.append((opening.work, model["w"].tolist(), model["b"].item(), opening.numbers))
        if 13 in clients:
            raise OddError(13, 14)
        if 99 in clients:
            raise SystemExit
        self.ran += clients
        sums = {"delta": {"w": torch.tensor([float(sum(self.ran))])}}
        return Packed.of(Outcome(nodes=[(1, 0, Partial(sums, {}, 1, 1))]), memory) if closes else None

    def answer(self, content, kind):
        return {"said": (content, kind)}


threads: list[threading.Thread] = []


class Threads:
    """Starts workers that are threads here."""

    def begin(self, handle, address, number):
        return handle.begin(address, number)

    def last_words(self, thread, has_hung_up):
        return "" if thread.is_alive() else "its thread has ended"


class Handle:
    """What stands for a worker; it takes as long to come as a test wants."""

    def __init__(self, after=0.0):
        self.worker, self._after = Worker(), after

    def begin(self, address, number):
        def come():
            time.sleep(self._after)
            with suppress(SystemExit):  # its process would end
                lines.serve(self.worker, address, number)

        thread = threading.Thread(target=come, daemon=True)
        threads.append(thread)
        thread.start()
        return thread


@pytest.fixture(autouse=True)
def no_thread_outlives_a_test():
    yield
    while threads:
        threads.pop().join()


@pytest.fixture
def door(no_thread_outlives_a_test):
    lines_ = Lines(Threads())
    yield lines_
    lines_.close()


def taken(door, given):
    while (done := door.wait([given], 20.0)) is None:  # somebody has come
        pass
    assert done is given
    return door.take(given)


@pytest.mark.parametrize(("after", "most_kept"), [(0.0, 1 << 20), (0.2, 1 << 20), (0.0, 0)])
def test_a_worker_runs_what_it_is_given_in_order(door, after, most_kept, monkeypatch):
    """Also what it is given before it has come, and when answers are so large that they lie on disk."""
    monkeypatch.setattr("umbel.simulations.engines.line._MOST_KEPT", most_kept)
    handle = Handle(after)
    door.open(handle)
    opening = door.lay(TASK)
    given = [door.give(handle, opening, (3,), False), door.give(handle, None, (5,), True)]
    assert taken(door, given[0]) is None
    outcome = taken(door, given[1])
    assert outcome.nodes[0][2].trees["delta"]["w"].tolist() == [8.0]
    assert handle.worker.openings == [(TASK.work, [0.0, 1.0, 2.0, 3.0, 4.0], 2, {"rate": 0.5})]
    assert taken(door, door.ask(handle, "answer", "hello", "query")) == {"said": ("hello", "query")}


def test_answers_do_not_change_when_the_next_comes(door):
    handle = Handle()
    door.open(handle)
    first = taken(door, door.give(handle, door.lay(TASK), (3,), True))
    second = taken(door, door.give(handle, door.lay(TASK), (5,), True))
    assert [each.nodes[0][2].trees["delta"]["w"].item() for each in (first, second)] == [3.0, 8.0]


def test_what_a_worker_raises_is_its_answer_and_it_goes_on(door):
    handle = Handle()
    door.open(handle)
    with pytest.raises(WorkerFailedError) as failed:
        taken(door, door.give(handle, door.lay(TASK), (13,), False))
    assert str(failed.value) == "OddError: 13 and 14"
    assert taken(door, door.give(handle, None, (3,), False)) is None


def test_a_worker_that_is_gone_has_died_with_all_that_it_was_given(door):
    handle, other = Handle(), Handle()
    door.open(handle)
    door.open(other)
    given = [door.give(handle, door.lay(TASK), (3,), False), door.give(handle, None, (99,), False)]
    given.append(door.give(handle, None, (5,), True))
    assert taken(door, given[0]) is None
    for each in given[1:]:
        with pytest.raises(WorkerDiedError):
            taken(door, each)
    door.forget(handle)
    assert taken(door, door.give(other, door.lay(TASK), (3,), True)).nodes


def test_one_that_never_comes_has_died_with_its_last_words(door):
    class Absent(Handle):
        def begin(self, address, number):
            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()
            return thread

    handle = Absent()
    door.open(handle)
    with pytest.raises(WorkerDiedError, match="its thread has ended"):
        taken(door, door.give(handle, door.lay(TASK), (3,), True))


def test_nobody_is_waited_for_longer_than_asked(door):
    handle = Handle(after=1.0)
    door.open(handle)
    assert door.wait([door.give(handle, door.lay(TASK), (3,), True)], 0.05) is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("is_there", [False, True])
def test_a_worker_that_comes_when_the_door_is_closed_leaves_nothing_open(tmp_path, is_there):
    """Neither a socket nor a file, whether the door's file is gone or is there without anybody behind it."""
    address = tmp_path / "driver"
    if is_there:
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(address))
    gc.collect()  # what other tests left is none of this one's
    num_files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.MonkeyPatch.context() as patch:
        unraisable = []
        patch.setattr("sys.unraisablehook", unraisable.append)
        lines.serve(Worker(), str(address), 0)
        gc.collect()
    assert not unraisable and len(list(Path("/proc/self/fd").iterdir())) == num_files


def test_who_has_come_is_known(door):
    """Waiting ends then, so that it can be given something."""
    quick, slow = Handle(), Handle(after=0.3)
    door.open(quick)
    door.open(slow)
    while not door.is_there(quick):
        assert door.wait([], 20.0) is None
    begin = time.monotonic()
    while not door.is_there(slow):
        assert door.wait([], 20.0) is None
    assert time.monotonic() - begin < 10.0
    door.forget(slow)


def test_a_worker_that_died_before_it_came_never_will(door):
    class Broken(Handle):
        def begin(self, address, number):
            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()
            return thread

    handle = Broken()
    door.open(handle)
    with pytest.raises(WorkerDiedError, match="its thread has ended"):
        door.is_there(handle)


def test_a_stranger_at_the_door_is_turned_away(door):
    handle = Handle()
    door.open(handle)
    stranger = Line(socket.socket(socket.AF_UNIX))
    stranger.socket.connect(door.address)
    stranger.send(12345)
    assert taken(door, door.give(handle, door.lay(TASK), (3,), True)).nodes
    with pytest.raises(LineError):
        stranger.receive()
    stranger.close()


def test_a_long_path_of_temporary_files_is_no_hindrance(tmp_path, monkeypatch):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    door, handle = Lines(Threads()), Handle()
    door.open(handle)
    assert taken(door, door.give(handle, door.lay(TASK), (3,), True)).nodes
    door.close()
    assert not list(deep.iterdir()) and not Path(door.address).exists()
