"""How do a round's time and memory grow with the clients of a round, with parameters, and with the clients there are?

Clients do nothing (yardstick/idle.py), so that what is seen is umbel's own. `exponent` is the slope of a line through
all columns on logarithmic axes, and between the last two: 1 is linear, 0 does not grow. `copies` is the most memory
that a process has had at any moment, by the kernel's own account (VmHWM), over that of the same process with a tiny
model, in sizes of the model (four bytes a parameter). Memory that several processes map counts in each of them.

    python benchmarks/scaling.py clients [--numbers 10,100,1000,10000] [--engine inline]
    python benchmarks/scaling.py parameters [--numbers 100000,1000000,10000000,100000000] [--engine inline]
    python benchmarks/scaling.py memory [--engine processes-2] [--clients 50] [--numbers 20000000] [key=value]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from overhead import BENCHMARKS, STRATEGIES, Ends
from round_times import machine

from umbel import run

PIXELS, CLASSES = 64, 10  # of the images: 8 x 8
WARM_ROUNDS, ROUNDS = 2, 5
NUMBERS = {"clients": "10,100,1000,10000", "parameters": "100000,1000000,10000000,100000000", "memory": "20000000"}


def hidden(parameters: int, depth: int) -> int:
    """Return the width of so many hidden layers with which an MLP has about so many parameters."""
    ends = PIXELS + CLASSES + depth
    if depth == 1:
        return max(parameters // ends, 1)
    return max(int((math.sqrt(ends**2 + 4 * (depth - 1) * parameters) - ends) / (2 * (depth - 1))), 1)


@dataclass(frozen=True)
class Asked:
    """A case.

    Attributes:
        registered: Clients that there are.
        cohort: Clients of a round.
        parameters: Of the model, about.
        depth: Its hidden layers; with one, nearly all of it is a single tensor.
        engine: As `inline`, `processes-2` or `ray-2`.
        rounds: Rounds that count.
        warm: Rounds before them.
        overrides: More of the experiment.
    """

    registered: int
    cohort: int
    parameters: int
    engine: str
    rounds: int = ROUNDS
    warm: int = WARM_ROUNDS
    depth: int = 1
    overrides: tuple[str, ...] = ()


def overrides(asked: Asked) -> list[str]:
    """Return the workload."""
    name, _, workers = asked.engine.partition("-")
    options = (
        f"{{num_examples: {asked.registered}, num_test: 10, num_classes: {CLASSES}, image_size: 8, in_channels: 1}}"
    )
    found = [f"data.num_clients={asked.registered}", f"data.options={options}"]
    found += [f"run.clients_per_round={asked.cohort}", f"engine.name={name}"]
    found += [
        "model.name=mlp",
        f"model.sizes={{hidden: {hidden(asked.parameters, asked.depth)}, depth: {asked.depth}}}",
    ]
    found += [f"engine.workers={workers}"] if workers else []
    return [*found, f"strategy.name={STRATEGIES['nothing']}"]


def peak_bytes(process: int) -> int:
    """Return the most memory that a process has had at any moment so far, of which the kernel keeps account."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


class Peaks(Ends):
    """Notes when each round ended, and the peaks of this process's workers until then.

    Args:
        engine: What the workers are of.
    """

    def __init__(self, engine: str) -> None:
        super().__init__()
        self._is_ray = engine.startswith("ray")
        self.workers: dict[int, int] = {}

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        super().round(round_, num_rounds, metrics, seconds)
        starters = psutil.Process().children()
        for child in [each for starter in starters for each in starter.children()]:
            try:
                if not self._is_ray or "RayWorker" in " ".join(child.cmdline()):
                    self.workers[child.pid] = peak_bytes(child.pid)
            except (psutil.Error, OSError):
                continue


def case(asked: Asked) -> dict[str, Any]:
    """Carry a case out in this process; return the seconds of its median round and the peaks of memory in bytes."""
    peaks = Peaks(asked.engine)
    with tempfile.TemporaryDirectory() as results:
        given = [f"run.rounds={asked.warm + asked.rounds}", f"run.results={results}", *asked.overrides]
        run("bench_cnn", *overrides(asked), *given, listener=peaks)
    seconds = [after - before for before, after in itertools.pairwise(peaks.times[max(asked.warm - 1, 0) :])]
    workers = sorted(peaks.workers.values(), reverse=True)
    return {"seconds": statistics.median(seconds or [0.0]), "driver": peak_bytes(os.getpid()), "workers": workers}


def measured(asked: Asked) -> Mapping[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "case", "--case", json.dumps(asdict(asked))]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def exponents(numbers: list[int], values: list[float]) -> str:
    """Write the slope of a line through all on logarithmic axes, and that between the last two."""
    x, y = ([math.log(each) for each in both] for both in (numbers, values))
    fitted = statistics.linear_regression(x, y).slope
    return f"{fitted:.2f}, {(y[-1] - y[-2]) / (x[-1] - x[-2]):.2f}"


def print_copies(asked: Asked) -> None:
    """Print how many copies of the model each process has had at once."""
    begin = time.perf_counter()
    tiny = measured(replace(asked, parameters=1000))
    large = measured(asked)

    def copies(most: float, least: float) -> str:
        return f"{(most - least) / (4 * asked.parameters):.1f} copies of the model at its peak"

    print(f"{asked.engine}, {asked.cohort} clients a round, {asked.parameters:,} parameters, {asked.rounds} rounds")
    print(f"driver: {copies(large['driver'], tiny['driver'])}")
    for number, most in enumerate(large["workers"], 1):
        print(f"worker {number}: {copies(most, max(tiny['workers']))}")
    print(f"\n{time.perf_counter() - begin:.0f} s in all")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=(*NUMBERS, "case"))
    parser.add_argument("overrides", nargs="*", help="more of the experiment, as evaluate.every=1")
    parser.add_argument("--numbers", default="", help="clients, or parameters; of memory one")
    parser.add_argument("--engine", help="by default inline; for memory processes-2")
    parser.add_argument("--clients", type=int, default=50, help="of a round, of memory")
    parser.add_argument("--rounds", type=int, default=0, help=f"that count, by default {ROUNDS}; of memory 2")
    parser.add_argument("--depth", type=int, default=0, help="hidden layers of the model, by default 1; of memory 9")
    parser.add_argument("--case", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.study == "case":
        print(json.dumps(case(Asked(**json.loads(asked.case)))))
        return
    engine = asked.engine or ("processes-2" if asked.study == "memory" else "inline")
    numbers = [int(number) for number in (asked.numbers or NUMBERS[asked.study]).split(",")]
    print(machine(os.getloadavg()[0]))
    given = tuple(asked.overrides)
    if asked.study == "memory":
        (parameters,), count = numbers, asked.clients
        print_copies(Asked(count, count, parameters, engine, asked.rounds or 2, 0, asked.depth or 9, given))
        return
    begin, rounds, depth = time.perf_counter(), asked.rounds or ROUNDS, asked.depth or 1
    if asked.study == "clients":
        cases = [
            Asked(max(numbers), number, 10_000, engine, rounds, depth=depth, overrides=given) for number in numbers
        ]
    else:
        cases = [Asked(100, 10, number, engine, rounds, depth=depth, overrides=given) for number in numbers]
    rows = [measured(each) for each in cases]
    print(f"\n| {asked.study} a round | {' | '.join(f'{number:,}' for number in numbers)} | exponent, at the end |")
    print(f"|---|{'---:|' * (len(numbers) + 1)}")
    seconds, driver = [row["seconds"] for row in rows], [row["driver"] / 1e6 for row in rows]
    shown = " | ".join(f"{value * 1e3:,.1f}" for value in seconds)
    print(f"| ms a round | {shown} | {exponents(numbers, seconds)} |")
    print(f"| peak MB of the driver | {' | '.join(f'{value:,.0f}' for value in driver)} | |")
    print(f"\n{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
