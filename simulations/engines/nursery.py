"""A process that starts workers as copies of itself, which share with it whatever none of them changes.

Where that is safe, it is a copy of the driver, so that libraries and data are in memory once, and it makes the worker
before it copies it. It is not safe where torch computes on several threads, which a copy does not have, or on a GPU:
then it is a process that begins anew, and each worker makes model and device itself.

Whatever ends the driver ends it, and with it all workers.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from umbel.client.node import parent
from umbel.core.records import reason
from umbel.server.errors import RunStoppedError
from umbel.simulations.engines.line import Line, LineError
from umbel.simulations.engines.lines import serve
from umbel.simulations.engines.worker import WorkerProcess

_PATIENCE_SECONDS = 5.0
_MOMENT = 0.5  # in which a process that has hung up has ended
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class _Begin:
    """Start a worker.

    Attributes:
        number: Its number.
        address: The driver's door.
        environment: Variables that it has beside the driver's.
    """

    number: int
    address: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class _LastWords:
    """Say why a worker has ended; wait so many seconds for it."""

    number: int
    seconds: float


@dataclass(frozen=True)
class _End:
    """End a worker."""

    number: int


@dataclass(frozen=True)
class _Failed:
    """It could not be done."""

    reason: str


class Nursery:
    """The driver's end.

    Args:
        arguments: Of `umbel.simulations.engines.worker.WorkerProcess`.
        copies: It may be a copy of this process.
        seconds: How long it may take to answer.

    Raises:
        RunStoppedError: The system has no room for it.
    """

    def __init__(self, arguments: tuple[Any, ...], copies: bool, seconds: float = _PATIENCE_SECONDS) -> None:
        mine, other = socket.socketpair(socket.AF_UNIX)
        self._line = Line(mine)
        try:
            with other:
                self._process = _Copy(mine, other, arguments) if copies else _Anew(other)
        except OSError as error:
            self._line.close()
            raise RunStoppedError(f"No worker can be started: {reason(error)}") from error
        mine.settimeout(seconds)
        if not copies:
            self._say(arguments)

    def begin(self, number: int, address: str, environment: Mapping[str, str]) -> None:
        """Start a worker.

        Args:
            number: What it is called.
            address: The driver's door, to which it comes.
            environment: Variables that it has beside this process's.

        Raises:
            RunStoppedError: The system has no room for it.
        """
        answer = self._ask(_Begin(number, address, environment))
        if isinstance(answer, _Failed):
            raise RunStoppedError(f"No worker can be started: {answer.reason}")

    def last_words(self, number: int, has_hung_up: bool) -> str:
        """Return why a worker has ended; "" while it goes on."""
        return str(self._ask(_LastWords(number, _MOMENT if has_hung_up else 0.0)))

    def end(self, number: int) -> None:
        """End a worker, whatever it is doing."""
        self._ask(_End(number))

    def check(self) -> None:
        """Look whether it lives.

        Raises:
            RunStoppedError: It has ended.
        """
        if self._process.has_ended():
            raise RunStoppedError(
                f"The process that starts the workers has ended: {self._process.last_words}. Ask for fewer "
                "engine.workers if memory is full."
            )

    def close(self) -> None:
        """End it and all workers."""
        self._line.hang_up()
        self._process.end(_PATIENCE_SECONDS)

    def _ask(self, what: Any) -> Any:
        self._say(what)
        try:
            return self._line.receive()
        except LineError as error:
            raise self._gone() from error

    def _say(self, what: Any) -> None:
        try:
            self._line.send(what)
        except LineError as error:
            raise self._gone() from error

    def _gone(self) -> RunStoppedError:
        self._process.has_ended(_MOMENT)
        self.check()
        return RunStoppedError("The process that starts the workers does not answer.")


class _Copy:
    """A copy of this process."""

    def __init__(self, mine: socket.socket, other: socket.socket, arguments: tuple[Any, ...]) -> None:
        self.pid = _forked(lambda: _in_copy(mine, other, arguments))
        self.last_words = ""

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Say whether it has, or does in so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.last_words:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.last_words = _in_words(status) if pid else ""
            except ChildProcessError:  # somebody else has waited for it
                self.last_words = "nobody knows why"
            if self.last_words or time.monotonic() >= deadline:
                break
            time.sleep(0.005)
        return bool(self.last_words)

    def end(self, seconds: float) -> None:
        """Wait until it has ended, and then end it."""
        if not self.has_ended(seconds):
            os.kill(self.pid, signal.SIGKILL)
            self.has_ended(seconds)


class _Anew:
    """A process that begins anew."""

    def __init__(self, other: socket.socket) -> None:
        path = os.pathsep.join(each for each in sys.path if each)  # as here: a `data` of the current folder is not ours
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "umbel.simulations.engines.nursery", str(other.fileno())],
            pass_fds=[other.fileno()],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def last_words(self) -> str:
        """Why it has ended."""
        code = self._process.poll()
        return "" if code is None else _in_words_of_code(code)

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Say whether it has, or does in so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds) if seconds else None
        return self._process.poll() is not None

    def end(self, seconds: float) -> None:
        """Wait until it has ended, and then end it."""
        if not self.has_ended(seconds):
            self._process.kill()
            self._process.wait()


# The nursery's own end ------------------------------------------------------------------------------------------


def _forked(work: Callable[[], None]) -> int:
    """Start a copy of this process that does some work and ends; return its number.

    Raises:
        OSError: The system has no room for it.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # nobody listens any more
            stream.flush()
    mine = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a copy has no thread but this one, and needs none
            pid = os.fork()
        if pid:
            return pid
    finally:
        if os.getpid() == mine:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        _settle_down(mine)
        work()
    except BaseException:  # noqa: BLE001 - nothing of the other process's goes on here
        os._exit(1)
    os._exit(0)


def _settle_down(mine: int) -> None:
    """Let a copy be itself alone: it answers no signal for the driver, writes nowhere and ends with its parent."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    parent.end_with_parent()
    if os.getppid() != mine:  # it ended meanwhile
        os._exit(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for file in (0, 1, 2):
        os.dup2(nowhere, file)
    os.close(nowhere)


def _in_copy(mine: socket.socket, other: socket.socket, arguments: tuple[Any, ...]) -> None:
    from umbel.client.process import process

    mine.close()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is said to all of a group is for the driver to answer
    process.forget()  # of a run before, in the driver
    worker = WorkerProcess(*arguments)
    worker.ready()
    _nurse(Line(other), lambda: worker)


def _nurse(line: Line, make: Callable[[], WorkerProcess]) -> None:
    """Do what the driver says, until it hangs up.

    Args:
        line: To the driver.
        make: Returns a worker, in the process that is to be one.
    """
    children: dict[int, int] = {}  # by their numbers
    ended: dict[int, str] = {}

    def wait(number: int, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        while number in children:
            pid, status = os.waitpid(children[number], os.WNOHANG)
            if pid:
                del children[number]
                ended[number] = _in_words(status)
            elif time.monotonic() >= deadline:
                break
            else:
                time.sleep(0.002)
        return ended.get(number, "")

    def end(number: int) -> None:
        if number in children:  # nobody has waited for it, so that the number is its own
            os.kill(children[number], signal.SIGKILL)
            wait(number, _PATIENCE_SECONDS)

    def begin(asked: _Begin) -> _Failed | None:
        try:
            children[asked.number] = _forked(lambda: _work(line, make, asked))
        except OSError as error:
            return _Failed(reason(error))
        return None

    try:
        while True:
            said, answer = line.receive(), None  # type: tuple[Any, Any]
            if isinstance(said, _LastWords):
                answer = wait(said.number, said.seconds)
            elif isinstance(said, _End):
                end(said.number)
            else:
                answer = begin(said)
            line.send(answer)
    except LineError:
        pass  # the driver has hung up
    finally:
        for number in list(children):
            end(number)


def _work(line: Line, make: Callable[[], WorkerProcess], asked: _Begin) -> None:
    line.close()  # its own end alone
    os.environ.update(asked.environment)
    serve(make(), asked.address, asked.number)  # also one that cannot start, and says why


def _in_words(status: int) -> str:
    """Return what a process's end was, by what `waitpid` says of it."""
    return _in_words_of_code(os.waitstatus_to_exitcode(status))


def _in_words_of_code(code: int) -> str:
    """Likewise, by its status, or the negative number of the signal that has ended it."""
    if code == -signal.SIGKILL:
        return "it was killed (SIGKILL): by somebody, or by the system where memory is full"
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}"
    return f"it ended with status {code}" if code else "it has hung up"


def main() -> NoReturn:
    """Be a nursery that begins anew; its line is the file whose number is the argument."""
    before = os.getppid()
    parent.end_with_parent()
    for number in _SIGNALS:  # for the driver to answer
        signal.signal(number, signal.SIG_IGN)
    line = Line(socket.socket(fileno=int(sys.argv[1])))
    if os.getppid() == before:
        from umbel.client import lending, process, share  # noqa: F401 - here, once for all workers

        with contextlib.suppress(LineError):  # the driver has ended
            arguments = line.receive()
            gc.collect()
            gc.freeze()
            _nurse(line, lambda: WorkerProcess(*arguments))
    os._exit(0)


if __name__ == "__main__":
    from umbel.simulations.engines import nursery  # what comes over the line is of its classes, not of this script's

    nursery.main()
