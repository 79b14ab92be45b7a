"""A contender of `umbel bench`, in a process of its own: `python -m umbel.simulations.bench.contender ASKED ANSWER`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from umbel.conf.load import load
from umbel.core import leftovers
from umbel.core.wire.work import ClientTime
from umbel.server.listener import Listener

_AFTERWARDS = ("evaluate", "checkpoint")  # stages that not every round has, told of apart


class Times(Listener):
    """Notes what each round's time went into.

    Args:
        warm: Rounds at the beginning that do not count.
    """

    def __init__(self, warm: int) -> None:
        self._warm, self._last, self._stages = warm, 0.0, dict[str, float]()
        self._clients: dict[str, list[ClientTime]] = {}
        self.rounds: list[dict[str, Any]] = []
        self.counts_from = 0.0

    def time_spent(self, round_: int, stages: Mapping[str, float], clients: Mapping[str, Sequence[ClientTime]]) -> None:
        self._stages, self._clients = dict(stages), {phase: list(each) for phase, each in clients.items()}

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        now = time.time()
        if round_ > self._warm:
            whole = now - self._last
            self.rounds.append(
                {
                    "seconds": whole - sum(self._stages.get(name, 0.0) for name in _AFTERWARDS),
                    "ended": now,
                    "stages": self._stages,
                    "clients": {phase: list(map(list, each)) for phase, each in self._clients.items()},
                }
            )
        else:
            self.counts_from = now
        self._last = now

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        sys.exit(f"Client {client} failed in round {round_}: {reason}")


def main() -> None:
    """Do what is asked for, and write what was seen."""
    asked, answer = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    experiment = load("bench", (), asked["yaml"])
    warm, number = int(asked["warm"]), int(asked["rounds"])
    if asked["kind"] == "loop":
        from umbel.simulations.bench import loop

        counts_from, rounds = 0.0, []
        for at, (seconds, steps) in enumerate(loop.rounds(experiment, warm + number), start=1):
            if at > warm:
                rounds.append({"seconds": seconds, "steps": steps})
            else:
                counts_from = time.time()
        seen = {"rounds": rounds, "counts_from": counts_from, "throughput": loop.throughput(experiment)}
    else:
        from umbel import run

        with tempfile.TemporaryDirectory(prefix=leftovers.prefix("bench")) as results:
            times = Times(warm)
            composed = load("bench", (f"run.rounds={warm + number}", f"run.results={results}"), asked["yaml"])
            run(composed, listener=times)
        seen = {"rounds": times.rounds, "counts_from": times.counts_from}
    answer.write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main()
