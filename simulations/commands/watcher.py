"""Who follows a run: a listener that knows how far it is, and one that writes JSON lines for machines."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from umbel.conf.schema import Experiment
from umbel.server.listener import Listener


class Watcher(Listener):
    """A listener that knows where the run is, how far it has come, and which one of several it is.

    Attributes:
        folder: The run's folder, or None before it begins.
        last_round: Last round that this process saw completed.
        started: Whether a phase has begun; before that a run can still be refused.
        complete: Whether the last round is done.
        incomplete: Which clients the run lost for good, in words; empty when it lost none.
        at_once: How many runs go on at once; each of several is told to what `beside` gives.
        page: Where what has ended is told of, when all was stopped; None where nothing has.
    """

    def __init__(self) -> None:
        self.at_once = 1
        self.page: Path | None = None
        self.folder: str | None = None
        self.last_round = 0
        self.started = False
        self.complete = False
        self.incomplete = ""

    def begin(self, experiment: Experiment, folder: str) -> None:
        """Remember the folder."""
        self.folder, self.last_round, self.started, self.complete = folder, 0, False, False
        self.incomplete = ""

    def phase(self, round_: int, phase: str, num_clients: int) -> None:
        """Remember that work has begun."""
        self.started = True

    def round(
        self,
        round_: int,
        num_rounds: int,
        metrics: Mapping[str, float],
        seconds: float,
    ) -> None:
        """Remember the round."""
        self.last_round, self.complete = round_, round_ >= num_rounds

    def lost(self, text: str) -> None:
        """Remember it, beside telling it."""
        self.incomplete = text
        self.notice(text)

    def member(self, index: int, total: int, label: str, seed: int, how: str) -> None:
        """Run `index` (from 1) of a comparison's `total` comes next; `how` is new, resumed, reused or changed."""

    def beside(self, index: int, total: int, label: str, seed: int, how: str, setting: str = "") -> Watcher:
        """Return who is told of a run that goes on beside others; by default nobody who cares.

        Args:
            index: Which run it is, as of `member`.
            total: Of how many.
            label: Its strategy.
            seed: Its seed.
            how: As of `member`.
            setting: The label of its setting; empty of one setting.
        """
        return Watcher()

    def setting(self, index: int, total: int, label: str, probed: bool = False) -> None:
        """Setting `index` (from 1) of `total` comes next; `probed`: only the first rounds of one run."""

    def left(self, num_runs: int, seconds: float | None) -> None:
        """So many runs are still to come, in about so many seconds; None where nothing was measured yet."""

    def run_failed(self, label: str, seed: int, reason: str) -> None:
        """A run of a comparison failed; the others go on."""

    def close(self) -> None:
        """Nothing more will come."""


class JsonLines(Watcher):
    """One JSON object a line: `begin`, `round`, `failure`, `notice`, and `member` in a comparison.

    In several settings also `setting`, `left` and `run_failed`. Where several runs go on at once, each line of one of
    them has its number, the `index` of its `member`, as `run`.

    Args:
        stream: Where lines go; None is standard output.
        run: The number of the run, where several go on at once.
    """

    def __init__(self, stream: TextIO | None = None, run: int | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stdout
        self._run = {} if run is None else {"run": run}

    def beside(self, index: int, total: int, label: str, seed: int, how: str, setting: str = "") -> JsonLines:
        """Write the lines of a run that goes on beside others with its number."""
        own = JsonLines(self._stream, index)
        about = {"setting": setting} if setting else {}
        own._write("member", index=index, total=total, strategy=label, seed=seed, how=how, **about)
        return own

    def _write(self, event: str, **values: Any) -> None:
        plain = {key: _finite(value) for key, value in (self._run | values).items()}
        self._stream.write(json.dumps({"event": event, **plain}) + "\n")
        self._stream.flush()

    def begin(self, experiment: Experiment, folder: str) -> None:
        """Write what runs and where."""
        super().begin(experiment, folder)
        self._write(
            "begin",
            folder=folder,
            experiment=experiment.name,
            strategy=experiment.strategy.name,
            model=experiment.model.name,
            data=experiment.data.name,
            partition=experiment.data.partition,
            num_clients=experiment.data.num_clients,
            engine=experiment.engine.name,
            seed=experiment.run.seed,
            rounds=experiment.run.rounds,
        )

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        """Write a failure."""
        self._write("failure", round=round_, phase=phase, client=client, node=node, reason=reason)

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Write a round with its metrics, in five digits; metrics.parquet has all of them."""
        super().round(round_, num_rounds, metrics, seconds)
        short = {name: float(f"{value:.5g}") for name, value in metrics.items()}
        self._write("round", round=round_, rounds=num_rounds, seconds=round(seconds, 3), **short)

    def notice(self, text: str) -> None:
        """Write what should be known."""
        self._write("notice", text=text)

    def member(self, index: int, total: int, label: str, seed: int, how: str) -> None:
        """Write which run comes next."""
        self._write("member", index=index, total=total, strategy=label, seed=seed, how=how)

    def setting(self, index: int, total: int, label: str, probed: bool = False) -> None:
        """Write which setting comes next."""
        self._write("setting", index=index, total=total, setting=label, probed=probed)

    def left(self, num_runs: int, seconds: float | None) -> None:
        """Write what is left."""
        self._write("left", runs=num_runs, seconds=None if seconds is None else round(seconds, 1))

    def run_failed(self, label: str, seed: int, reason: str) -> None:
        """Write it."""
        self._write("run_failed", strategy=label, seed=seed, reason=reason)


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not finite becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
