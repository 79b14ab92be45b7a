"""How do a round's time and memory grow with the clients of a round, with parameters, and with the clients there are?

Clients do nothing (yardstick/idle.py), so that what is seen is umbel's own. `exponent` is the slope between the last
two columns on logarithmic axes: 1 is linear, 0 does not grow. `copies` is the memory that a round adds to a process at
its peak, over that of the process with a tiny model, in sizes of the model.

    python benchmarks/scaling.py clients [--numbers 10,100,1000,10000] [--engine inline]
    python benchmarks/scaling.py parameters [--numbers 100000,1000000,10000000,100000000] [--engine inline]
    python benchmarks/scaling.py memory [--engine ray-2]          # 200 clients, a model of 20 M parameters
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
import threading
import time
from collections.abc import Mapping

import psutil
from overhead import BENCHMARKS, STRATEGIES, Ends
from round_times import machine

from umbel import run

PIXELS, CLASSES = 64, 10  # of the images: 8 x 8
WARM_ROUNDS, ROUNDS = 2, 5
NUMBERS = {"clients": "10,100,1000,10000", "parameters": "100000,1000000,10000000,100000000", "memory": "20000000"}


def hidden(parameters: int) -> int:
    """Return the width of a hidden layer with which an MLP of one has about so many parameters."""
    return max(parameters // (PIXELS + CLASSES + 1), 1)


def overrides(registered: int, cohort: int, parameters: int, engine: str) -> list[str]:
    """Return the workload."""
    name, _, workers = engine.partition("-")
    options = f"{{num_examples: {registered}, num_test: 10, num_classes: {CLASSES}, image_size: 8, in_channels: 1}}"
    found = [f"data.num_clients={registered}", f"data.options={options}", f"run.clients_per_round={cohort}"]
    found += ["model.name=mlp", f"model.sizes={{hidden: {hidden(parameters)}, depth: 1}}", f"engine.name={name}"]
    found += [f"engine.workers={workers}"] if workers else []
    return [*found, f"strategy.name={STRATEGIES['nothing']}"]


class Peaks(threading.Thread):
    """Looks at the resident memory of this process and of those that it started, twenty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.driver = self.worker = 0
        self.ended = threading.Event()

    def run(self) -> None:
        """Look until it is told to end."""
        own = psutil.Process()
        while not self.ended.wait(0.05):
            self.driver = max(self.driver, own.memory_info().rss)
            for child in own.children(recursive=True):
                try:
                    if "RayWorker" in " ".join(child.cmdline()):
                        self.worker = max(self.worker, child.memory_full_info().uss)
                except psutil.Error:
                    continue


def case(registered: int, cohort: int, parameters: int, engine: str) -> dict[str, float]:
    """Carry a case out in this process; return the seconds of its median round and the peaks of memory in bytes."""
    ends, peaks = Ends(), Peaks()
    peaks.start()
    with tempfile.TemporaryDirectory() as results:
        asked = overrides(registered, cohort, parameters, engine)
        run("bench_cnn", *asked, f"run.rounds={WARM_ROUNDS + ROUNDS}", f"run.results={results}", listener=ends)
    peaks.ended.set()
    seconds = [after - before for before, after in itertools.pairwise(ends.times[WARM_ROUNDS - 1 :])]
    return {"seconds": statistics.median(seconds), "driver": peaks.driver, "worker": peaks.worker}


def measured(registered: int, cohort: int, parameters: int, engine: str) -> Mapping[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "case", "--numbers", f"{registered},{cohort},{parameters}", "--engine", engine]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def exponent(numbers: list[int], values: list[float]) -> float:
    """Return the slope between the last two on logarithmic axes."""
    return math.log(values[-1] / values[-2]) / math.log(numbers[-1] / numbers[-2])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=(*NUMBERS, "case"))
    parser.add_argument("--numbers", default="")
    parser.add_argument("--engine", help="by default inline; for memory ray-2")
    asked = parser.parse_args()
    asked.engine = asked.engine or ("ray-2" if asked.study == "memory" else "inline")
    numbers = [int(number) for number in (asked.numbers or NUMBERS[asked.study]).split(",")]
    if asked.study == "case":
        print(json.dumps(case(*numbers, asked.engine)))
        return
    print(machine(os.getloadavg()[0]))
    if asked.study == "memory":
        (parameters,) = numbers
        tiny, large = (measured(1000, 200, each, asked.engine) for each in (1000, parameters))
        for who in ("driver", "worker"):
            print(f"{who}: {(large[who] - tiny[who]) / (4 * parameters):.1f} copies of the model at its peak")
        return
    begin = time.perf_counter()
    if asked.study == "clients":
        rows = [measured(max(numbers), number, 10_000, asked.engine) for number in numbers]
    else:
        rows = [measured(100, 10, number, asked.engine) for number in numbers]
    print(f"\n| {asked.study} a round | {' | '.join(f'{number:,}' for number in numbers)} | exponent |")
    print(f"|---|{'---:|' * (len(numbers) + 1)}")
    seconds, driver = [row["seconds"] for row in rows], [row["driver"] / 1e6 for row in rows]
    shown = " | ".join(f"{value * 1e3:,.1f}" for value in seconds)
    print(f"| ms a round | {shown} | {exponent(numbers, seconds):.2f} |")
    print(f"| peak MB of the driver | {' | '.join(f'{value:,.0f}' for value in driver)} | |")
    print(f"\n{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
