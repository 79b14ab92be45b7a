"""TensorBoard: `<run>/tensorboard`, so that `tensorboard --logdir results` shows all runs."""

from __future__ import annotations

from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from umbel.simulations.trackers.base import TrackedRun, Tracker


class TensorBoard(Tracker):
    """Writes event files."""

    def open(self, run: TrackedRun) -> None:
        purged = run.last_round + 1 if run.last_round else None  # rounds that were told and lost come again
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purged)
        self._step = run.last_round
        if not run.last_round:
            lines = "\n".join(f"    {key}: {value}" for key, value in run.config.items())
            self._writer.add_text("config", lines)

    def log(self, round_: int, values: Mapping[str, float]) -> None:
        self._step = round_
        for name, value in values.items():
            self._writer.add_scalar(name, value, round_)
        self._writer.flush()

    def text(self, text: str) -> None:
        self._writer.add_text("notice", text, self._step)

    def close(self, summary: Mapping[str, float], status: str) -> None:
        for name, value in summary.items():
            self._writer.add_scalar(f"summary/{name}", value, self._step)
        self._writer.close()


def tracker() -> Tracker:
    """Return one."""
    return TensorBoard()
