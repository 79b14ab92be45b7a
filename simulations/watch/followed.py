"""One run, looked at again and again: only what was appended is read, and what has ended is not read again."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from umbel.conf.schema import Experiment
from umbel.core.files import stamp
from umbel.core.names import shown
from umbel.server import lock, reading
from umbel.server.listener import PROGRESS_FILE
from umbel.simulations.runs import overview
from umbel.simulations.runs.overview import Seen
from umbel.simulations.runs.tale import Tale

READ = ("config.yaml", "run.json", "memory.json", "env.json", reading.SUMMARY, reading.METRICS, PROGRESS_FILE, "lock")


class Followed:
    """A run within the folder that is watched.

    Args:
        path: Its folder.
        top: The folder that is watched, as `Path.resolve` has it; nothing outside is read.

    Attributes:
        path: As given.
        id: What a browser asks for it by: it says nothing of paths, so that none can be made of it.
        seen: As it was when it was looked at last.
        tale: What it has told.
        ended: What a page shows of one that has ended, once it was asked for.
        is_held: Whether somebody was at work on it when it was looked at last.
    """

    def __init__(self, path: Path, top: Path) -> None:
        self.path = path
        self._top = top
        self.name = shown(path.name)
        self.id = hashlib.sha256(os.fsencode(path)).hexdigest()[:20]
        self.seen = Seen(path, "damaged")
        self.tale = Tale(path)
        self.ended: dict[str, Any] | None = None
        self.is_held = False
        self._has_read = False
        self._rested: tuple[tuple[int, ...], ...] = ()  # its files, as they were when it was seen to rest
        self._summary: tuple[int, ...] = ()
        self._config: tuple[tuple[int, ...], ...] = ()
        self._experiment: Experiment | None = None
        self._row: dict[str, Any] = {}

    def look(self) -> bool:
        """Look again; say whether anything is to be seen that was not before."""
        summary = stamp(self.path / reading.SUMMARY)
        if summary and summary == self._summary:
            return False
        before, self._summary, self.ended, self.is_held = self._row, summary, None, False
        if flaw := unreadable(self.path, self._top):
            self.seen, self._rested = Seen(self.path, "damaged", flaw=flaw), ()
        elif summary:
            self.seen, self._rested = overview.look(self.path), ()
        else:
            self.seen = self._look()
        self._row = self._made()
        return self._row != before

    def _look(self) -> Seen:
        try:
            began, self.is_held = overview.began_at(self.path), lock.is_held(self.path)
            files = tuple(stamp(self.path / name) for name in ("config.yaml", "run.json", "memory.json", PROGRESS_FILE))
            rested, self._rested = self._rested, ()
            if (self.path / reading.SUMMARY).is_file():  # it ended in this moment
                return overview.look(self.path)
            if not self.is_held and files == rested:  # what it told may be forgotten: do not read it all again
                self._rested = files
                return self.seen
            experiment = self.experiment()
            self._read_on()
            seen = overview.unfinished(self.path, experiment, self.tale, began, self.is_held)
            self._rested = () if self.is_held else files
            return seen
        except overview.FLAWS as error:
            return overview.damaged(self.path, error)

    def experiment(self) -> Experiment:
        """Return its experiment, which is read again only where its configuration has changed.

        Raises:
            Refusal: It is not what was written, or this umbel refuses it.
        """
        config = (stamp(self.path / "config.yaml"), stamp(self.path / "run.json"))
        if self._experiment is None or config != self._config:
            self._experiment, self._config = reading.experiment(self.path), config
        return self._experiment

    def told(self) -> Tale:
        """Return what it has told, read up to now also where it has ended."""
        if not unreadable(self.path, self._top):
            self._read_on()
        return self.tale

    def _read_on(self) -> None:
        self._has_read = True
        self.tale.read_on()

    def forget(self) -> None:
        """Let go of what a run that does not run has told; it is read again when it is asked for."""
        self.ended, self._experiment = None, None
        if self._has_read:
            generation, self.tale, self._has_read = self.tale.generation, Tale(self.path), False
            self.tale.generation = generation + 1

    @property
    def row(self) -> dict[str, Any]:
        """What a table of runs has of it, as JSON has it."""
        return self._row

    def _made(self) -> dict[str, Any]:
        seen, tale = self.seen, self.tale
        row = {name: value for name, value in vars(seen).items() if name != "path"}
        goes_on = seen.state == "running"
        return row | {
            "id": self.id,
            "name": self.name,
            "strategy": shortened_name(seen.strategy),
            "seconds": round(seen.seconds, 3),
            "phase": tale.phase if goes_on else "",
            "done": tale.num_done if goes_on else 0,
            "clients": tale.num_clients if goes_on else 0,
            "end": tale.expected_end(seen.rounds) if goes_on else None,
        }


def shortened_name(name: str) -> str:
    """Return a name as a table has it: of somebody's own class only the class."""
    return name.rpartition(":")[2] if ":" in name and not name.startswith("flwr:") else name


def unreadable(folder: Path, top: Path, names: tuple[str, ...] = READ) -> str:
    """Say which file of a folder is not to be read: a link that leads out, or no file at all; empty for none.

    Args:
        folder: The folder.
        top: What links may not lead out of, as `Path.resolve` has it.
        names: Of its files.
    """
    for name in names:
        file = os.path.join(folder, name)  # noqa: PTH118 - a Path takes longer, and there are thousands
        try:
            mode = os.lstat(file).st_mode
        except OSError:
            continue  # it is not there
        if stat.S_ISLNK(mode):
            if not Path(os.path.realpath(file)).is_relative_to(top):
                return f"{name} leads out of the folder that is watched"
            mode = os.stat(file).st_mode if os.path.exists(file) else stat.S_IFREG  # noqa: PTH110, PTH116
        if not stat.S_ISREG(mode):  # to open a pipe would wait for whoever writes into it
            return f"{name} is no file"
    return ""
