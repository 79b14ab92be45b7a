"""One process at a time works on a run: a second would write into the first one's checkpoints and memory."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from umbel.server.errors import RunStoppedError

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
    deadline = time.monotonic() + patience_seconds
    with (folder / _FILE).open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise RunStoppedError(
                        f"Another process is at work on {folder}. Wait for its end, or ask it to: umbel stop {folder}"
                    ) from None
            time.sleep(_LOOK_SECONDS)
        yield


def is_free(folder: Path) -> bool:
    """Say whether nobody works on a run: the quickest way to notice that its server has died."""
    with suppress(RunStoppedError), exclusive(folder, 0.0):
        return True
    return False
