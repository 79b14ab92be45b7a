"""A run's folder: configuration, environment, metrics, model, summary."""

from __future__ import annotations

import errno
import hashlib
import platform
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

import umbel
from umbel.conf.load import as_yaml
from umbel.conf.schema import Experiment
from umbel.core.files import (
    file_sha256,
    plain,
    write_bytes,
    write_json,
    write_sealed,
    write_tensors,
    write_text,
)
from umbel.core.kernels import kernels
from umbel.core.leftovers import beside
from umbel.core.names import file_stem
from umbel.core.tree import sha256
from umbel.models.card import MODEL, Card
from umbel.server import reading
from umbel.server.errors import StopRequested
from umbel.server.sources import sources

_LONGEST_NAME = 80  # file systems take 255 bytes

SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("strategy", pa.string()),
        ("seed", pa.int64()),
        ("round", pa.int64()),
        ("side", pa.string()),
        ("client", pa.int64()),
        ("split", pa.string()),
        ("phase", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("seconds", pa.float64()),
    ]
)
_MOST_LETTERS = 2**31 - 1  # bytes of a column's text in one piece
_PACKAGES = (
    "flwr",
    "ray",
    "torch",
    "numpy",
    "grpcio",
    "flwr-datasets",
    "safetensors",
    "pyarrow",
    "onnxruntime",
    "transformers",
)


def new_folder(experiment: Experiment, place: str = "run") -> Path:
    """Make the folder of a new run and return its absolute path.

    It is there with all that a resume needs, or not at all.

    Args:
        experiment: The experiment.
        place: Where the clients' memory lives: `run`, in the folder, or `nodes`.

    Raises:
        FileExistsError: `run.name` names a folder that is there already.
    """
    root = Path(experiment.run.results).expanduser().resolve()
    root.mkdir(parents=True, exist_ok=True)
    strategy = experiment.strategy.name.replace(":", "-").replace("/", "-")
    stem = f"{file_stem(experiment.name)}-{strategy}-s{experiment.run.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = root / (experiment.run.name or stem)
    part = beside(folder)
    part.mkdir()
    try:
        _begin(part, folder.name, experiment, place)
        if experiment.run.name:
            if folder.exists() or not _moved(part, folder):
                raise FileExistsError(
                    f"{folder} is there already. Choose another run.name, or go on with it: umbel resume {folder}"
                )
            return folder
        for attempt in range(1000):  # other runs of this experiment may have begun within the same second
            folder = root / (stem if not attempt else f"{stem}-{attempt + 1}")
            if not folder.exists() and _moved(part, folder):
                return folder
        raise FileExistsError(f"{root} has a thousand runs called {stem}.")
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _begin(folder: Path, run: str, experiment: Experiment, place: str) -> None:
    """Write what a run is known by: configuration, environment, identity, place of the clients' memory."""
    write_text(folder / "config.yaml", as_yaml(experiment))
    client = experiment.client
    modes = {"channels_last": client.channels_last, "compile": client.compile, "together": client.together}
    write_json(folder / "env.json", environment() | {"modes": modes, "sources": sources(experiment)})
    write_sealed(folder / "memory.json", {"place": place})
    # Nodes make a folder of it, each on its own machine.
    name = re.sub(r"[^\w.-]+", "-", run).lstrip(".-")[:_LONGEST_NAME]
    identity = f"{name or 'run'}-{uuid.uuid4().hex[:12]}"
    write_sealed(folder / "run.json", {"id": identity, "config_sha256": [file_sha256(folder / "config.yaml")]})


def _moved(part: Path, folder: Path) -> bool:
    """Give a folder its name; False where somebody else was faster."""
    try:
        part.rename(folder)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise
    return True


class RunFolder:
    """Writes what a run leaves behind.

    Args:
        path: The folder.
        experiment: The experiment.
        run: What its rows call the run; empty is the folder's name.
    """

    def __init__(self, path: Path, experiment: Experiment, run: str = "") -> None:
        self.path = path
        self.experiment = experiment
        self._run = run or path.name
        self._rows: list[tuple[Any, ...]] = []

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def stop_file(self) -> Path:
        """A file that asks the run to stop."""
        return self.path / "stop"

    def look_for_stop(self) -> None:
        """Raise `StopRequested` when somebody asked the run to stop; the request is then taken."""
        if self.stop_file.exists():
            self.stop_file.unlink(missing_ok=True)
            raise StopRequested

    def identity(self) -> str:
        """Return the run's identity.

        Raises:
            DamagedError: run.json is not what was written.
        """
        return str(reading.identity(self.path)["id"])

    def go_on(self, num_done: int) -> None:
        """Make the folder that of a run that goes on, now that nothing is left that could refuse it.

        An experiment that has changed in what may change is written down; whatever happens meanwhile, one of both
        holds.

        Args:
            num_done: Rounds that are done. Where more are to come, how the run had ended is no longer how it ends.

        Raises:
            DamagedError: run.json is not what was written.
        """
        if num_done < self.experiment.run.rounds:
            (self.path / reading.SUMMARY).unlink(missing_ok=True)
        text = as_yaml(self.experiment)
        file, content = self.path / "config.yaml", reading.identity(self.path)
        if text == file.read_text(encoding="utf-8"):
            return
        known = [file_sha256(file), hashlib.sha256(text.encode()).hexdigest()]
        write_sealed(self.path / "run.json", content | {"config_sha256": known})
        write_text(file, text)

    def add(
        self,
        round_: int,
        side: str,
        split: str,
        values: Mapping[str, float],
        seconds: float,
        client: int = -1,
        phase: str = "",
    ) -> None:
        """Add metrics: one row each.

        Args:
            round_: Round.
            side: `server`, `client` (one client), or `clients` (over clients).
            split: `train`, `validation`, `test`, `all`, or `costs`, what the run has cost up to then.
            values: Value of each metric.
            seconds: Time since the run began.
            client: The client, or -1.
            phase: The phase of the round, where a round may have the same metric in several.
        """
        config = self.experiment
        head = (self._run, config.strategy.name, config.run.seed, round_, side, client, split, phase)
        self._rows.extend((*head, metric, float(value), seconds) for metric, value in values.items())

    def metrics(self, last_round: int | None = None) -> bytes:
        """Return a Parquet file of all rows up to a round; None takes what the round under way has measured, too."""
        place = SCHEMA.get_field_index("round")
        rows = [row for row in self._rows if last_round is None or row[place] <= last_round]
        columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
        arrays = [_column(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), sink)
        return bytes(sink.getvalue())

    def write_metrics(self, name: str = "metrics.parquet") -> None:
        """Write a file with all rows so far."""
        write_bytes(self.path / name, self.metrics())

    def take_metrics(self, rows: pa.Table) -> None:
        """Take over rows: those of a checkpoint, which a resume goes on from."""
        self._rows = [tuple(row[name] for name in SCHEMA.names) for row in rows.to_pylist()]

    def write_model(self, state: Mapping[str, Tensor], name: str = MODEL, card: Card | None = None) -> str:
        """Write a model, with what says what it is, and return the SHA-256 of its tensors."""
        digest = sha256(state)
        metadata = replace(card, weights_sha256=digest).metadata() if card else None
        write_tensors(self.path / name, state, metadata)
        return digest

    def write_confusion(self, text: str) -> None:
        """Write what the server's test examples were taken for; where that is not known, no earlier one stays."""
        if text:
            write_text(self.path / reading.CONFUSION, text)
        else:
            (self.path / reading.CONFUSION).unlink(missing_ok=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, with the hashes of the files that are read beside it."""
        files = {name: file_sha256(path) for name in reading.FILES if (path := self.path / name).is_file()}
        write_sealed(self.path / reading.SUMMARY, plain({**summary, "files_sha256": files}))


def environment() -> dict[str, Any]:
    """Return versions, hardware, the kernels that decide about rounding, and git commit."""
    versions: dict[str, str | None] = {}
    for package in ("umbel", *_PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": torch.multiprocessing.cpu_count(),
        "gpus": gpus,
        "threads": torch.get_num_threads(),
        "kernels": kernels(),
        "versions": versions,
        "git_commit": _git_commit(),
    }


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git_commit() -> str | None:
    """Return the commit of the source tree, with `+` when there are changes, or None outside a checkout."""
    root = Path(umbel.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(  # noqa: S603
            ["git", "-C", str(root), "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip
        changed = subprocess.run(  # noqa: S603
            ["git", "-C", str(root), "status", "--porcelain"],  # noqa: S607
            capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return what `pa.array` does of texts, whole numbers or reals; that would first import pandas, if it is there."""
    if not pa.types.is_string(kind):
        numbers = np.array(values, dtype=np.int64 if pa.types.is_integer(kind) else np.float64)
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(numbers)])
    texts = [str(value).encode() for value in values]
    ends = np.cumsum([0, *map(len, texts)])
    if ends[-1] > _MOST_LETTERS:
        return pa.array(values, type=kind)  # in several pieces
    ends = ends.astype(np.int32)
    return pa.Array.from_buffers(kind, len(texts), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))])
