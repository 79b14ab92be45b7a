"""Ray's own process of this machine, without which its driver ends at the next call, without a word."""

from __future__ import annotations

import os
import select
import socket
import tempfile
import time
from collections.abc import Iterable, Sequence

import psutil

from umbel.core.refusal import Refusal
from umbel.server.errors import RunStoppedError
from umbel.simulations.engines.processes import alive, birth, descendants, terminate
from umbel.simulations.engines.workers import LOOK_SECONDS

_NAME = "raylet"
_ANSWER_SECONDS = 5.0
_LONGEST_SOCKET = 107  # bytes of a socket's path, on Linux
_SOCKET_BYTES = len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")


class Raylet:
    """The raylet that this process has started."""

    def __init__(self) -> None:
        pids = [child.pid for child in psutil.Process().children() if child.name() == _NAME]
        self._all = [(pid, birth(pid)) for pid in pids]
        self._rest = descendants(pids)
        self._looked = time.monotonic()
        self._ends = _ends(pids)

    def check(self) -> None:
        """Look whether it lives, and now and then, what it has started.

        Raises:
            RunStoppedError: It has ended.
        """
        if not self.is_alive():
            raise RunStoppedError(
                "Ray's process on this machine (raylet) has ended: somebody killed it, or the memory is full. Ask for "
                "fewer engine.workers if it was that."
            )
        if time.monotonic() - self._looked > LOOK_SECONDS:  # it goes through all processes of the machine
            self.note_rest()

    def note_rest(self) -> None:
        """Note what it has started by now, as long as that can be seen."""
        if self.is_alive():
            self._rest, self._looked = descendants(pid for pid, _ in self._all), time.monotonic()

    def is_alive(self) -> bool:
        """Say whether it lives; quickly, where the system tells of its end."""
        if self._ends is not None and not self._ends.poll():
            return True
        return all(alive(pid, born) for pid, born in self._all)

    def end_rest(self) -> None:
        """End what outlived it: workers and agents, which look for it seldom or never."""
        if self._ends is not None:
            self._ends.close()
            self._ends = None
        terminate(self._rest, patience_seconds=1.0)


class _Ends:
    """Tells when one of some processes has ended.

    Args:
        files: A file descriptor of each process.
    """

    def __init__(self, files: Sequence[int]) -> None:
        self._files = files
        self._poll = select.poll()
        for file in files:
            self._poll.register(file, select.POLLIN)

    def poll(self) -> bool:
        """Say whether one has ended."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Look no more."""
        for file in self._files:
            os.close(file)


def _ends(pids: Iterable[int]) -> _Ends | None:
    """Return what tells of the end of processes; None where the system has no such thing, or one has ended."""
    files: list[int] = []
    try:
        files.extend(os.pidfd_open(pid) for pid in pids)
    except (AttributeError, OSError):
        for file in files:
            os.close(file)
        return None
    return _Ends(files)


def check_answers(address: str) -> None:
    """Look whether somebody answers where a Ray cluster should be; Ray itself goes on asking.

    Ray finds `auto` in a file that a cluster which was killed leaves behind.

    Args:
        address: `auto`, or host and port; Ray Client's (ray://) are left to Ray.

    Raises:
        ConnectionError: There is no cluster, or it does not answer.
        ValueError: It is no address.
    """
    from ray._private import services

    if "://" in address:
        return
    found = services.canonicalize_bootstrap_address_or_die(address)
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"{found}: {error.strerror or error}") from error


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
