"""Workers on the driver's machine, reached over lines.

A call of Ray's passes through other processes, which waits where all cores are at work. A worker that is on the
driver's machine is called once, and goes on over a line of its own (`umbel.simulations.engines.line`), as do those that
this machine's own processes are.
"""

from __future__ import annotations

import os
import pickle
import selectors
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from umbel.core import leftovers
from umbel.core.flat import Outline
from umbel.core.records import reason
from umbel.core.wire.packed import Packed
from umbel.server.port import Task
from umbel.simulations.engines.line import Line, LineError, Memory
from umbel.simulations.engines.worker import Opening, WorkerProcess
from umbel.simulations.engines.workers import WorkerDiedError, WorkerFailedError

_LOOK_SECONDS = 0.5
_LONGEST_FOLDER = 60  # bytes: the path of a socket has 107 at most


def is_possible() -> bool:
    """Say whether this system has memory without a name."""
    return sys.platform == "linux" and hasattr(os, "memfd_create")


@dataclass(frozen=True)
class _Asked:
    """A method of the worker's to call, which is no part of a phase."""

    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _Failed:
    """What a worker raised, as a text: an error of anybody's may not survive the way."""

    reason: str


# The worker's end ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Said:
    """What a driver says.

    Attributes:
        opening: Bytes of the phase at the beginning of its memory: of the payload, and of what it is; None goes on.
        clients: Who runs.
        closes: See `WorkerProcess.run`.
    """

    opening: tuple[int, int] | None
    clients: tuple[int, ...]
    closes: bool


def serve(worker: WorkerProcess, address: str, number: int) -> None:
    """Run what a driver says over a line, until it hangs up.

    Args:
        worker: Runs it.
        address: The driver's socket.
        number: What it calls this worker.
    """
    with socket.socket(socket.AF_UNIX) as end:
        try:
            end.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return  # the driver has closed its door before this worker came
        line, memory = Line(end), Memory()
        try:
            line.send(number)
            while True:
                line.send(*_answered(worker, line, memory))
                memory.given_away()
        except LineError:
            pass  # the driver has hung up
        finally:
            memory.close()


def _answered(worker: WorkerProcess, line: Line, memory: Memory) -> tuple[Any, Memory | None]:
    """Do what the driver says next; return what to answer, with memory where there are tensors."""
    said = line.receive()
    try:
        if isinstance(said, _Asked):
            return getattr(worker, said.method)(*said.arguments), None
        packed = worker.run(_opening(line, said), said.clients, said.closes, memory.lay)
    except Exception as error:  # noqa: BLE001 - an answer, too
        return _Failed(reason(error)), None
    return (None, None) if packed is None else (packed, memory)  # whose memory says where it is


def _opening(line: Line, said: _Said) -> Opening | None:
    if said.opening is None:
        return None
    payload, described = said.opening
    memory = line.memory(payload + described)
    opening: Opening = pickle.loads(memory[payload:].tobytes())  # noqa: S301 - our own process
    opening.memory, opening.file = memory[:payload], line.file
    return opening


# The driver's end ---------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Given:
    """Something that a worker was given, and what came of it."""

    worker: Any
    is_done: bool = False
    answer: Any = None


@dataclass(eq=False)
class _Worker:
    """A worker as the driver sees it.

    Attributes:
        task: What serves the line, as its `Starter` calls it; it ends with the worker.
        line: The line, once the worker has come.
        waiting: What it is to be told when it comes.
        given: What it was given, in order.
        is_gone: It has hung up, or never come.
        last_words: What is said of its end.
    """

    task: Any
    line: Line | None = None
    waiting: list[_Said | _Asked] = field(default_factory=list)
    given: list[_Given] = field(default_factory=list)
    is_gone: bool = False
    last_words: str = ""


class Starter(Protocol):
    """Has workers come to the driver's door."""

    def begin(self, worker: Any, address: str, number: int) -> Any:
        """Have a worker come there under a number; return what stands for it while it serves."""

    def last_words(self, task: Any, has_hung_up: bool) -> str:
        """Return why what stands for a worker has ended; "" while it goes on, or where nobody knows.

        Args:
            task: What `begin` returned.
            has_hung_up: The worker had come, and is gone.
        """


class Lines:
    """The driver's ends of all lines.

    Args:
        starter: Has workers come.
    """

    def __init__(self, starter: Starter) -> None:
        self._starter = starter
        usual = tempfile.gettempdir()
        place = usual if len(os.fsencode(usual)) <= _LONGEST_FOLDER else "/tmp"  # noqa: S108 - mode 700, as any
        self._folder = tempfile.TemporaryDirectory(prefix=leftovers.prefix("lines"), dir=place)
        self.address = str(Path(self._folder.name) / "driver")
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(self.address)
        self._door.listen(1024)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._door, selectors.EVENT_READ)
        self._workers: dict[int, _Worker] = {}
        self._numbers: dict[Any, int] = {}
        self._memory = Memory()

    def open(self, worker: Any) -> None:
        """Have a worker come as soon as it is ready."""
        number = len(self._numbers)
        self._numbers[worker] = number
        self._workers[number] = _Worker(self._starter.begin(worker, self.address, number))

    def is_there(self, worker: Any) -> bool:
        """Say whether a worker has come."""
        there = self._workers[self._numbers[worker]]
        if there.line is None and (words := there.last_words or self._starter.last_words(there.task, False)):
            raise WorkerDiedError(words)
        return there.line is not None

    def forget(self, worker: Any) -> None:
        """Hang up."""
        self._hang_up(self._workers.pop(self._numbers[worker]))

    def close(self) -> None:
        """Hang up on all, so that they end."""
        for each in self._workers.values():
            self._hang_up(each)
        self._selector.close()
        self._door.close()
        self._memory.close()
        self._folder.cleanup()

    def _hang_up(self, worker: _Worker) -> None:
        worker.is_gone = True
        if worker.line is not None:
            self._selector.unregister(worker.line.socket)
            worker.line.hang_up()
            worker.line = None

    def lay(self, task: Task) -> tuple[int, int]:
        """Lay a phase out in memory, for all workers; return the bytes of its payload, and of what it is."""
        payload = task.payload
        outline = Outline.of(payload.trees)
        described = np.frombuffer(
            pickle.dumps(Opening(task.work, outline, dict(payload.numbers)), protocol=5), np.uint8
        )
        memory = self._memory.of(outline.num_bytes + len(described))
        outline.write(payload.trees, torch.from_numpy(memory[: outline.num_bytes]))
        memory[outline.num_bytes :] = described
        self._memory.look_away()
        return outline.num_bytes, len(described)

    def clear(self) -> None:
        """Let a phase go that is over: whoever had it has answered, or is never heard again."""
        self._memory.empty()

    def give(self, worker: Any, opening: tuple[int, int] | None, clients: tuple[int, ...], closes: bool) -> _Given:
        """Give a worker clients to run, after all that it was given before."""
        return self._given(worker, _Said(opening, clients, closes))

    def ask(self, worker: Any, method: str, *arguments: Any) -> _Given:
        """Call a method of a worker's, likewise."""
        return self._given(worker, _Asked(method, arguments))

    def _given(self, worker: Any, said: _Said | _Asked) -> _Given:
        there = self._workers[self._numbers[worker]]
        given = _Given(there)
        there.given.append(given)
        if there.line is None:
            there.waiting.append(said)
        else:
            self._say(there, said)
        return given

    def _say(self, worker: _Worker, said: _Said | _Asked) -> None:
        assert worker.line is not None
        with suppress(LineError):  # it is gone: what it answered before is heard first, and then that
            worker.line.send(said, self._memory)

    def wait(self, given: Sequence[_Given], seconds: float) -> _Given | None:
        """Return one of what was given that is done, or whose worker is gone; None when there is none in time.

        Also None as soon as a worker has come, which may be given something now.
        """
        deadline = time.monotonic() + seconds
        while True:
            for each in given:
                if each.is_done or each.worker.is_gone:
                    return each
            left = deadline - time.monotonic()
            for key, _ in self._selector.select(min(max(left, 0.0), _LOOK_SECONDS)):
                if key.fileobj is not self._door:
                    self._hear(key.data)
                elif self._welcome():
                    return None
            if left <= 0:
                return None
            for worker in {each.worker for each in given if each.worker.line is None}:
                worker.last_words = self._starter.last_words(worker.task, False)
                worker.is_gone = worker.is_gone or bool(worker.last_words)

    def take(self, given: _Given) -> Any:
        """Return what came of something that is done."""
        if not given.is_done:
            raise WorkerDiedError(given.worker.last_words or "it is gone")
        if isinstance(given.answer, _Failed):
            raise WorkerFailedError(given.answer.reason)
        return given.answer

    def _welcome(self) -> bool:
        """Take whoever is at the door; say whether it is a worker."""
        line = Line(self._door.accept()[0])
        try:
            worker = self._workers.get(line.receive())
        except LineError:
            worker = None
        if worker is None:
            line.close()
            return False
        worker.line = line
        self._selector.register(line.socket, selectors.EVENT_READ, worker)
        for said in worker.waiting:
            if worker.line is not None:
                self._say(worker, said)
        worker.waiting.clear()
        return True

    def _hear(self, worker: _Worker) -> None:
        if worker.line is None:  # it has hung up meanwhile
            return
        try:
            answer = worker.line.receive()
        except LineError:
            self._hang_up(worker)
            worker.last_words = self._starter.last_words(worker.task, True)
            return
        given = worker.given.pop(0)
        if isinstance(answer, Packed):
            line, is_file = worker.line, answer.memory
            memory = line.file_of_answer() if is_file else line.memory(answer.outline.num_bytes)
            answer = replace(answer, memory=memory).unpacked()
        given.is_done, given.answer = True, answer
