"""The memory of a tree of processes, seen from outside."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import psutil

LEAST_SECONDS = 0.5  # from one look at memory to the next
_MOST_SHARE = 0.02  # of one core that looking may take

Processes = Sequence[psutil.Process]


def tree(root: psutil.Process) -> list[psutil.Process]:
    """Return a process and all that come from it; none where it has ended."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory_bytes(processes: Processes) -> int:
    """Return the memory of all: what several map counts for each by its share, where the system tells (Linux)."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            used = process.memory_full_info()
            total += getattr(used, "pss", used.uss)
    return total


class Memory:
    """Looks at the memory of a tree of processes now and then.

    Args:
        root: The first process.
    """

    def __init__(self, root: psutil.Process) -> None:
        self._root = root
        self._next = time.monotonic()
        self.peak_bytes = 0

    @property
    def due(self) -> float:
        """Seconds to the next look."""
        return max(self._next - time.monotonic(), 0.0)

    def look(self) -> int:
        """Look, and return the sum."""
        start = time.monotonic()
        total = memory_bytes(tree(self._root))
        took = time.monotonic() - start
        self._next = start + max(LEAST_SECONDS, took / _MOST_SHARE)
        self.peak_bytes = max(self.peak_bytes, total)
        return total


def end(processes: Processes, patience_seconds: float = 10.0) -> None:
    """Wait until processes have ended, and end those that have not."""
    _, alive = psutil.wait_procs(list(processes), timeout=patience_seconds)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=patience_seconds)
