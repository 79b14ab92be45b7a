"""A run's folder, read again: each piece is what was written, or is refused with its name and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.conf.schema import Experiment
from umbel.core.files import DamagedError, file_sha256, read_json, read_sealed, read_tensors
from umbel.core.metrics.confusion import from_csv

SUMMARY = "summary.json"
METRICS = "metrics.parquet"
MODEL = "model.safetensors"
CONFUSION = "confusion.csv"
# What is read beside the summary, which has the hash of each.
FILES = ("config.yaml", METRICS, MODEL, "best.safetensors", "representations.safetensors", CONFUSION)
_COPY = "Bring it back from a copy, or run the experiment again."
_GO_ON = "Bring it back from a copy, or make it again of the last checkpoint: umbel resume {}"


def is_run(folder: Path) -> None:
    """Refuse what is no run's folder.

    Raises:
        ExperimentError: It has no config.yaml.
    """
    if not (folder / "config.yaml").is_file():
        raise ExperimentError(f"{folder} is no run: it has no config.yaml.", remedy="Give the folder of one.")


def identity(folder: Path) -> dict[str, Any]:
    """Return what a run is known by: its `id`, and `config_sha256`, hashes that its configuration may have.

    Raises:
        DamagedError: run.json is not what was written.
    """
    file = folder / "run.json"
    try:
        content = read_sealed(file)
        return {"id": str(content["id"]), "config_sha256": list(content["config_sha256"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError.of(file, str(error), _COPY) from error


def memory_place(folder: Path) -> str:
    """Return where the clients' memory of a run lives: `run`, or `nodes`.

    Raises:
        DamagedError: memory.json is not what was written.
    """
    file = folder / "memory.json"
    try:
        return str(read_sealed(file)["place"])
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise DamagedError.of(file, str(error), _COPY) from error


def configuration(folder: Path) -> str:
    """Return the text of a run's config.yaml, which has the hash that the run knows.

    Raises:
        ExperimentError: The folder is no run's.
        DamagedError: config.yaml or run.json is not what was written.
    """
    is_run(folder)
    file = folder / "config.yaml"
    if file_sha256(file) not in identity(folder)["config_sha256"]:
        remedy = f"Undo the change, or start a new run with it: umbel run {file}"
        raise DamagedError.of(file, "it is not the configuration that this run began with", remedy)
    return file.read_text(encoding="utf-8")


def experiment(folder: Path) -> Experiment:
    """Return the experiment of a run.

    Raises:
        ExperimentError: The folder is no run's, or this umbel refuses its experiment.
        DamagedError: config.yaml or run.json is not what was written.
    """
    return load("config", (), configuration(folder))


def summary(folder: Path) -> Mapping[str, Any]:
    """Read the summary of a run that has ended.

    Raises:
        ExperimentError: The run has not ended; the message says how to go on.
        DamagedError: summary.json is not what was written.
    """
    file = folder / SUMMARY
    if not file.is_file():
        raise ExperimentError(f"{folder} has no {SUMMARY}: the run has not ended.", remedy=f"umbel resume {folder}")
    try:
        return read_sealed(file)
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError.of(file, str(error), _GO_ON.format(folder)) from error


def checked(folder: Path, name: str) -> Path:
    """Return the path of one of `FILES`, which is what the run wrote.

    Raises:
        ExperimentError: The run has not ended.
        DamagedError: It is not, or the summary is not.
    """
    file, expected = folder / name, summary(folder)["files_sha256"].get(name)
    if expected is None or not file.is_file():
        raise DamagedError.of(file, "it is not there", _GO_ON.format(folder))
    if file_sha256(file) != expected:
        raise DamagedError.of(file, f"it does not have the hash that {SUMMARY} says", _GO_ON.format(folder))
    return file


def metrics(folder: Path) -> pa.Table:
    """Return all metrics of a run that has ended, long and tidy.

    Raises:
        ExperimentError: The run has not ended.
        DamagedError: The file is not what was written.
    """
    return pq.read_table(checked(folder, METRICS))


def confusion(folder: Path) -> Tensor | None:
    """Return what the server's test examples were taken for in the last evaluation of a run that has ended.

    Returns:
        As `umbel.core.metrics.confusion.Confusion.counts`; None where the run has none, or an older umbel wrote it.

    Raises:
        ExperimentError: The run has not ended.
        DamagedError: The file is not what was written.
    """
    if CONFUSION not in summary(folder)["files_sha256"]:
        return None
    return from_csv(checked(folder, CONFUSION).read_text(encoding="utf-8"))


def model(folder: Path) -> dict[str, Tensor]:
    """Return the generic model of a run that has ended.

    Raises:
        ExperimentError: The run has not ended.
        DamagedError: The file is not what was written.
    """
    return read_tensors(checked(folder, MODEL))[0]


def environment(folder: Path) -> dict[str, Any]:
    """Return what is known of where a run began.

    Raises:
        DamagedError: env.json cannot be read.
    """
    file = folder / "env.json"
    try:
        content = read_json(file)
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError, RecursionError) as error:
        remedy = "Bring it back from a copy, or write {} into it; no number depends on it."
        raise DamagedError.of(file, str(error), remedy) from error
    return content
