"""A process that is kept going: started again when it ends, its output in a log that does not grow for ever.

One folder has one supervisor: it holds a lock, and says in a file which process it is.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

import umbel
from umbel.core.files import read_json, write_json
from umbel.core.refusal import Refusal
from umbel.simulations.engines.processes import alive, birth, end_with_parent, flower_environment, terminate

RUNNING = "running.json"
_LOCK = ".running.lock"
_SHORTEST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # between two starts of a process that ends again and again
_LASTED_SECONDS = 60.0  # a process that went on for so long begins with short waits again
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_TURN_SECONDS = 0.25
_SELDOM_SECONDS, _MOST_SAID = 60.0, 50
_ROOM = 20 << 20
_LONGEST_LINE = 1 << 16  # bytes that are kept together
_STOP_SECONDS = 90.0


@dataclass(frozen=True)
class Running:
    """What is written down of a supervisor.

    Attributes:
        pid: Its process.
        born: When that began.
        ready: Whether what it keeps going is up.
    """

    pid: int
    born: float
    ready: bool

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return alive(self.pid, self.born)


class Log:
    """A log of lines that is cut into files of a size.

    Args:
        path: The file that is written now.
        megabytes: How large it becomes.
        files: How many old ones are kept.
    """

    def __init__(self, path: Path, megabytes: int, files: int) -> None:
        self.path = path
        self._handler = RotatingFileHandler(
            path, maxBytes=megabytes << 20, backupCount=files, encoding="utf-8", delay=True
        )

    def write(self, line: str) -> None:
        """Write a line; where the disk is full it is lost, and the process goes on."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handler.handle(logging.makeLogRecord({"msg": line}))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


class Voice:
    """Says what goes on, to a person and to a log, with the time.

    Args:
        log: The log.
        prefix: What each line in the log begins with behind the time.
        room: Bytes that go to a person whose terminal is a file, which nobody cuts; the log has all of it.
    """

    def __init__(self, log: Log, prefix: str, room: int = _ROOM) -> None:
        self._log, self._prefix, self._room = log, prefix, room
        self._said: dict[str, float] = {}  # seldom, and when

    def __call__(self, text: str) -> None:
        """Say something."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        self._log.write(f"{now} {self._prefix} {text}")
        with suppress(OSError, ValueError):  # their terminal is gone
            if self._room <= 0 and stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode):
                return
            self._room -= len(text.encode()) + len(now)
            print(f"{now[11:]}  {text}", flush=True)

    def seldom(self, text: str) -> None:
        """Say what others bring about, who may do so without end: the same once in a minute, and not too much of it."""
        now = time.monotonic()
        self._said = {said: at for said, at in self._said.items() if now - at <= _SELDOM_SECONDS}
        if text in self._said or len(self._said) >= _MOST_SAID:
            return
        self._said[text] = now
        self(text if len(self._said) < _MOST_SAID else f"There is more of the kind, in {self._log.path.parent}.")

    def close(self) -> None:
        """Close the log."""
        self._log.close()


class Kept:
    """A process that is started again when it ends.

    Args:
        command: What to start; of Python, this project's.
        folder: Its current folder.
        environment: Variables beside those that Flower gets.
        log: Where its output goes.
        on_line: Told of each line of its output, in a thread of its own; a line that it answers False for is not kept.
    """

    def __init__(
        self,
        command: list[str],
        folder: Path,
        environment: Mapping[str, str],
        log: Log,
        on_line: Callable[[str], bool],
    ) -> None:
        self._command, self._folder, self._environment = command, folder, environment
        self._log, self._on_line = log, on_line
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._began = 0.0
        self._wait = _SHORTEST_WAIT
        self._again_at = 0.0

    @property
    def pid(self) -> int:
        """The process's number; 0 when there is none."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def start(self) -> None:
        """Start it."""
        environment = flower_environment(self._folder) | dict(self._environment)
        command = self._command
        if command[0] == sys.executable:
            environment["PYTHONPATH"] = str(Path(umbel.__file__).resolve().parent.parent)
        else:
            environment.pop("PYTHONPATH", None)
            command = [shutil.which(command[0], path=environment["PATH"]) or command[0], *command[1:]]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=self._folder,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        self._began = time.monotonic()
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            for line in iter(lambda: stream.readline(_LONGEST_LINE), b""):
                text = _COLOURS.sub("", line.decode("utf-8", "replace").rstrip())
                if self._on_line(text):
                    self._log.write(text)

    def look(self) -> int | None:
        """Return how it ended, once for each end, else None; start it again when it is time."""
        if self._process is None:
            if time.monotonic() >= self._again_at:
                self.start()
            return None
        status = self._process.poll()
        if status is None:
            return None
        self._read_rest()
        if time.monotonic() - self._began > _LASTED_SECONDS:
            self._wait = _SHORTEST_WAIT
        self._again_at = time.monotonic() + self._wait
        self._process, self._wait = None, min(2 * self._wait, _LONGEST_WAIT)
        return status

    @property
    def seconds_to_start(self) -> float:
        """How long until it is started again."""
        return max(0.0, self._again_at - time.monotonic())

    def end(self) -> None:
        """End it and what it started."""
        if self._process is not None:
            terminate([(self._process.pid, 0.0)], patience_seconds=8.0)
            self._process.wait()
            self._read_rest()
            self._process = None

    def _read_rest(self) -> None:
        """Wait for the end of its output, unless something that it started holds that open."""
        if self._reader is not None:
            self._reader.join(2.0)


@contextmanager
def supervisor(folder: Path, what: str) -> Iterator[Callable[[], bool]]:
    """Hold a folder, and yield what says whether to stop: upon SIGTERM, Ctrl-C or the end of the terminal.

    Raises:
        Refusal: Another supervisor holds it.
    """
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Refusal(
            f"{what} runs in {folder} already.", remedy=f"Stop it first: umbel federate down {folder}"
        ) from None
    stopped = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        write_json(folder / RUNNING, {"pid": os.getpid(), "born": birth(os.getpid()), "ready": False})
        yield lambda: stopped.wait(_TURN_SECONDS)
    finally:
        (folder / RUNNING).unlink(missing_ok=True)
        for number, handler in before.items():
            signal.signal(number, handler)
        lock.release()


def say_ready(folder: Path, ready: bool = True) -> None:
    """Note whether what a folder's supervisor keeps going is up."""
    write_json(folder / RUNNING, {"pid": os.getpid(), "born": birth(os.getpid()), "ready": ready})


def running(folder: Path) -> Running | None:
    """Return a folder's supervisor, or None when there is none."""
    try:
        entry = Running(**read_json(folder / RUNNING))
    except (OSError, ValueError, TypeError):
        return None
    return entry if entry.alive else None


def stop(folder: Path) -> bool:
    """Ask a folder's supervisor to stop and wait until it has; return whether there was one.

    Raises:
        TimeoutError: It has not, within a minute and a half.
    """
    entry = running(folder)
    if entry is None:
        return False
    os.kill(entry.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while entry.alive:
        if time.monotonic() > deadline:
            raise TimeoutError(f"Process {entry.pid} of {folder} does not end.")
        time.sleep(0.1)
    return True


def in_background(folder: Path, arguments: list[str], output: Path, patience_seconds: float = 90.0) -> bool:
    """Start a command of this project that goes on after this process; return whether it is ready.

    Args:
        folder: The folder that it supervises.
        arguments: What stands behind `umbel`.
        output: Where it prints.
        patience_seconds: How long to wait until it is ready.

    Raises:
        Refusal: Another one is there, or it has ended at once; what it printed is the reason.
    """
    if running(folder) is not None:
        raise Refusal(f"Something runs in {folder} already.", remedy=f"Stop it first: umbel federate down {folder}")
    output.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(Path(umbel.__file__).resolve().parent.parent)}
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "umbel.simulations.commands.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
            cwd=folder,
        )
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Refusal(output.read_text(encoding="utf-8", errors="replace").removeprefix("Error: ").strip())
        entry = running(folder)
        if entry is not None and entry.ready and entry.pid == process.pid:
            return True
        time.sleep(0.1)
    return False
