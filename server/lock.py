"""One process at a time works on a run: a second would write into the first one's checkpoints and memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from umbel.server.errors import RunStoppedError

if sys.platform != "win32":
    import fcntl

_FILE = "lock"
_LOOK_SECONDS = 0.1


@contextmanager
def exclusive(folder: Path, patience_seconds: float = 60.0) -> Iterator[None]:
    """Hold a run's folder; the system lets go of it when the process ends, in whatever way.

    Args:
        folder: The run's folder.
        patience_seconds: How long to wait for another process: one whose starter was killed takes a while to
            notice and to write its checkpoint.

    Raises:
        RunStoppedError: Another process still works on the run.
    """
    lock = FileLock(folder / _FILE)
    try:
        lock.acquire(timeout=patience_seconds, poll_interval=_LOOK_SECONDS)
    except Timeout:
        raise RunStoppedError(
            f"Another process is at work on {folder}. Wait for its end, or ask it to: umbel stop {folder}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_free(folder: Path) -> bool:
    """Say whether nobody works on a run: the quickest way to notice that its server has died."""
    with suppress(RunStoppedError), exclusive(folder, 0.0):
        return True
    return False


def is_held(folder: Path) -> bool:
    """Say whether somebody works on a run, for whoever only looks: nothing is written, and no lock file is made.

    The file is shared for a moment, so that several may look at once; where it may not be read, nobody is seen.
    """
    if sys.platform == "win32":
        return (folder / _FILE).is_file() and not is_free(folder)
    try:
        descriptor = os.open(folder / _FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system that knows no locks
        return False
    else:
        return False
    finally:
        os.close(descriptor)
