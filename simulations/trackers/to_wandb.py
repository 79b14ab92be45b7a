"""Weights & Biases: offline, in `<run>/wandb`, unless WANDB_MODE=online; `wandb sync` sends it later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

import wandb

from umbel.simulations.trackers.base import TrackedRun, Tracker


class Wandb(Tracker):
    """Writes a run of the project WANDB_PROJECT, or of the experiment's name."""

    def open(self, run: TrackedRun) -> None:
        known = run.noted("wandb") if run.last_round else ""
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or run.experiment,
            name=run.name,
            id=known or None,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.config),
            mode=cast(Any, os.environ.get("WANDB_MODE") or "offline"),
            settings=wandb.Settings(console="off", silent=True),
        )
        run.note("wandb", self._run.id)

    def log(self, round_: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=round_)

    def close(self, summary: Mapping[str, float], status: str) -> None:
        self._run.summary.update({f"summary/{name}": value for name, value in summary.items()})
        self._run.finish(exit_code=0 if status == "finished" else 1)


def tracker() -> Tracker:
    """Return one."""
    return Wandb()
