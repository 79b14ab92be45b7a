"""umbel, by `umbel.run`, on the engine that the options name."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from umbel import Listener, run
from yardstick.marks import Clock, assignment, outcome
from yardstick.workload import Workload


class Marks(Listener):
    """Starts the clock after the rounds that warm up, and stops it after the last one.

    Args:
        clock: The clock.
        workload: What is to be done.
    """

    def __init__(self, clock: Clock, workload: Workload) -> None:
        self._clock = clock
        self._workload = workload

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        if round_ == self._workload.warm_rounds:
            self._clock.begin()
        elif round_ == num_rounds:
            self._clock.end()

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        raise SystemExit(f"Client {client} failed in round {round_}: {reason}")


def main() -> None:
    """Run as a contender."""
    options, folder = assignment()
    workload = Workload.read(folder)
    num_rounds = workload.warm_rounds + workload.rounds
    with tempfile.TemporaryDirectory(prefix="yardstick-") as results:
        overrides = [*workload.overrides, f"run.rounds={num_rounds}", f"run.results={results}", *options["overrides"]]
        result = run(workload.experiment, *overrides, listener=Marks(Clock(), workload))
        shutil.copy(Path(result.path) / "model.safetensors", outcome())


if __name__ == "__main__":
    main()
