"""All runs of a folder, as they come, grow and go; a browser asks for what has changed since it asked last."""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Any

from umbel.core.files import read_sealed, stamp
from umbel.core.names import shown
from umbel.core.refusal import Refusal
from umbel.simulations.runs import overview
from umbel.simulations.watch.detail import detail
from umbel.simulations.watch.followed import Followed, unreadable

COMPARISON = "comparison.json"
_MOST_TALES = 50  # of runs that do not run: those asked for last, whose course is kept in memory


class Shelf:
    """The runs of a folder. `look` may be called in one thread while others ask.

    Args:
        root: The folder.

    Attributes:
        epoch: Another one for each shelf: what a browser knows of another server's does not count.
        flaw: Why the last look failed; empty where it did not.

    Raises:
        Refusal: There is no such folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise Refusal(f"{root} is no folder.", remedy="Give the folder of runs, such as results.")
        self.root = root
        self.epoch = uuid.uuid4().hex[:12]
        self.flaw = ""
        self._top = root.resolve()
        self._lock = threading.RLock()
        self._version = 0
        self._runs: dict[Path, Followed] = {}
        self._by_id: dict[str, Followed] = {}
        self._changed: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._groups: dict[Path, Group] = {}
        self._tales: OrderedDict[str, None] = OrderedDict()
        self._waiting = 0

    def look(self) -> bool:
        """Look at every run again, and say whether any has come; what is there can be asked for meanwhile."""
        paths = list(overview.folders(self.root, self._top)) if self.root.is_dir() else []
        self._drop(set(paths))
        with self._lock:
            fresh = [path for path in paths if path not in self._runs]
            self._waiting = len(fresh)
        parents = {path.parent for path in paths if path != self.root}
        for parent in self._groups.keys() - parents:
            with self._lock:
                del self._groups[parent]
        for parent in parents:
            self._look_at_group(parent)
        known = [path for path in paths if path in self._runs]
        for path in (*known, *fresh):
            with self._lock:
                run = self._runs.get(path) or Followed(path, self._top)
                self._look_at(run)
                if path not in self._runs:
                    self._runs[path] = self._by_id[run.id] = run
                    self._gone.pop(run.id, None)
                    self._waiting -= 1
        return bool(fresh)

    def look_at_running(self) -> None:
        """Look again at the runs under way only."""
        with self._lock:
            for run in self._runs.values():
                if run.seen.state == "running":
                    self._look_at(run)

    def _look_at(self, run: Followed) -> None:
        if run.look():
            self._version += 1
            self._changed[run.id] = self._version
        if not run.is_held and run.id not in self._tales:
            run.forget()

    def _drop(self, there: set[Path]) -> None:
        with self._lock:
            for path in self._runs.keys() - there:
                run = self._runs.pop(path)
                self._version += 1
                self._gone[run.id] = self._version
                self._tales.pop(run.id, None)
                del self._by_id[run.id], self._changed[run.id]

    def _look_at_group(self, parent: Path) -> None:
        group = self._groups.get(parent)
        if group is None:
            group = self._groups[parent] = Group(parent, self.root, self._top)
        if group.look():
            with self._lock:
                self._version += 1
                for path, run in self._runs.items():
                    if path.parent == parent:
                        self._changed[run.id] = self._version

    def rows(self, since: int = 0, epoch: str = "") -> dict[str, Any]:
        """Return the runs that have changed since a version, and those that have gone.

        Args:
            since: The version of the answer that is known; 0 asks for everything.
            epoch: Its epoch.
        """
        with self._lock:
            since = since if epoch == self.epoch and since <= self._version else 0
            rows = [self._row(self._by_id[id_]) for id_, version in self._changed.items() if version > since]
            return {
                "epoch": self.epoch,
                "version": self._version,
                "whole": not since,
                "now": time.time(),
                "waiting": self._waiting,
                "flaw": self.flaw,
                "runs": rows,
                "gone": [id_ for id_, version in self._gone.items() if version > since] if since else [],
            }

    def _row(self, run: Followed) -> dict[str, Any]:
        group = self._groups[run.path.parent] if run.path != self.root else None
        return run.row | (group.of(run.path.name) if group else {"group": "", "comparison": False, "label": ""})

    def detail(self, id_: str, after: int = 0, generation: int = -1) -> dict[str, Any] | None:
        """Return all of a run, or of its rounds those after the last one that is known; None where it is not there.

        Args:
            id_: What it is asked for by.
            after: The last round that is known.
            generation: The generation of the tale that this round is of.
        """
        with self._lock:
            run = self._by_id.get(id_)
            if run is None:
                return None
            self._keep(run)
            return detail(run, self._row(run), after, generation)

    def _keep(self, run: Followed) -> None:
        self._tales[run.id] = None
        self._tales.move_to_end(run.id)
        while len(self._tales) > _MOST_TALES:
            oldest, _ = self._tales.popitem(last=False)
            if oldest in self._by_id and not self._by_id[oldest].is_held:
                self._by_id[oldest].forget()


class Group:
    """A folder with runs in it: a comparison, or any.

    Args:
        path: The folder.
        root: The folder that is watched.
        top: The same, as `Path.resolve` has it.
    """

    def __init__(self, path: Path, root: Path, top: Path) -> None:
        self._file = path / COMPARISON
        self._top = top
        self._name = shown(path.relative_to(root)) if path.is_relative_to(root) and path != root else ""
        self._stamp: tuple[int, ...] = ()
        self._labels: dict[str, str] = {}
        self._order: list[str] = []
        self._is_comparison = False
        self._flaw = ""

    def look(self) -> bool:
        """Look again; say whether anything has changed."""
        if (now := stamp(self._file)) == self._stamp:
            return False
        self._stamp, self._labels, self._order, self._flaw = now, {}, [], ""
        self._is_comparison = bool(now)
        if now:
            try:
                self._read()
            except overview.FLAWS as error:
                self._flaw = f"{COMPARISON} cannot be read: {error}"
        return True

    def _read(self) -> None:
        if flaw := unreadable(self._file.parent, self._top, (COMPARISON,)):
            raise ValueError(flaw)
        content = read_sealed(self._file)
        self._order = [str(item["label"]) for item in content["strategies"]]
        self._labels = {str(run["folder"]): str(run["strategy"]) for run in content["runs"]}

    def of(self, name: str) -> dict[str, Any]:
        """Return what a row has of it, that of a run by the name of its folder."""
        label = self._labels.get(name, "")
        return {
            "group": self._name,
            "comparison": self._is_comparison,
            "group_flaw": self._flaw,
            "label": label,
            "place": self._order.index(label) if label in self._order else None,
        }
