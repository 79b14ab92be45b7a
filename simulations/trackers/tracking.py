"""Tells trackers of a run, and keeps their failures from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from umbel.conf.load import as_dict
from umbel.conf.schema import Experiment
from umbel.core.records import reason
from umbel.server import reading
from umbel.server.errors import StopRequested
from umbel.server.listener import Listener
from umbel.simulations.trackers.base import TrackedRun, Tracker


class Tracking(Listener):
    """A listener that tells trackers.

    Args:
        trackers: They, with their names.
        notice: Told when one fails.
        resuming: The run goes on: where it does, is told by `resumed` and not by `begin`.
    """

    def __init__(
        self, trackers: Sequence[tuple[str, Tracker]], notice: Callable[[str], None], resuming: bool = False
    ) -> None:
        self._trackers = list(trackers)
        self._notice = notice
        self._waits_for_round = resuming
        self._experiment = Experiment()
        self._folder = Path()
        self._num_failed = 0
        self._is_open = False

    def begin(self, experiment: Experiment, folder: str) -> None:
        self._experiment, self._folder = experiment, Path(folder)
        if not self._waits_for_round:
            self._open(0)

    def resumed(self, round_: int) -> None:
        if not self._is_open:
            self._open(round_)

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        self._num_failed += 1

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        values = {**metrics, "seconds": seconds, "clients/failed": float(self._num_failed)}
        self._num_failed = 0
        self._each(lambda tracker: tracker.log(round_, values))

    def notice(self, text: str) -> None:
        self._each(lambda tracker: tracker.text(text))

    def end(self, error: BaseException | None) -> None:
        if not self._is_open:
            return
        status = "finished" if error is None else "failed"
        if isinstance(error, KeyboardInterrupt | StopRequested):
            status = "stopped"
        summary = self._summary() if error is None else {}
        self._each(lambda tracker: tracker.close(summary, status))
        self._is_open = False

    def _open(self, last_round: int) -> None:
        self._is_open = True
        config = flat(as_dict(self._experiment))
        run = TrackedRun(self._folder.name, self._experiment.name, self._folder, config, last_round)
        self._each(lambda tracker: tracker.open(run))

    def _summary(self) -> dict[str, float]:
        if not (self._folder / reading.SUMMARY).is_file():
            return {}
        return {
            name: float(value)  # type: ignore[arg-type]
            for name, value in flat(reading.summary(self._folder)).items()
            if type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
        }

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        """Tell all; one that raises is told no more."""
        if not self._is_open:
            return
        for each in list(self._trackers):
            name, tracker = each
            try:
                tell(tracker)
            except Exception as error:  # noqa: BLE001 - somebody else's library, server, disk
                self._trackers.remove(each)
                text = f"run.trackers: {name} failed, and is told no more of this run, which goes on: {reason(error)}"
                self._notice(text)


def flat(tree: Mapping[str, Any], before: str = "") -> dict[str, object]:
    """Return nested mappings as one, keys joined by points."""
    found: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found
