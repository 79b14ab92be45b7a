"""Do drifted filters say which client has shuffled labels?

    python benchmarks/drift.py late --seeds 3     # the preset `shuffled_labels`: Adam, after 20 rounds
    python benchmarks/drift.py early --seeds 3    # the same after 3 rounds
    python benchmarks/drift.py sgd --seeds 3      # with plain SGD, after 20 rounds

For each seed the experiment is run twice, with one client at fault and with none, and `umbel explain` looks at all
clients of both runs. A client is flagged whose robust z-score is above 3.5, by the drift of its filters, and for
comparison by plain lengths: of the change of its 3 x 3 kernels, and of its whole update. The tables say whether the one
at fault was flagged, its score beside the highest score of an honest client, and how many honest clients were flagged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies import command_line, folder_of, hash_of, kept, publish

from umbel import run
from umbel.conf.load import load
from umbel.core.files import read_json
from umbel.simulations.explain.filters import THRESHOLD
from umbel.simulations.explain.look import Options, explain

EXPERIMENT = "shuffled_labels"
STUDIES = {
    "late": (),
    "early": ("run.rounds=3", "checkpoint.every=3"),
    "sgd": ("client.optimizer=sgd", "client.lr=0.05"),
}
FAULTS = (1, 0)  # clients with shuffled labels
SCORES = {
    "drift of filters": "drift_z",
    "length of the change of 3 x 3 kernels": "kernels_z",
    "length of the whole update": "update_z",
}


def looked_at(study: str, num_shuffled: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Return what is said of each client of a run, which is run unless it was before."""
    overrides = [f"data.num_shuffled={num_shuffled}", *STUDIES[study], f"run.seed={seed}", f"run.results={folder}"]
    identity = f"{hash_of(overrides):016x}"
    path = folder / identity
    if not kept(path, load(EXPERIMENT, [*overrides, f"run.name={identity}"])):
        run(EXPERIMENT, *overrides, f"run.name={identity}")
    explain(path, Options(clients=-1))
    clients: list[dict[str, Any]] = read_json(path / "explain" / "explain.json")["clients"]
    return clients


def row(seed: int, num_shuffled: int, clients: Sequence[dict[str, Any]], score: str) -> tuple[list[str], int, int, int]:
    """Return a row of the table, and how many were flagged of those at fault and of the honest, and the honest."""
    guilty = [each[score] for each in clients if each["shuffled"]]
    honest = [each[score] for each in clients if not each["shuffled"]]
    caught, alarms = sum(z > THRESHOLD for z in guilty), sum(z > THRESHOLD for z in honest)
    cells = [str(seed), str(num_shuffled), ", ".join(f"{z:+.1f}" for z in guilty) or "–", f"{max(honest):+.1f}"]
    return [*cells, f"{caught} of {len(guilty)}", f"{alarms} of {len(honest)}"], caught, alarms, len(honest)


def table(scores: dict[tuple[int, int], list[dict[str, Any]]], what: str) -> str:
    """Return the table of one score."""
    lines = [
        f"By the {what}:",
        "",
        "| seed | clients at fault | their z | highest z of an honest client | flagged | false alarms |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    caught = guilty = alarms = honest = 0
    for (seed, num_shuffled), clients in scores.items():
        cells, *counts = row(seed, num_shuffled, clients, SCORES[what])
        lines.append(f"| {' | '.join(cells)} |")
        caught, alarms, honest = caught + counts[0], alarms + counts[1], honest + counts[2]
        guilty += num_shuffled
    lines.append(f"| all | | | | {caught} of {guilty} | {alarms} of {honest} ({alarms / honest:.1%}) |")
    return "\n".join(lines)


def main() -> None:
    """Run the study and print its tables."""
    given = command_line(__doc__, STUDIES).parse_args()
    folder = folder_of(given)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    scores = {(s, n): looked_at(given.study, n, s, folder) for s in seeds for n in FAULTS}
    publish(given, [table(scores, what) for what in SCORES], unit="Robust z-scores")


if __name__ == "__main__":
    main()
