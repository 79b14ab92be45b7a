"""How long the rounds of a run took, from its folder; a workload of which the rounds are short."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from umbel import run
from umbel.server.results import environment
from umbel.simulations.engines import federate

SHORT = (
    "data.max_train=200",
    "data.num_clients=8",
    "client.epochs=1",
    "client.device=cpu",
    "evaluate.every=0",
    "checkpoint.every=0",
)


@dataclass(frozen=True)
class Times:
    """One contender.

    Attributes:
        first: Seconds from the command to the end of the first round.
        rounds: Seconds of each of the others.
    """

    first: float
    rounds: list[float]

    @classmethod
    def read(cls, folder: Path, start: float) -> Times:
        """Read them from the folder of a run whose command came at `start`."""
        lines = (folder / "progress.jsonl").read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
        if failures := [entry for entry in entries if entry["event"] == "failure"]:
            raise SystemExit(f"A reply failed, and the times mean nothing: {failures[0]}")
        ends = [entry["time"] for entry in entries if entry["event"] == "round"]
        return cls(ends[0] - start, [after - before for before, after in itertools.pairwise(ends)])


def measure(rounds: int, *overrides: str) -> Times:
    """Run digits from here and read the times of its rounds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        result = run("digits", *overrides, f"run.rounds={rounds}", f"run.results={folder}")
        return Times.read(result.path, start)


def over_loopback(nodes: int, rounds: int, stock: bool, *overrides: str) -> Times:
    """Measure a federation that is up, so that the time to start its nodes is not in the first round."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["UMBEL_HOME"] = home
        federate.start(nodes, Path(home), stock=stock)
        try:
            return measure(rounds, *overrides, "engine.name=grpc")
        finally:
            federate.stop(Path(home))


def machine(load_before: float) -> str:
    """Return a line about hardware, versions and what else ran."""
    env = environment()
    versions = ", ".join(f"{name} {version}" for name, version in env["versions"].items() if version)
    hardware = f"{env['processor']}, {env['cpus']} CPUs, Python {env['python']}"
    return f"{hardware}; {versions}; load before {load_before:.1f}"
