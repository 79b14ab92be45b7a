"""What does a round over gRPC cost with nodes that stay warm, and with Flower's own, beside the same in one process?

Flower's SuperNode starts a Python process for every message and looks for messages every three seconds; the warm
node (`umbel.client.node.supernode`) keeps one process for each run and looks soon after something came. Both serve
Flower's SuperLink over its gRPC Fleet API, and the ServerApp is the same: this is what the node alone changes.

Workload: 200 digits, 8 clients, a small CNN, 1 epoch, no evaluation, 2 and 4 nodes on this machine. A round's time is
that between the ends of two rounds; the first, in which processes start, is given apart (the time from the command to
its end).

    python benchmarks/federation.py [--rounds 10] [--stock-rounds 5]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from umbel import run
from umbel.server.results import environment
from umbel.simulations.engines import federate

WORKLOAD = (
    "model.name=cnn",
    "model.sizes={width: 8, hidden: 32}",
    "data.max_train=200",
    "data.num_clients=8",
    "client.epochs=1",
    "client.device=cpu",
    "evaluate.every=0",
    "checkpoint.every=0",
)


@dataclass(frozen=True)
class Measured:
    """One contender.

    Attributes:
        first: Seconds from the command to the end of the first round.
        rounds: Seconds of each of the others.
    """

    first: float
    rounds: list[float]


def measure(rounds: int, *overrides: str) -> Measured:
    """Run the workload and read the times of its rounds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        result = run("digits", *WORKLOAD, f"run.rounds={rounds}", f"run.results={folder}", *overrides)
        num_failures = result.summary["num_failures"]
        lines = (result.path / "progress.jsonl").read_text(encoding="utf-8").splitlines()
    ends = [entry["time"] for entry in map(json.loads, lines) if entry["event"] == "round"]
    if num_failures:
        raise SystemExit(f"{num_failures} replies failed: the times mean nothing.")
    return Measured(ends[0] - start, [after - before for before, after in itertools.pairwise(ends)])


def over_grpc(nodes: int, rounds: int, stock: bool) -> Measured:
    """Measure a federation that is up, so that the time to start its nodes is not in the first round."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["UMBEL_HOME"] = home
        federate.start(nodes, Path(home), stock=stock)
        try:
            return measure(rounds, "engine.name=grpc")
        finally:
            federate.stop(Path(home))


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--stock-rounds", type=int, default=5)
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    os.environ["UMBEL_HOME"] = "/nonexistent"  # no federation that is up already
    times = {"inline": measure(arguments.rounds)}
    for nodes in (2, 4):
        for stock in (False, True):
            name = f"{nodes} {'stock SuperNodes' if stock else 'warm nodes'}"
            times[name] = over_grpc(nodes, arguments.stock_rounds if stock else arguments.rounds, stock)
            print(f"{name}: {statistics.median(times[name].rounds):.2f} s a round", file=sys.stderr, flush=True)
    env = environment()
    versions = ", ".join(f"{name} {version}" for name, version in env["versions"].items() if version)
    print(
        f"{env['processor']}, {env['cpus']} CPUs, Python {env['python']}; {versions}; load before {load_before:.1f}\n"
    )
    print("| contender | s a round (median) | range | rounds | ratio to inline | first round (s) |")
    print("|---|---|---|---|---|---|")
    base = statistics.median(times["inline"].rounds)
    for name, one in times.items():
        middle = statistics.median(one.rounds)
        print(
            f"| {name} | {middle:.3f} | {min(one.rounds):.3f}-{max(one.rounds):.3f} | {len(one.rounds)} "
            f"| {middle / base:.1f} | {one.first:.1f} |"
        )


if __name__ == "__main__":
    main()
