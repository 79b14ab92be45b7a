"""What does a round cost beside its training, and does it grow with the number of clients that there are?

The clients of yardstick/idle.py do nothing: each takes the weights of the CNN (28x28, one channel), and sends back that
they did not change; `memory` has each read and write a record of the model's size, too. `plain` is the least that a
round can be: for each client a loop loads the weights into a model, subtracts, and adds up, with nothing around it.

Each case is a process of its own, and all take turns; the rounds that count follow on some that do not. A case's
number is its median round of the median repeat.

    python benchmarks/overhead.py [--clients 100,10000,100000] [--engines inline,ray-2] [--rounds 50] [--repeats 3]
                                  [--cohort 10]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from round_times import machine

from umbel import Listener, run

BENCHMARKS = Path(__file__).resolve().parent
WARM_ROUNDS, NO_COUNT = 10, 1
STRATEGIES = {"nothing": "yardstick.idle:Idle", "memory": "yardstick.idle:IdleWithMemory"}


class Ends(Listener):
    """Notes when each round ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        self.times.append(time.perf_counter())

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        raise SystemExit(f"Client {client} failed in round {round_}: {reason}")


def overrides(clients: int, cohort: int) -> list[str]:
    """Return the workload: a client has one image."""
    options = f"{{num_examples: {clients}, num_test: 10, num_classes: 10, image_size: 28, in_channels: 1}}"
    return [f"data.num_clients={clients}", f"data.options={options}", f"run.clients_per_round={cohort}"]


def of_umbel(strategy: str, engine: str, clients: int, cohort: int, rounds: int) -> list[float]:
    """Return the seconds of each round that counts."""
    name, _, workers = engine.partition("-")
    ends = Ends()
    with tempfile.TemporaryDirectory() as results:
        asked = [*overrides(clients, cohort), f"strategy.name={STRATEGIES[strategy]}", f"engine.name={name}"]
        asked += [f"engine.workers={workers}"] if workers else []
        run("bench_cnn", *asked, f"run.rounds={WARM_ROUNDS + rounds}", f"run.results={results}", listener=ends)
    return [after - before for before, after in itertools.pairwise(ends.times[WARM_ROUNDS - 1 :])]


def of_loop(cohort: int, rounds: int) -> list[float]:
    """Return the same of a plain loop."""
    import torch

    from umbel.conf.federation import build_model, federation
    from umbel.conf.load import load

    torch.set_num_threads(1)
    experiment = load("bench_cnn", overrides(100, cohort))
    model = build_model(experiment, federation(experiment))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seconds: list[float] = []
    with torch.no_grad():
        for _ in range(WARM_ROUNDS + rounds):
            begin = time.perf_counter()
            sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in weights.items()}
            for _ in range(cohort):
                model.load_state_dict(weights)
                for name, tensor in model.state_dict().items():
                    sums[name] += tensor - weights[name]
            weights = {name: tensor + (sums[name] / cohort).float() for name, tensor in weights.items()}
            seconds.append(time.perf_counter() - begin)
    return seconds[WARM_ROUNDS:]


def measured(case: str, cohort: int, rounds: int) -> float:
    """Measure a case in a process of its own; return the milliseconds of its median round."""
    command = [sys.executable, __file__, "--case", case, "--cohort", str(cohort), "--rounds", str(rounds)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return statistics.median(json.loads(done.stdout.splitlines()[-1])) * 1e3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="100,10000,100000")
    parser.add_argument("--engines", default="inline,processes-2,ray-2")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cohort", type=int, default=10)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case == "plain":
        print(json.dumps(of_loop(asked.cohort, asked.rounds)))
        return
    if asked.case:
        strategy, engine, clients = asked.case.split("/")
        print(json.dumps(of_umbel(strategy, engine, int(clients), asked.cohort, asked.rounds)))
        return
    load = os.getloadavg()[0]
    numbers = asked.clients.split(",")
    products = itertools.product(STRATEGIES, asked.engines.split(","), numbers)
    cases = ["plain", *("/".join(each) for each in products)]
    times: dict[str, list[float]] = {case: [] for case in cases}
    for repeat in range(NO_COUNT + asked.repeats):
        for case in cases[repeat % len(cases) :] + cases[: repeat % len(cases)]:
            taken = measured(case, asked.cohort, asked.rounds)
            if repeat >= NO_COUNT:
                times[case].append(taken)
    medians = {case: statistics.median(taken) for case, taken in times.items()}
    print(machine(load))
    print(f"\nMilliseconds of a round with {asked.cohort} clients; a plain loop: {medians['plain']:.2f}\n")
    print(f"| of how many clients | {' | '.join(f'{number:>8}' for number in numbers)} | growth |")
    print(f"|---|{'---:|' * (len(numbers) + 1)}")
    for strategy, engine in itertools.product(STRATEGIES, asked.engines.split(",")):
        row = [medians[f"{strategy}/{engine}/{number}"] for number in numbers]
        shown = " | ".join(f"{value:8.2f}" for value in row)
        print(f"| {engine}, {strategy} | {shown} | {row[-1] / row[0] - 1:+.0%} |")


if __name__ == "__main__":
    main()
