"""A process that carries out runs for another, one after the other, and tells it how they go.

Orders come as JSON lines on standard input, and what happens goes back as lines of a progress file on a pipe. The
process ends with the one that started it, and saves its run before it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from umbel.client.node.parent import end_with_parent
from umbel.conf.load import load
from umbel.core.wire.work import ClientTime
from umbel.server.errors import ending, is_unforeseen, reason
from umbel.server.listener import Both, FileListener, Listener
from umbel.simulations import api
from umbel.simulations.commands.supervision import Stopper
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare.side_by_side import OVER


class _Line(FileListener):
    """Tells another process of a run, over a pipe.

    Args:
        file: The pipe's end.
    """

    def __init__(self, file: TextIO) -> None:
        super().__init__(Path())
        self._file = file

    def put(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # who listened has died, and a signal says so in order
            self._file.write(line + "\n")
            self._file.flush()

    def time_spent(self, round_: int, stages: Mapping[str, float], clients: Mapping[str, Sequence[ClientTime]]) -> None:
        """Nobody asks for it there."""

    def costs(self, round_: int, costs: Mapping[str, float]) -> None:
        """Nobody asks for it there."""

    def end(self, error: BaseException | None) -> None:
        """It is told when the process is done with the run."""


def main() -> None:
    """Carry out the runs that standard input names; the process's arguments are its parent and the pipe."""
    parent, descriptor = map(int, sys.argv[1:])
    os.set_inheritable(descriptor, False)
    end_with_parent(signal.SIGTERM)
    with contextlib.suppress(BrokenPipeError), os.fdopen(descriptor, "w", encoding="utf-8") as pipe:
        for line in sys.stdin:
            if os.getppid() != parent:  # it was gone before this process asked to be told of it
                return
            order = json.loads(line)
            _print_to(Path(order["log"]))
            end = _carry_out(order, pipe)
            _flush()
            # On a line of its own, also where a signal came in the middle of the one before.
            pipe.write("\n" + json.dumps({"event": OVER, "end": end}) + "\n")
            pipe.flush()


def _print_to(log: Path) -> None:
    """Let whatever this process prints go to a file from here on."""
    log.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the log's disk is full, which ends no run
            stream.flush()


def _carry_out(order: Mapping[str, str], pipe: TextIO) -> dict[str, Any] | None:
    """Carry a run out; return how it ended, if not well, in words that travel."""
    watcher = Watcher()
    told: Listener = Both(watcher, _Line(pipe))
    try:
        with Stopper() as stopper:
            stopper.watcher = watcher
            if order["do"] == "resume":
                api.resume(order["folder"], listener=told)
            else:
                api.run(load("config", (), order["experiment"]), listener=told)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the other process says it
        end = ending(error)
        if isinstance(error, OSError) and error.errno is not None:
            name = error.filename if isinstance(error.filename, str) else None
            return {**end, "errno": error.errno, "strerror": error.strerror, "filename": name}
        if end["how"] != "failed":
            return end
        trace = "".join(traceback.format_exception(error)) if is_unforeseen(error) else ""
        return {**end, "text": reason(error), "trace": trace}
    return None
