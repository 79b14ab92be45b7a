"""Does `umbel explain` accuse the clients whose labels are shuffled, and none other?

    python benchmarks/suspects.py digits --seeds 3 --first-seed 10     # about 4 minutes

Each setting is run for three rounds with no client at fault, with one and with two, under FedAvg or FedProx in turn.
All clients are looked at. The table has, for each way to cut the data, how many of the honest clients are accused, in
how many of the runs without a fault any is, and how many of those at fault are found; "too few" are clients that have
fewer than 20 examples, or one class, so that nobody could tell.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from studies import command_line, folder_of, hash_of, kept, publish

from umbel import run
from umbel.conf.load import load
from umbel.simulations.explain import inside
from umbel.simulations.explain.clients import Client, describe
from umbel.simulations.explain.finished import FinishedRun

EXPERIMENT = "digits"
COMMON = ("run.rounds=3", "evaluate.every=3", "evaluate.clients=0", "checkpoint.every=3")
PARTITIONS = {
    "IID": ("data.partition=iid",),
    "Dirichlet 0.5": ("data.alpha=0.5",),
    "Dirichlet 0.1": ("data.alpha=0.1",),
    "quantity skew 0.5": ("data.partition=quantity_skew", "data.alpha=0.5"),
}
MODELS = ("linear", "cnn")
STRATEGIES = ("strategy.name=fedavg", "strategy={name: fedprox, mu: 0.1}")
NUM_CLIENTS = (10, 20)
FAULTS = (0, 1, 2)
PROBE = 256  # held-out images, as `umbel explain` takes
LEAST = 20  # examples among which a shuffled order can be seen


@dataclass(frozen=True)
class Looked:
    """A run, and what was said of its clients.

    Attributes:
        partition: How the data are cut.
        model: The model.
        strategy: What it was trained by.
        num_clients: How many clients there are.
        num_shuffled: How many of them are at fault.
        clients: A row each.
        too_few: Those with too few examples or a single class.
    """

    partition: str
    model: str
    strategy: str
    num_clients: int
    num_shuffled: int
    clients: Sequence[Client]
    too_few: frozenset[int]


def settings(seed: int) -> Iterator[tuple[str, int, str, int, str]]:
    """Return each setting of a seed: partition, clients, model, clients at fault, strategy; strategies take turns."""
    for places in itertools.product(range(len(PARTITIONS)), range(len(NUM_CLIENTS)), range(len(MODELS))):
        partition, number, model = list(PARTITIONS)[places[0]], NUM_CLIENTS[places[1]], MODELS[places[2]]
        for faults in FAULTS:
            yield partition, number, model, faults, STRATEGIES[(seed + sum(places)) % len(STRATEGIES)]


def looked_at(seed: int, folder: Path, partition: str, number: int, model: str, faults: int, strategy: str) -> Looked:
    """Look at all clients of a run, which is run unless it was before."""
    overrides = [
        *COMMON,
        *PARTITIONS[partition],
        f"data.num_clients={number}",
        f"data.num_shuffled={faults}",
        f"model.name={model}",
        strategy,
        f"run.seed={seed}",
        f"run.results={folder}",
    ]
    identity = f"{hash_of(overrides):016x}"
    path = folder / identity
    if not kept(path, load(EXPERIMENT, [*overrides, f"run.name={identity}"])):
        run(EXPERIMENT, *overrides, f"run.name={identity}")
    finished = FinishedRun(path)
    seen = inside.probe(finished, PROBE, 1)
    whole = inside.look(finished.model(finished.state), finished.state, seen, None, finished.state)
    looks = {}
    for client in range(number):
        state = finished.client(client)
        looks[client] = inside.look(finished.model(state), state, seen, None, finished.state)
    few = frozenset(client for client in range(number) if says_little(finished, client))
    return Looked(partition, model, strategy, number, faults, describe(finished, seen, whole, looks), few)


def says_little(finished: FinishedRun, client: int) -> bool:
    """Say whether nobody could tell if a client's labels are shuffled."""
    labels = finished.data.client(client).train.labels
    return len(labels) < LEAST or len(labels.unique()) < 2


def row(title: str, runs: Sequence[Looked]) -> str:
    """Return a row of the table."""
    honest = [client for each in runs for client in each.clients if not client.shuffled]
    without = [any(client.flagged for client in each.clients) for each in runs if each.num_shuffled == 0]
    alarms = sum(client.flagged for client in honest)
    cells = [title, f"{alarms} of {len(honest)}", f"{sum(without)} of {len(without)}"]
    for faults in FAULTS[1:]:
        count = Counter(
            "accused" if client.flagged else "too few" if client.client in each.too_few else "missed"
            for each in runs
            if each.num_shuffled == faults
            for client in each.clients
            if client.shuffled
        )
        cells += [f"{count['accused']} of {count.total()}", str(count["too few"])]
    return f"| {' | '.join(cells)} |"


def table(runs: Sequence[Looked]) -> str:
    """Return the table: by how the data are cut, by model, by strategy, by number of clients, and all."""
    lines = [
        "| | honest clients accused | runs without a fault in which one is | found, one at fault | too few "
        "| found, two at fault | too few |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    groups: Mapping[str, Sequence[str]] = {
        "partition": list(PARTITIONS),
        "model": MODELS,
        "strategy": STRATEGIES,
    }
    for field, names in groups.items():
        lines += [row(f"`{n}`" if "=" in n else n, [r for r in runs if getattr(r, field) == n]) for n in names]
    lines += [row(f"{number} clients", [r for r in runs if r.num_clients == number]) for number in NUM_CLIENTS]
    return "\n".join([*lines, row("all", runs)])


def main() -> None:
    """Run the study and print its table."""
    given = command_line(__doc__, ("digits",)).parse_args()
    folder = folder_of(given)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    runs = [looked_at(seed, folder, *setting) for seed in seeds for setting in settings(seed)]
    publish(given, [table(runs)], unit="Counts")


if __name__ == "__main__":
    main()
