"""How long does a simulation take beside the same arithmetic in a plain PyTorch loop, and beside stock Flower?

Workload (experiment `bench_cnn`): 100 clients x 64 synthetic images 1x28x28 of 10 classes, the CNN, 10 clients a
round, 1 epoch, batch 16, SGD 0.05, 10 rounds = 400 steps, no evaluation. Each contender runs in a process of its
own, in turn, and is repeated; the table has the median of the time for the rounds (after everything has started)
and of the whole process, and their ratios to the plain loop.

    python benchmarks/simulation.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

CONTENDERS = ("plain", "umbel-inline", "umbel-ray-1", "umbel-ray-2", "flower")
NUM_CLIENTS, CLIENTS_PER_ROUND, ROUNDS, BATCH, LR = 100, 10, 10, 16, 0.05


def plain() -> float:
    """Train with a loop that knows nothing of federations but the weighted mean; return seconds for the rounds."""
    import torch
    import torch.nn.functional as F

    from umbel.conf.federation import build_model, federation
    from umbel.conf.load import load
    from umbel.data.transforms import normalize

    torch.set_num_threads(1)
    experiment = load("bench_cnn")
    data = federation(experiment)
    model = build_model(experiment, data)
    clients = []
    for k in range(NUM_CLIENTS):
        examples = data.client(k).train
        clients.append((normalize(examples.images, data.mean, data.std), examples.labels))
    start = time.perf_counter()
    weights = {name: p.detach().clone() for name, p in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(ROUNDS):
        total = {name: torch.zeros_like(p) for name, p in weights.items()}
        seen = 0
        for k in torch.randperm(NUM_CLIENTS, generator=generator)[:CLIENTS_PER_ROUND].tolist():
            x, y = clients[k]
            model.load_state_dict(weights)
            optimizer = torch.optim.SGD(model.parameters(), lr=LR)
            order = torch.randperm(len(y), generator=generator)
            for index in order.split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(x[index]), y[index]).backward()
                optimizer.step()
            for name, p in model.state_dict().items():
                total[name] += len(y) * p
            seen += len(y)
        weights = {name: p / seen for name, p in total.items()}
    return time.perf_counter() - start


def umbel(*overrides: str) -> float:
    """Run `bench_cnn`; return seconds for the rounds."""
    from umbel import run

    with tempfile.TemporaryDirectory() as folder:
        result = run("bench_cnn", f"run.results={folder}", *overrides)
        seconds = result.summary["seconds"]
        return float(seconds["total"] - seconds["setup"])


def flower() -> float:
    """Run the same workload as a stock Flower app in Flower's own simulation; return seconds for the rounds."""
    import logging

    import torch
    import torch.nn.functional as F
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    from umbel.conf.federation import build_model, federation
    from umbel.conf.load import load
    from umbel.data.transforms import normalize

    logging.getLogger("flwr").setLevel(logging.ERROR)
    client_app = ClientApp()
    seconds = []

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        experiment = load("bench_cnn")
        data = federation(experiment)  # cached in the worker
        examples = data.client(int(context.node_config["partition-id"])).train
        x, y = normalize(examples.images, data.mean, data.std), examples.labels
        model = build_model(experiment, data)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        for index in torch.randperm(len(y)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
        content = RecordDict(
            {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(y)})}
        )
        return Message(content, reply_to=message)

    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        experiment = load("bench_cnn")
        model = build_model(experiment, federation(experiment))
        strategy = FedAvg(
            fraction_train=CLIENTS_PER_ROUND / NUM_CLIENTS, fraction_evaluate=0.0, min_available_nodes=NUM_CLIENTS
        )
        arrays = ArrayRecord(model.state_dict())
        strategy.start(grid, arrays, num_rounds=1)  # workers start and import in this round, which is not counted
        start = time.perf_counter()
        strategy.start(grid, arrays, num_rounds=ROUNDS)
        seconds.append(time.perf_counter() - start)

    run_simulation(
        server_app,
        client_app,
        num_supernodes=NUM_CLIENTS,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}},
    )
    return seconds[0]


RUNNERS: dict[str, Callable[[], float]] = {
    "plain": plain,
    "umbel-inline": umbel,
    "umbel-ray-1": lambda: umbel("engine.name=ray", "engine.workers=1"),
    "umbel-ray-2": lambda: umbel("engine.name=ray", "engine.workers=2"),
    "flower": flower,
}


def measure(contender: str) -> tuple[float, float]:
    """Run one contender in a process of its own; return (seconds for the rounds, seconds for the process)."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--one", contender], capture_output=True, text=True, timeout=600, check=False
    )
    whole = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{contender} failed:\n{done.stderr[-3000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["rounds"]), whole


def main() -> None:
    """Measure all contenders in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps({"rounds": RUNNERS[arguments.one]()}))
        return
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    for repeat in range(arguments.repeats):
        for name in CONTENDERS:
            times[name].append(measure(name))
            rounds, whole = times[name][-1]
            print(f"repeat {repeat + 1}: {name}: rounds {rounds:.2f} s, process {whole:.2f} s", file=sys.stderr)
    print_table(times)


def print_table(times: dict[str, list[tuple[float, float]]]) -> None:
    """Print medians, ranges and ratios, and what they were measured on."""
    from umbel.server.results import environment

    env = environment()
    versions = ", ".join(f"{name} {version}" for name, version in env["versions"].items() if version)
    print(f"{env['processor']}, {env['cpus']} CPUs, Python {env['python']}; {versions}\n")
    print("| contender | rounds (s) | range | ratio to plain | process (s) | ratio to plain |")
    print("|---|---|---|---|---|---|")
    base_rounds = statistics.median(r for r, _ in times["plain"])
    base_whole = statistics.median(w for _, w in times["plain"])
    for name, measured in times.items():
        rounds, whole = [r for r, _ in measured], [w for _, w in measured]
        middle, middle_whole = statistics.median(rounds), statistics.median(whole)
        print(
            f"| {name} | {middle:.2f} | {min(rounds):.2f}-{max(rounds):.2f} | {middle / base_rounds:.2f} "
            f"| {middle_whole:.2f} | {middle_whole / base_whole:.2f} |"
        )


if __name__ == "__main__":
    main()
