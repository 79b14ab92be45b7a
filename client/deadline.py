"""A client's turn: it ends when its time is up, what the client raises is its own failure, and no Ctrl-C is lost.

One process runs many clients, whose code is anybody's. It may raise what ends a process (`SystemExit`), pretend to be a
Ctrl-C, swallow a real one, or never end. A timer interrupts what the interpreter can interrupt; a call that never comes
back from C ends with its process only.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # of `signal`, without enumerations: a tenth of the time
import ctypes
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Generic, TypeVar

from umbel.core.records import reason

T = TypeVar("T")
_REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # how a person, a scheduler, a terminal asks a run to stop
_AGAIN_SECONDS = 1.0  # after which a client that went on all the same is interrupted again
_PATIENCE = 5  # interruptions after which somebody is told
_IMPORT_SECONDS = 60  # how long a module may take to import when the time is up already
log = logging.getLogger("umbel.client")


class TimeIsUpError(BaseException):
    """A client's time is up; no `except Exception` of its own stands in the way."""


class _Clock:
    """Interrupts the thread that started it.

    Args:
        seconds: When.
        whose: Whose time it is, for a message.
    """

    def __init__(self, seconds: float, whose: str) -> None:
        self._seconds = seconds
        self._whose = whose
        self._running = False
        self._num_waits = 0
        self.num_interruptions = 0

    @property
    def text(self) -> str:
        return f"it took longer than {self._seconds:g} s (engine.client_seconds)"

    def start(self) -> None:
        self._running = True

    def stop(self) -> None:
        self._running = False

    def interrupts(self, frame: FrameType | None) -> bool:
        """Say whether it is time to interrupt; count it, and tell somebody when one after the other is in vain.

        A module that is half imported would stay so for all that come after, so imports are waited for.
        """
        if _imports(frame) and self._num_waits * _AGAIN_SECONDS < _IMPORT_SECONDS:
            self._num_waits += 1
            return False
        self.num_interruptions += 1
        if self.num_interruptions == _PATIENCE:
            log.warning("%s goes on although its time is up: %s. Stop the run, or wait.", self._whose, self.text)
        return True


def _imports(frame: FrameType | None) -> bool:
    """Say whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


class _Timer(_Clock):
    """In the main thread, by a signal, which wakes sleepers and those who wait for a lock.

    While it runs, requests to stop are noted on their way to whoever handles them.
    """

    def __init__(self, seconds: float, whose: str) -> None:
        super().__init__(seconds, whose)
        self.request: BaseException | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._outer = (0.0, 0.0)  # a timer that somebody had set before, and goes on

    def start(self) -> None:
        super().start()
        for number in _REQUESTS:
            handler = _signal.getsignal(number)
            if callable(handler):
                self._before[number] = handler
                _signal.signal(number, partial(self._note, handler))
        self._before[signal.SIGALRM] = _signal.signal(signal.SIGALRM, self._alarm)
        self._began = time.monotonic()
        self._outer = signal.setitimer(signal.ITIMER_REAL, self._seconds, _AGAIN_SECONDS)
        if 0 < self._outer[0] < self._seconds:
            signal.setitimer(signal.ITIMER_REAL, self._outer[0], _AGAIN_SECONDS)

    def stop(self) -> None:
        super().stop()
        if not self._before:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in list(self._before):
            _signal.signal(number, self._before.pop(number))
        if self._outer[0]:
            left = self._outer[0] - (time.monotonic() - self._began)
            signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3), self._outer[1])

    def _note(self, handler: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            self.request = error
            raise

    def _alarm(self, number: int, frame: FrameType | None) -> None:
        if not self._running:
            return
        outer = self._before.get(signal.SIGALRM)
        if time.monotonic() - self._began < self._seconds - 1e-3:  # it is the other timer's time
            signal.setitimer(signal.ITIMER_REAL, max(self._began + self._seconds - time.monotonic(), 1e-3), 1.0)
            self._outer = (0.0, 0.0)
            if callable(outer):
                outer(number, frame)
            return
        if self.interrupts(frame):
            raise TimeIsUpError(self.text)


class _Thread(_Clock):
    """In any other thread, by another one, which cannot wake a sleeper."""

    request: BaseException | None = None

    def start(self) -> None:
        super().start()
        self._lock = threading.Lock()
        self._target = ctypes.c_ulong(threading.get_ident())
        self._timer = threading.Timer(self._seconds, self._fire)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        with self._lock:
            super().stop()
            self._timer.cancel()
            if self.num_interruptions:  # what was sent and has not come yet
                ctypes.pythonapi.PyThreadState_SetAsyncExc(self._target, None)

    def _fire(self) -> None:
        with self._lock:
            if not self._running:
                return
            if self.interrupts(sys._current_frames().get(self._target.value)):
                ctypes.pythonapi.PyThreadState_SetAsyncExc(self._target, ctypes.py_object(TimeIsUpError))
            self._timer = threading.Timer(_AGAIN_SECONDS, self._fire)
            self._timer.daemon = True
            self._timer.start()


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """What came of something that a client did.

    Attributes:
        made: What it returned; None where it failed.
        failure: Why there is nothing; "" where there is.
        in_time: Whether it was left alone; else anything of its may be half done.
    """

    made: T | None
    failure: str
    in_time: bool = True

    def without(self) -> Attempt[Any]:
        """Return the same failure, of whatever was to be made of it."""
        return Attempt(None, self.failure, self.in_time)


def attempt(act: Callable[[], T], seconds: float, whose: str) -> Attempt[T]:
    """Do something of a client's.

    Args:
        act: What.
        seconds: How long it may take.
        whose: Whose it is, for a message.

    Raises:
        KeyboardInterrupt: Somebody asked this process to stop meanwhile, whatever `act` made of it.
    """
    in_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    clock: _Timer | _Thread = (_Timer if in_main else _Thread)(seconds, whose)
    made: T | None = None
    failure = ""
    try:
        try:
            clock.start()
            try:
                made = act()
            except BaseException as error:  # noqa: BLE001 - a client may fail in any way; the federation must not
                failure = reason(error)
        finally:
            clock.stop()
    except BaseException as error:  # it came while the reason was read, or the clock stopped
        clock.stop()
        if clock.request is None and not isinstance(error, TimeIsUpError):
            raise
    if clock.request is not None:
        raise clock.request
    if clock.num_interruptions:
        return Attempt(None, clock.text, in_time=False)
    return Attempt(None, failure) if failure else Attempt(made, "")
