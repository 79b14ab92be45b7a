"""Ray's own process of this machine, without which its driver ends at the next call, without a word."""

from __future__ import annotations

import os
import tempfile

import psutil

from umbel.core.refusal import Refusal
from umbel.server.errors import RunStoppedError
from umbel.simulations.engines.processes import alive, birth, descendants, terminate

_NAME = "raylet"
LOOK_SECONDS = 1.0
_LONGEST_SOCKET = 107  # bytes of a socket's path, on Linux
_SOCKET_BYTES = len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")


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


def check_temporary_folder() -> None:
    """Refuse a folder for Ray's sockets in which their paths would be too long for the system.

    Raises:
        Refusal: With the variable to change.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()
    if (excess := len(os.fsencode(folder)) + _SOCKET_BYTES - _LONGEST_SOCKET) > 0:
        raise Refusal(
            f"Ray puts sockets into {folder}, whose path is {excess} bytes too long for them.",
            key="engine.name",
            remedy="Set the environment variable RAY_TMPDIR to a folder with a shorter path, such as /tmp.",
        )
