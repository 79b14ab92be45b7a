"""Look inside a finished run: pictures, rows and a summary of what the global model and each client's have learned.

Everything goes into the folder `explain` of the run: `explain.parquet` with rows like those of the metrics,
`explain.json`, and the pictures; a report of the run shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from umbel.conf.errors import ExperimentError
from umbel.core.files import write_json
from umbel.core.memory import MissingMemoryError
from umbel.core.rng import generator
from umbel.data.errors import DataError
from umbel.models.maps import MapLayer
from umbel.server.errors import RunStoppedError
from umbel.server.lock import exclusive
from umbel.server.results import RunFolder
from umbel.simulations.explain import filters, inside, suspects
from umbel.simulations.explain import pictures as inside_pictures
from umbel.simulations.explain.clients import Client, describe
from umbel.simulations.explain.finished import FinishedRun
from umbel.simulations.explain.inside import Look, Probe
from umbel.simulations.plots import runs as plots

FOLDER = "explain"


@dataclass(frozen=True)
class Options:
    """What to look at.

    Attributes:
        clients: Clients that train once more: -1 all, 0 none, else so many, drawn by the seed.
        images: Held-out images in the pictures.
        probe: Held-out images that numbers are taken from.
        shown: Clients in the pictures that have a column a client: those that stand out first.
        layer: The layer whose activations Eigen-CAM reads; empty is the last block with a map of 4 x 4 or more.
    """

    clients: int = 20
    images: int = 6
    probe: int = 256
    shown: int = 4
    layer: str = ""

    def __post_init__(self) -> None:
        for name, least in (("clients", -1), ("images", 1), ("probe", 1), ("shown", 0)):
            if getattr(self, name) < least:
                raise ExperimentError(f"--{name} should be at least {least}, found {getattr(self, name)}.")


@dataclass(frozen=True)
class Inside:
    """What was found.

    Attributes:
        path: The folder that it was written to.
        clients: A row each.
        notes: What was left out and why, in sentences.
        pictures: File name and what it shows, of each picture.
    """

    path: Path
    clients: Sequence[Client]
    notes: Sequence[str]
    pictures: Sequence[tuple[str, str]]


Told = Callable[[int, int], None]  # clients done, of how many


def explain(
    folder: str | Path, options: Options | None = None, output: Path | None = None, told: Told | None = None
) -> Inside:
    """Look inside a finished run and write down what is seen.

    Args:
        folder: The run's folder.
        options: What to look at.
        output: Where to write; None is `explain` in the run's folder.
        told: Told of each client that is done.

    Raises:
        ExperimentError: There is no such run, it has not ended, or has nothing of this kind to look into.
        umbel.core.names.UnknownNameError: There is no layer of that name with a map.
    """
    options = options or Options()
    run = FinishedRun(folder)
    seen = inside.probe(run, options.probe, options.images)
    layer, reason = inside.layer_of(run, options.layer)
    notes = [f"No Eigen-CAM: {reason}."] if layer is None else []
    try:
        whole = inside.look(run.model(run.state), run.state, seen, layer, run.state)
    except ValueError as error:
        raise ExperimentError(f"There is nothing to see in the global model of {run.path}: {error}.") from error
    looks, failed = _looks(run, _chosen(run, options.clients), seen, layer, told or (lambda done, of: None))
    notes += failed
    if looks and not run.from_checkpoint:
        notes.append("Without a checkpoint clients trained the final model by their local loss alone.")
    if not whole.layers:
        notes.append("No statistics of filters: the model has no 3 x 3 kernels.")
    if not whole.attention:
        notes.append("No maps of attention or gates: the model computes none over places of the image.")
    clients = describe(run, seen, whole, looks)
    notes += _not_judged(clients)
    path = (output or run.path / FOLDER).expanduser().resolve()
    path.mkdir(parents=True, exist_ok=True)
    try:
        with exclusive(path):
            return _write(run, path, seen, layer, whole, looks, clients, notes, options)
    except RunStoppedError as error:
        raise ExperimentError(f"Another process writes to {path}; wait for its end, or give --output.") from error


def _write(
    run: FinishedRun,
    path: Path,
    seen: Probe,
    layer: MapLayer | None,
    whole: Look,
    looks: Mapping[int, Look],
    clients: Sequence[Client],
    notes: Sequence[str],
    options: Options,
) -> Inside:
    """Draw and write everything, the summary last: without it a report shows nothing of what was left half done."""
    (path / "explain.json").unlink(missing_ok=True)
    for old in path.glob("*.png"):
        if old.stem in inside_pictures.NAMES:  # of an earlier look, which may have had other pictures
            old.unlink()
    drawn = []
    metrics = pd.read_parquet(run.path / "metrics.parquet")
    for name, figure, alternative in inside_pictures.draw(
        run, seen, layer, whole, looks, clients, metrics, options.shown
    ):
        plots.save(figure, path / f"{name}.png")
        drawn.append((f"{name}.png", alternative))
    _write_rows(run, path, seen.split, whole, looks, clients)
    result = Inside(path, clients, notes, drawn)
    write_json(path / "explain.json", _summary(run, seen, layer.name if layer else "", result))
    return result


def _not_judged(clients: Sequence[Client]) -> list[str]:
    """Say of whose labels nothing is said, and why."""
    silent = [str(row.client) for row in clients if row.labels is None]
    notes = []
    if silent:
        who = "client" if len(silent) == 1 else "clients"
        notes.append(
            f"The labels of {who} {', '.join(silent)} are not judged: fewer than two of the classes are among the "
            "held-out images, or a model answers the same to all."
        )
    if clients and len(clients) - len(silent) < suspects.FEWEST:
        notes.append(f"No client is accused: that takes {suspects.FEWEST} clients whose labels can be compared.")
    return notes


def _chosen(run: FinishedRun, number: int) -> list[int]:
    everyone = run.data.num_clients
    if number < 0 or number >= everyone:
        return list(range(everyone))
    source = generator(run.experiment.run.seed, purpose="explain clients")
    return sorted(torch.randperm(everyone, generator=source)[:number].tolist())


def _looks(
    run: FinishedRun, chosen: Sequence[int], seen: Probe, layer: MapLayer | None, told: Told
) -> tuple[dict[int, Look], list[str]]:
    """Let each client train once more and look inside its model; a client that fails costs itself alone."""
    looks, notes = {}, []
    for done, client in enumerate(chosen, start=1):
        try:
            state = run.client(client)
            looks[client] = inside.look(run.model(state), state, seen, layer, run.state)
        except ExperimentError:  # of the run, not of this client
            raise
        except (MissingMemoryError, DataError, ValueError) as error:
            notes.append(f"Client {client} is left out: {error}")
        told(done, len(chosen))
    return looks, notes


def _write_rows(
    run: FinishedRun, path: Path, split: str, whole: Look, looks: Mapping[int, Look], clients: Sequence[Client]
) -> None:
    """Write explain.parquet: the columns of metrics.parquet, `round` the run's last."""
    rows = RunFolder(path, run.experiment, run.path.name)

    def add(side: str, values: Mapping[str, float], client: int = -1) -> None:
        rows.add(run.rounds, side, split, values, 0.0, client)

    add("server", _of_look(whole))
    for row in clients:
        own = {
            name: value
            for name, value in asdict(row).items()
            if name not in ("client", "accuracy") and value is not None
        }
        add(
            "client",
            _of_look(looks[row.client]) | {f"client/{name}": float(value) for name, value in own.items()},
            row.client,
        )
    rows.write_metrics("explain.parquet")


def _of_look(look: Look) -> dict[str, float]:
    values = {"accuracy": look.accuracy} | {f"collapse/{name}": value for name, value in look.collapse.items()}
    for layer, each in look.layers.items():
        values |= {f"filters/{layer}/sparsity": each.sparsity, f"filters/{layer}/entropy": each.entropy}
    return values | {f"locality/{layer}": value for layer, value in look.locality.items()}


def _summary(run: FinishedRun, seen: Probe, layer: str, result: Inside) -> dict[str, Any]:
    return {
        "run": run.path.name,
        "strategy": run.experiment.strategy.name,
        "seed": run.experiment.run.seed,
        "round": run.rounds,
        "weights_sha256": run.summary["weights_sha256"],
        "split": seen.split,
        "num_images": len(seen.labels),
        "layer": layer,
        "threshold": filters.THRESHOLD,
        "flagged": [row.client for row in result.clients if row.flagged],
        "shuffled": list(run.data.shuffled_clients),
        "clients": [asdict(row) for row in result.clients],
        "notes": list(result.notes),
        "pictures": [list(picture) for picture in result.pictures],
    }
