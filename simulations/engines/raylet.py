"""Ray's own process of this machine, without which its driver ends at the next call, without a word."""

from __future__ import annotations

import psutil

from umbel.server.errors import RunStoppedError
from umbel.simulations.engines.processes import alive, birth, descendants, terminate

_NAME = "raylet"
LOOK_SECONDS = 1.0


class Raylet:
    """The raylet that this process has started."""

    def __init__(self) -> None:
        pids = [child.pid for child in psutil.Process().children() if child.name() == _NAME]
        self._all = [(pid, birth(pid)) for pid in pids]
        self._rest = descendants(pids)

    def check(self) -> None:
        """Look whether it lives, and remember what it has started.

        Raises:
            RunStoppedError: It has ended.
        """
        if not self.is_alive():
            raise RunStoppedError(
                "Ray's process on this machine (raylet) has ended: somebody killed it, or the memory is full. Ask for "
                "fewer engine.workers if it was that."
            )
        self._rest = descendants(pid for pid, _ in self._all)

    def is_alive(self) -> bool:
        """Say whether it lives."""
        return all(alive(pid, born) for pid, born in self._all)

    def end_rest(self) -> None:
        """End what outlived it: workers and agents, which look for it seldom or never."""
        terminate(self._rest, patience_seconds=1.0)
