"""A contender's side of the clock: it says when it is warm and when its rounds are over, and waits both times.

While it waits, whoever measures reads memory and processor time of its whole tree of processes; neither is in the
seconds that it reports.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

CHANNEL = "YARDSTICK_CHANNEL"  # number of the socket that leads to whoever measures


class Clock:
    """The clock of one contender; its process was started by `measure.run`."""

    def __init__(self) -> None:
        self._channel = socket.socket(fileno=int(os.environ[CHANNEL]))
        self._channel.set_inheritable(False)  # what the contender starts has no part in it
        self._began = 0.0

    def begin(self) -> None:
        """Say that all is warm; the rounds that count begin when this returns."""
        self._tell(mark="warm")
        self._began = time.perf_counter()

    def end(self) -> None:
        """Say that the rounds are over; everything they needed must still be there."""
        self._tell(mark="over", seconds=time.perf_counter() - self._began)

    def _tell(self, **words: object) -> None:
        self._channel.sendall(json.dumps(words).encode() + b"\n")
        if not self._channel.recv(1):
            raise SystemExit("Nobody measures any more.")


def assignment() -> tuple[dict[str, Any], Path]:
    """Return what a contender's script was asked: its options, and the folder of the workload."""
    return json.loads(sys.argv[1]), Path(sys.argv[2])


def outcome() -> Path:
    """Return where a contender writes its last model."""
    return Path(sys.argv[3])
