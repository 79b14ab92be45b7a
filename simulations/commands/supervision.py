"""Running under supervision: signals, errors, exit codes. Nothing heavy is imported before a command runs.

Exit statuses, the same on every engine: 0 done; 1 failed, by something that nobody foresaw; 2 refused before anything
started; 3 incomplete, the run could not go on and is saved, or lost clients for good; 130 stopped on request.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec

import click

from umbel.core.names import shown
from umbel.core.refusal import REFUSALS

if TYPE_CHECKING:
    from umbel.simulations.api import RunResult
    from umbel.simulations.commands.watcher import Watcher

FAILED, REFUSED, INCOMPLETE, STOPPED = 1, 2, 3, 130
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NO_PATH = {errno.ENAMETOOLONG, errno.ELOOP}  # what was written can be no path
_HINTS = {
    errno.ENOSPC: " Free some space, or set run.results to another disk.",
    errno.ENAMETOOLONG: " Shorten it.",
}
_AGAIN_SECONDS = 0.05  # after which a signal comes again that Python swallowed
_LONGEST_SHOWN = 300  # letters of a path
_P = ParamSpec("_P")


def say(text: str = "") -> None:
    """Print a line for a person, on standard error; where their terminal is gone, nobody reads it."""
    with suppress(OSError):
        click.echo(text, err=True)


def fail(error: BaseException | str, code: int) -> NoReturn:
    """Print `Error: ...` on standard error and leave."""
    say(f"Error: {error}")
    leave(code)


def leave(code: int) -> NoReturn:
    """End with a status, also where nobody takes what was printed any more: Python would make it 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):  # what waits to be written goes nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def ended(result: RunResult) -> None:
    """Leave when a run that has ended lost clients for good: its model is there, and lacks what they would have given.

    Args:
        result: The run.
    """
    if text := result.lost:
        say(f"Incomplete: {text}")
        if not result.summary["ended"]:
            rounds = 2 * int(result.summary["rounds"])
            say(f"Once they are back, more rounds take them in: umbel resume {result.path} run.rounds={rounds}")
        leave(INCOMPLETE)


class Stopper:
    """Turns Ctrl-C, SIGTERM and the end of the terminal (SIGHUP) into one orderly stop.

    The first signal raises `KeyboardInterrupt`, upon which the round loop writes its checkpoint. While it
    does, the second is only answered, so that nothing is written by halves; the third ends the process
    (checkpoints are renamed into place whole, so that even then the one before is good). After the last round
    a signal is too late to be of use and the run is left to finish.

    Where Python itself swallows what a signal raises (in what runs around a fork, or when something is deleted), it
    comes again.
    """

    def __init__(self) -> None:
        self.watcher: Watcher | None = None
        self._signals = 0
        self._before: dict[int, Any] = {}
        self._swallowed = sys.unraisablehook
        self._again: threading.Timer | None = None

    def __enter__(self) -> Stopper:
        for number in STOPS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: the run is to outlive its terminal
            with suppress(ValueError):  # not the main thread: whoever called us has the signals
                self._before[number] = signal.signal(number, self._on_signal)
        self._swallowed, sys.unraisablehook = sys.unraisablehook, self._on_swallowed
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._swallowed
        if self._again is not None:
            self._again.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_swallowed(self, what: sys.UnraisableHookArgs) -> None:
        if what.exc_type is KeyboardInterrupt and self._signals == 1 and signal.SIGINT in self._before:
            self._signals = 0
            self._again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGINT))
            self._again.daemon = True
            self._again.start()
        else:
            self._swallowed(what)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 2:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self._signals == 2:
            say("\nSaving what is there; a third signal ends the process at once.")
            return
        if self.watcher is not None and self.watcher.complete:
            say("\nThe last round is done; writing the results.")
            return
        raise KeyboardInterrupt


def guarded(command: Callable[_P, None]) -> Callable[_P, None]:
    """Make known errors of a command one message and the exit code that fits."""

    @functools.wraps(command)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            say("Stopped.")
            leave(STOPPED)
        except REFUSALS as error:
            fail(_message(error), REFUSED)
        except OSError as error:
            fail(_message(error), REFUSED if error.errno in _NO_PATH else FAILED)
        except ImportError as error:
            fail(f"{error}. Install the project with all its dependencies: pip install -e .", FAILED)

    return wrapper


@contextmanager
def supervised(watcher: Watcher, stopper: Stopper, again: str = "") -> Iterator[None]:
    """Run what is inside; answer errors and signals with a message and an exit code.

    Args:
        watcher: Knows the run's folder, how far it has come, and after a stop where what has ended is told of.
        stopper: Its signals are ours from here.
        again: How to go on; empty is `umbel resume` with the run's folder.
    """
    from umbel.server.errors import DivergedError, RunStoppedError, StopRequested

    stopper.watcher = watcher
    try:
        yield
    except (KeyboardInterrupt, StopRequested):
        _close(watcher)
        say(_stopped(watcher, again))
        if watcher.page is not None:
            say(f"What has ended so far: {watcher.page}")
        leave(STOPPED)
    except DivergedError as error:  # to go on would come to the same
        _close(watcher)
        fail(error, INCOMPLETE)
    except RunStoppedError as error:
        _close(watcher)
        fail(f"{error}\n{_stopped(watcher, again)}", INCOMPLETE)
    except REFUSALS as error:
        _close(watcher)
        if watcher.started:
            _failed(error, watcher, again)
        fail(_message(error), REFUSED)
    except Exception as error:  # noqa: BLE001 - whatever it is, say how to go on
        _close(watcher)
        if isinstance(error, OSError) and error.errno in _NO_PATH and not watcher.started:
            fail(_message(error), REFUSED)
        _failed(error, watcher, again)
    finally:
        _close(watcher)


def _close(watcher: Watcher) -> None:
    with suppress(OSError):  # the terminal is gone, and with it whoever looked at it
        watcher.close()


def _failed(error: Exception, watcher: Watcher, again: str) -> NoReturn:
    from umbel.server.errors import RunFailedError

    if not isinstance(error, OSError | RunFailedError):
        traceback.print_exception(error)
    if isinstance(error, RunFailedError) and error.trace:
        say(error.trace)
    fail(f"{_message(error)}\n{_stopped(watcher, again)}", FAILED)


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {shown(error.filename)[:_LONGEST_SHOWN]}" if error.filename else ""
        hint = _HINTS.get(error.errno, "")
        return f"{error.strerror}{where}.{hint}"
    return str(error) or type(error).__name__


def _stopped(watcher: Watcher, again: str) -> str:
    """Return the line that says how to go on; a run that has not begun leaves no folder to go on with."""
    from umbel.server.checkpoint import last_round

    if watcher.at_once > 1 and watcher.started:
        return f"Stopped; every run that was under way is saved as far as it came. Go on with: {again}"
    if watcher.folder is None or not (folder := Path(watcher.folder)).is_dir():
        return f"Stopped before anything began. Go on with: {again}" if again else "Stopped before anything began."
    round_ = last_round(folder / "checkpoints")
    (folder / "stop").unlink(missing_ok=True)
    after = f"after round {round_}" if round_ else "before the first checkpoint; it begins again"
    return f"Stopped {after}. Go on with: {again or f'umbel resume {folder}'}"
