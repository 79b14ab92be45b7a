"""Who wants to know how a run goes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from umbel.conf.schema import Experiment
from umbel.core.files import DamagedError, plain
from umbel.core.wire.work import ClientTime
from umbel.server.errors import ending

PROGRESS_FILE = "progress.jsonl"


class Listener:
    """Told of everything that happens in a run; by default it does not care."""

    def begin(self, experiment: Experiment, folder: str) -> None:
        """A run begins, or goes on."""

    def resumed(self, round_: int) -> None:
        """A run goes on after a round; what was told of later ones is lost, and comes again."""

    def phase(self, round_: int, phase: str, num_clients: int) -> None:
        """A phase begins with so many clients."""

    def clients_done(self, num_clients: int) -> None:
        """So many clients of the phase are accounted for."""

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        """A client's reply was left out."""

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        """A round is complete."""

    def time_spent(self, round_: int, stages: Mapping[str, float], clients: Mapping[str, Sequence[ClientTime]]) -> None:
        """What a round's time went into; told before `round`, and to listeners in the server's own process.

        Args:
            round_: The round.
            stages: Seconds of each phase of the strategy by its name, of `server`, `evaluate` and `checkpoint`.
            clients: By phase, when which process ran which client; nothing of clients behind gRPC.
        """

    def costs(self, round_: int, costs: Mapping[str, float]) -> None:
        """What the run has cost up to the end of a round; told before `round`, likewise.

        Args:
            round_: The round.
            costs: By `umbel.core.schedule.COSTS` without operations, and the bytes apart: `bytes_down` to clients,
                `bytes_up` from them.
        """

    def notice(self, text: str) -> None:
        """Something that whoever reads the result should know; the run goes on."""

    def lost(self, text: str) -> None:
        """The run is over, has its model, and lost clients for good, which the text names."""
        self.notice(text)

    def end(self, error: BaseException | None) -> None:
        """The run has ended, with an error or without."""


class Both(Listener):
    """Tells two listeners.

    Args:
        first: Told first.
        second: Told second.
    """

    def __init__(self, first: Listener, second: Listener) -> None:
        self._all = (first, second)

    def begin(self, experiment: Experiment, folder: str) -> None:
        for listener in self._all:
            listener.begin(experiment, folder)

    def resumed(self, round_: int) -> None:
        for listener in self._all:
            listener.resumed(round_)

    def phase(self, round_: int, phase: str, num_clients: int) -> None:
        for listener in self._all:
            listener.phase(round_, phase, num_clients)

    def clients_done(self, num_clients: int) -> None:
        for listener in self._all:
            listener.clients_done(num_clients)

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        for listener in self._all:
            listener.failure(round_, phase, client, node, reason)

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        for listener in self._all:
            listener.round(round_, num_rounds, metrics, seconds)

    def time_spent(self, round_: int, stages: Mapping[str, float], clients: Mapping[str, Sequence[ClientTime]]) -> None:
        for listener in self._all:
            listener.time_spent(round_, stages, clients)

    def costs(self, round_: int, costs: Mapping[str, float]) -> None:
        for listener in self._all:
            listener.costs(round_, costs)

    def notice(self, text: str) -> None:
        for listener in self._all:
            listener.notice(text)

    def lost(self, text: str) -> None:
        for listener in self._all:
            listener.lost(text)

    def end(self, error: BaseException | None) -> None:
        for listener in self._all:
            listener.end(error)


class FileListener(Listener):
    """Appends one JSON object a line to the run's progress file, which whoever started the run may follow.

    Args:
        folder: The run's folder.
        every_seconds: Least time between two lines about clients that are done.
    """

    def __init__(self, folder: Path, every_seconds: float = 0.2) -> None:
        self._path = folder / PROGRESS_FILE
        self._every = every_seconds
        self._last = 0.0

    def put(self, line: str) -> None:
        """Append a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _write(self, event: str, **values: object) -> None:
        line = plain({"event": event, "time": round(time.time(), 3), **values})
        self.put(json.dumps(line, allow_nan=False))

    def begin(self, experiment: Experiment, folder: str) -> None:
        self._write("begin", folder=folder)

    def resumed(self, round_: int) -> None:
        self._write("resumed", round=round_)

    def phase(self, round_: int, phase: str, num_clients: int) -> None:
        self._write("phase", round=round_, phase=phase, num_clients=num_clients)

    def clients_done(self, num_clients: int) -> None:
        if time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self._write("clients_done", num_clients=num_clients)

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        self._write("failure", round=round_, phase=phase, client=client, node=node, reason=reason)

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        self._write("round", round=round_, num_rounds=num_rounds, metrics=dict(metrics), seconds=seconds)

    def time_spent(self, round_: int, stages: Mapping[str, float], clients: Mapping[str, Sequence[ClientTime]]) -> None:
        self._write("stages", round=round_, seconds={name: round(value, 4) for name, value in stages.items()})

    def costs(self, round_: int, costs: Mapping[str, float]) -> None:
        resident = psutil.Process().memory_info().rss  # of the server's own process: on inline, the clients' as well
        self._write("costs", round=round_, **costs, memory_bytes=resident)

    def notice(self, text: str) -> None:
        self._write("notice", text=text)

    def lost(self, text: str) -> None:
        self._write("lost", text=text)

    def end(self, error: BaseException | None) -> None:
        self._write("end", error=None if error is None else ending(error))


def has_begun(folder: Path) -> bool:
    """Say whether a run got as far as its first phase; until then it can be refused, and its folder goes."""
    file = folder / PROGRESS_FILE
    if not file.is_file():
        return False
    with file.open(encoding="utf-8") as lines:
        return any(line.startswith('{"event": "phase"') for line in lines)


def mend(folder: Path) -> None:
    """Drop the half of a line that a process left in the progress file when it was killed."""
    file = folder / PROGRESS_FILE
    if not file.is_file():
        return
    content = file.read_bytes()
    if content and not content.endswith(b"\n"):
        with file.open("r+b") as opened:
            opened.truncate(content.rfind(b"\n") + 1)


def events(folder: Path) -> list[dict[str, Any]]:
    """Return what a run told, without what it told of rounds that were lost.

    Raises:
        DamagedError: A line cannot be read.
    """
    file = folder / PROGRESS_FILE
    kept: list[dict[str, Any]] = []
    if not file.is_file():
        return kept
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            entry = json.loads(line)
            if entry["event"] == "resumed":
                kept = [each for each in kept if each.get("round", 0) <= entry["round"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            remedy = "Delete that line; no more depends on it than the list of failures."
            raise DamagedError.of(file, f"line {number} tells of no event ({error})", remedy) from error
        kept.append(entry)
    return kept


def replay(line: str, experiment: Experiment, listener: Listener) -> tuple[bool, dict[str, Any] | None]:
    """Tell a listener what a line of a progress file says.

    Returns:
        Whether the run has ended, and how if not well (`umbel.server.errors.ending`).
    """
    entry = json.loads(line)
    event = entry["event"]
    if event == "begin":
        listener.begin(experiment, entry["folder"])
    elif event == "resumed":
        listener.resumed(entry["round"])
    elif event == "phase":
        listener.phase(entry["round"], entry["phase"], entry["num_clients"])
    elif event == "clients_done":
        listener.clients_done(entry["num_clients"])
    elif event == "failure":
        listener.failure(entry["round"], entry["phase"], entry["client"], entry["node"], entry["reason"])
    elif event == "round":
        metrics = {name: math.nan if value is None else value for name, value in entry["metrics"].items()}
        listener.round(entry["round"], entry["num_rounds"], metrics, entry["seconds"])
    elif event == "notice":
        listener.notice(entry["text"])
    elif event == "lost":
        listener.lost(entry["text"])
    elif event == "end":
        return True, entry["error"]
    return False, None
