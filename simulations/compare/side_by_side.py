"""Several runs at once, each in a process of its own that tells this one how it goes.

A process takes one run after the other, so that Python and torch are loaded once for each place and not for each run.
It ends with this process, also when that is killed: politely, so that its run is saved. What a run prints goes to a log
beside its folder. A run whose process was killed has failed; the same command goes on with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from umbel.conf.load import as_yaml
from umbel.server.errors import RunFailedError, RunStoppedError, raise_again
from umbel.server.listener import Both, Listener, replay
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare.at_once import Course, Job, Runs
from umbel.simulations.compare.run_member import look, prepare

LOGS = "logs"  # the folder of what runs printed, beside theirs
OVER = "over"  # the event that ends a run
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); "
    "from umbel.simulations.compare.worker import main; main()"
)
_LOOK_SECONDS = 0.5
_END_SECONDS = 5.0  # for a process that is at no run, or says no more, to end
_CHUNK = 1 << 16


class ElsewhereError(RunFailedError):
    """Something ended a run in its process that this one has no error for."""

    def __init__(self, text: str, trace: str = "") -> None:
        super().__init__(text)
        self.trace = trace


class SideBySide(Runs):
    """Carries out several runs at once.

    Args:
        at_once: How many.
        listener: Told of everything that happens; its `beside` gives who is told of each run.
        keep: What other code has made is used again.
    """

    def __init__(self, at_once: int, listener: Watcher, keep: bool = False) -> None:
        super().__init__(listener, keep)
        self._at_once = at_once
        self._workers: list[_Worker] = []
        self._over: list[tuple[Job, Exception | None]] = []
        self._selector = selectors.DefaultSelector()
        self._is_stopping = False
        listener.at_once = at_once

    @property
    def _busy(self) -> list[_Worker]:
        return [each for each in self._workers if each.job is not None]

    def go(self, jobs: Sequence[Job], course: Course) -> None:
        waiting = list(jobs)
        while waiting or self._busy or self._over:
            while len(self._busy) < self._at_once:
                if (job := next(filter(course.is_ready, waiting), None)) is None:
                    break
                waiting.remove(job)
                course.begins(job)
                self._start(job)
            course.meanwhile()
            while not self._over:
                self._look()
            over, self._over = self._over, []
            for job, error in over:
                course.ended(job, error)

    def __exit__(self, *_: object) -> None:
        """Stop what is under way, wait until it is saved, however long that takes, and end the processes."""
        self._is_stopping = True
        try:
            for worker in self._busy:
                worker.process.terminate()
            while self._busy:  # a further signal ends this
                self._look()
        finally:
            if names := ", ".join(each.job.member.path.name for each in self._workers if each.job is not None):
                with contextlib.suppress(OSError):  # whom that was said to is gone
                    self._listener.notice(f"Ended before they had saved; their last checkpoints are kept: {names}.")
            for worker in self._workers:
                worker.end(_END_SECONDS if worker.job is None else 0.0)
            self._selector.close()

    def _start(self, job: Job) -> None:
        """Begin a run, or use it where it is there already."""
        try:
            member = job.budgeted()
            how, names = look(member, self._keep)
            label, seed = member.item.label, member.seed
            told: Watcher = self._listener
            if how == "reused":
                told.member(job.index, job.total, label, seed, how)
            else:
                told = told.beside(job.index, job.total, label, seed, how, job.setting)
            prepare(member, how, names, told)
            if how == "reused":
                self._over.append((job, None))
                return
            _log(job).parent.mkdir(parents=True, exist_ok=True)
            worker = next((each for each in self._workers if each.job is None), None) or self._hire(_log(job))
            order = {
                "do": "resume" if how == "resumed" else "run",
                "folder": str(member.path),
                "log": str(_log(job)),
                "experiment": as_yaml(member.experiment),
            }
            worker.take(job, told, order)
        except Exception as error:  # noqa: BLE001 - it is this run's, and the course knows what it means
            self._over.append((job, error))

    def _hire(self, log: Path) -> _Worker:
        worker = _Worker(log)
        self._workers.append(worker)
        self._selector.register(worker.said, selectors.EVENT_READ, worker)
        return worker

    def _look(self) -> None:
        """Hear what runs say, for as long as nobody says anything half a second."""
        # What a process started may outlive it, and hold its line open. It has said all before it ended.
        ended = [each for each in self._workers if each.process.poll() is not None]
        heard = self._selector.select(_LOOK_SECONDS)
        for key, _ in heard:
            worker: _Worker = key.data
            lines, is_open = worker.lines()
            for line in lines:
                self._hear(worker, line)
            if not is_open:
                self._gone(worker)
        speaking = [key.data for key, _ in heard]
        for worker in ended:
            if worker not in speaking:
                self._gone(worker)

    def _hear(self, worker: _Worker, line: str) -> None:
        try:
            entry = json.loads(line)
        except ValueError:  # half a line, in the middle of which the run was told to stop
            return
        if entry["event"] == OVER:
            self._over_with(worker, _error(entry["end"]))
        elif worker.job is not None and not self._is_stopping:
            self._listener.started |= entry["event"] == "phase"
            replay(line, worker.job.member.experiment, worker.told)

    def _over_with(self, worker: _Worker, error: Exception | None) -> None:
        job, worker.job = worker.job, None
        if job is not None:
            worker.close()
            _tidy(_log(job))
            self._over.append((job, error))

    def _gone(self, worker: _Worker) -> None:
        """A process has ended; the run that it was at has failed."""
        self._selector.unregister(worker.said)
        self._workers.remove(worker)
        worker.end(_END_SECONDS)  # it says no more, and may still be about to end by itself
        if worker.job is not None:
            self._over_with(worker, _death(worker.process.returncode, _log(worker.job)))


class _Worker:
    """A process that carries out one run after the other.

    Args:
        log: Where what it prints goes before its first run has begun.
    """

    def __init__(self, log: Path) -> None:
        self.job: Job | None = None
        self.told: Listener = Listener()
        self._row: Watcher | None = None
        self._rest = b""
        self.said, theirs = os.pipe()
        try:
            with log.open("wb") as output:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM, str(os.getpid()), str(theirs)],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs,),
                    start_new_session=True,  # Ctrl-C is for this process, which stops the others
                )
        finally:
            os.close(theirs)
        self._put([str(each) for each in sys.path])

    def take(self, job: Job, row: Watcher, order: dict[str, str]) -> None:
        """Let the process carry out a run.

        Args:
            job: The run.
            row: Told of it.
            order: What the process is told.
        """
        self.job, self._row = job, row
        self.told = row if job.beside is None else Both(row, job.beside)
        Path(order["log"]).touch()  # so that its folder stays, whatever else in it is tidied up
        self._put(order)

    def lines(self) -> tuple[list[str], bool]:
        """Return what the process has said, line by line, and whether it may say more."""
        chunk = os.read(self.said, _CHUNK)
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        return [each.decode() for each in whole], bool(chunk)

    def close(self) -> None:
        """Tell whoever was told of the run that no more will come."""
        if self._row is not None:
            self._row.close()

    def end(self, patience: float) -> None:
        """End the process: it has nothing more to do.

        Args:
            patience: Seconds for it to end by itself. What it started goes with it where it does not, or was at a run.
        """
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        is_over = False
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
            is_over = True
        if not is_over or self.job is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody of its session is left
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self.said)

    def _put(self, content: object) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has died, which is seen when it is listened to
                self.process.stdin.write(json.dumps(content).encode() + b"\n")
                self.process.stdin.flush()


def _log(job: Job) -> Path:
    return job.member.path.parent / LOGS / f"{job.member.path.name}.log"


def _tidy(log: Path) -> None:
    """Remove a log in which nothing stands."""
    with contextlib.suppress(OSError):
        if not log.stat().st_size:
            log.unlink()
            log.parent.rmdir()  # where it was the last


def _error(end: dict[str, Any] | None) -> Exception | None:
    """Return what ended a run, from how its process told it."""
    if end is None:
        return None
    if end.get("errno") is not None:
        return OSError(end["errno"], end["strerror"], end["filename"])
    if end["how"] == "failed":
        return ElsewhereError(end["text"], end["trace"])
    try:
        raise_again(end)
    except Exception as error:  # noqa: BLE001 - it is what the run ended with
        return error


def _death(status: int | None, log: Path) -> Exception:
    """Return what it means for a run that its process ended by itself, or was killed."""
    if status is not None and -status in (signal.SIGKILL, signal.SIGTERM):
        return RunStoppedError(
            f"its process was killed ({signal.Signals(-status).name}), and what it had saved is kept. Where memory was "
            "short, fewer runs at once take less."
        )
    how = f"ended with status {status}" if status is None or status >= 0 else f"died of signal {-status}"
    printed = f"; what it printed: {log}" if log.is_file() and log.stat().st_size else ""
    return ElsewhereError(f"its process {how}{printed}.")
