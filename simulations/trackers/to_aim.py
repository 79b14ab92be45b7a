"""Aim: the repository `<results>/.aim`, which `aim up` shows; or the one that AIM_REPO names."""

from __future__ import annotations

import os
from collections.abc import Mapping

import aim

from umbel.simulations.trackers.base import TrackedRun, Tracker


class Aim(Tracker):
    """Writes a run of the experiment's name."""

    def open(self, run: TrackedRun) -> None:
        known = run.noted("aim") if run.last_round else ""
        self._run = aim.Run(
            run_hash=known or None,
            repo=os.environ.get("AIM_REPO") or str(run.folder.parent),
            experiment=run.experiment,
            system_tracking_interval=None,
            capture_terminal_logs=False,
        )
        run.note("aim", self._run.hash)
        if not known:
            self._run.name = run.name
            for key, value in run.config.items():
                self._run[key] = value if isinstance(value, bool | int | float | str) else str(value)

    def log(self, round_: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._run.track(value, name=name, step=round_)

    def close(self, summary: Mapping[str, float], status: str) -> None:
        for name, value in summary.items():
            self._run[f"summary/{name}"] = value
        self._run["status"] = status
        self._run.close()


def tracker() -> Tracker:
    """Return one."""
    return Aim()
