"""What a run tells in its progress file while it goes on, read on from where it was read to."""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from umbel.server.listener import PROGRESS_FILE

_MOST_FAILURES = 200  # that are kept in words; all are counted
_MOST_NOTICES = 50
_RECENT = 10  # rounds by which the next one's time is judged
_PIECE = 1 << 24  # bytes that are read at once


@dataclass
class Round:
    """A round that is complete.

    Attributes:
        number: From 1.
        time: When it was, in seconds since the epoch.
        seconds: Since the run began, the times between a stop and a resume left out.
        metrics: What was measured; empty in rounds without an evaluation.
        costs: What the run had cost by then (`Listener.costs`); empty in runs of an earlier umbel.
        stages: Seconds of this round by stage; likewise.
        phases: Of each phase its name and its cohort's size.
        num_failures: Replies that were left out, by phase.
    """

    number: int
    time: float = math.nan
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    phases: dict[str, int] = field(default_factory=dict)
    num_failures: Counter[str] = field(default_factory=Counter)


class Tale:
    """A run's progress file; `read_on` takes what was appended, and leaves a half-written last line for the next time.

    Args:
        folder: The run's folder.

    Attributes:
        rounds: Those that are complete.
        next: The round under way, with what is known of it.
        num_rounds: How many there are to be, as the last complete one says; 0 before it.
        phase: The phase under way; empty before the first one.
        num_clients: Its cohort's size.
        num_done: How many of these are accounted for.
        failures: The last ones, as they were told.
        num_failures: How many there were in rounds that count.
        notices: The last ones.
        has_begun: Whether anything was told.
        is_over: Whether the last process that worked on it told of its end.
        ending: How it ended, if not well (`umbel.server.errors.ending`).
        generation: Another one once what was told before no longer counts: the run was resumed, the file replaced.
        flaw: Which line cannot be read, and why; the first one.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / PROGRESS_FILE
        self.generation = 0
        self._start()

    def _start(self) -> None:
        self._offset, self._line, self._inode = 0, 0, -1
        self.rounds: list[Round] = []
        self.next = Round(1)
        self.num_rounds = 0
        self.phase, self.num_clients, self.num_done = "", 0, 0
        self.failures: deque[dict[str, Any]] = deque(maxlen=_MOST_FAILURES)
        self.num_failures = 0
        self.notices: deque[str] = deque(maxlen=_MOST_NOTICES)
        self.has_begun, self.is_over = False, False
        self.ending: Mapping[str, Any] | None = None
        self.flaw = ""
        self._began = 0.0  # when the last process that worked on it began

    def read_on(self) -> bool:
        """Read what has been appended; say whether there was anything new.

        Raises:
            OSError: The file cannot be read. That there is none is no error.
        """
        try:
            with self._file.open("rb") as file:
                return self._take(file)
        except (FileNotFoundError, NotADirectoryError):
            if self._offset:
                self._again()
                return True
            return False

    def _take(self, file: BinaryIO) -> bool:
        status = os.fstat(file.fileno())
        if self._offset and (status.st_ino != self._inode or status.st_size < self._offset):
            self._again()
        self._inode = status.st_ino
        file.seek(self._offset)
        is_new, rest = False, b""
        while piece := file.read(_PIECE):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                self._offset += len(line) + 1
                self._line += 1
                self._hear(line)
                is_new = True
        return is_new

    def _again(self) -> None:
        self._start()
        self.generation += 1

    def _hear(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            hear = _HEAR.get(entry["event"])
            self.has_begun = True
            if hear is not None:  # what a later umbel tells besides is not for us
                hear(self, entry)
        except (ValueError, KeyError, TypeError, OverflowError, AttributeError, RecursionError) as error:
            self.flaw = self.flaw or f"{PROGRESS_FILE}: line {self._line} tells of no event ({error})"

    def _begin(self, entry: Mapping[str, Any]) -> None:
        self.is_over, self.ending, self._began = False, None, float(entry["time"])
        self.phase, self.num_clients, self.num_done = "", 0, 0
        self._to(self.rounds[-1].number + 1 if self.rounds else 1)

    def _resumed(self, entry: Mapping[str, Any]) -> None:
        last = int(entry["round"])
        kept = [each for each in self.rounds if each.number <= last]
        if len(kept) < len(self.rounds):
            self.generation += 1
        self.rounds = kept
        self._to(last + 1)
        self.failures = deque((each for each in self.failures if each["round"] <= last), maxlen=_MOST_FAILURES)
        self.num_failures = sum(each.num_failures.total() for each in kept)

    def _to(self, round_: int) -> None:
        self.next = Round(round_)

    def _phase(self, entry: Mapping[str, Any]) -> None:
        self.phase, self.num_clients, self.num_done = str(entry["phase"]), int(entry["num_clients"]), 0
        self._of(entry).phases[self.phase] = self.num_clients

    def _clients_done(self, entry: Mapping[str, Any]) -> None:
        self.num_done = int(entry["num_clients"])

    def _failure(self, entry: Mapping[str, Any]) -> None:
        said = {name: int(entry[name]) for name in ("round", "client", "node")}
        self._of(entry).num_failures[str(entry["phase"])] += 1
        self.failures.append({**said, "phase": str(entry["phase"]), "reason": str(entry["reason"])})
        self.num_failures += 1

    def _stages(self, entry: Mapping[str, Any]) -> None:
        self._of(entry).stages = numbers(entry["seconds"])

    def _costs(self, entry: Mapping[str, Any]) -> None:
        told = {name: value for name, value in entry.items() if name not in ("event", "time", "round")}
        self._of(entry).costs = numbers(told)

    def _of(self, entry: Mapping[str, Any]) -> Round:
        if self.next.number != (number := int(entry["round"])):
            self._to(number)
        return self.next

    def _round(self, entry: Mapping[str, Any]) -> None:
        done = self._of(entry)
        done.time, done.seconds = float(entry["time"]), float(entry["seconds"])
        done.metrics = numbers(entry["metrics"])
        self.num_rounds = int(entry["num_rounds"])
        self.rounds.append(done)
        self._to(done.number + 1)
        self.phase, self.num_clients, self.num_done = "", 0, 0

    def _notice(self, entry: Mapping[str, Any]) -> None:
        self.notices.append(str(entry["text"]))

    def _end(self, entry: Mapping[str, Any]) -> None:
        error = entry["error"]
        self.is_over, self.ending = True, {str(k): v for k, v in error.items()} if error else None

    @property
    def measured(self) -> Mapping[str, float]:
        """What the last evaluation measured; empty before it."""
        return next((each.metrics for each in reversed(self.rounds) if each.metrics), {})

    def expected_end(self, num_rounds: int) -> float | None:
        """Return when the last round will probably be complete, or None where nothing says it yet.

        Rounds to come go by the mean of the last ten.

        Args:
            num_rounds: How many there are to be.

        Returns:
            Seconds since the epoch, by the clock of the machine that runs it.
        """
        if not self.rounds:
            return None
        last, number = self.rounds[-1], min(len(self.rounds), _RECENT)
        before = self.rounds[-number - 1].seconds if len(self.rounds) > number else 0.0
        a_round = (last.seconds - before) / number
        return max(last.time, self._began) + a_round * max(num_rounds - last.number, 0)


_HEAR: dict[str, Callable[[Tale, Mapping[str, Any]], None]] = {
    "begin": Tale._begin,
    "resumed": Tale._resumed,
    "phase": Tale._phase,
    "clients_done": Tale._clients_done,
    "failure": Tale._failure,
    "stages": Tale._stages,
    "costs": Tale._costs,
    "round": Tale._round,
    "notice": Tale._notice,
    "lost": Tale._notice,
    "end": Tale._end,
}


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return those of named values that are finite numbers; what was no number is null in a progress file."""
    return {
        sys.intern(name): float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
