"""A run's folder: configuration, environment, metrics, model, summary."""

from __future__ import annotations

import platform
import subprocess
import time
import uuid
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

import umbel
from umbel.conf.load import as_yaml
from umbel.conf.schema import Experiment
from umbel.core.files import read_json, write_bytes, write_json, write_tensors, write_text
from umbel.core.kernels import kernels
from umbel.core.tree import sha256

SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("strategy", pa.string()),
        ("seed", pa.int64()),
        ("round", pa.int64()),
        ("side", pa.string()),
        ("client", pa.int64()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("seconds", pa.float64()),
    ]
)
_PACKAGES = (
    "flwr",
    "ray",
    "torch",
    "numpy",
    "grpcio",
    "omegaconf",
    "flwr-datasets",
    "safetensors",
    "pyarrow",
    "onnxruntime",
    "transformers",
)


def new_folder(experiment: Experiment) -> Path:
    """Make the folder of a new run and return its absolute path.

    Raises:
        FileExistsError: `run.name` names a folder that is there already.
    """
    root = Path(experiment.run.results).expanduser().resolve()
    root.mkdir(parents=True, exist_ok=True)
    if experiment.run.name:
        folder = root / experiment.run.name
        if folder.exists():
            raise FileExistsError(
                f"{folder} is there already. Choose another run.name, or go on with it: umbel resume {folder}"
            )
        folder.mkdir()
        return folder
    strategy = experiment.strategy.name.replace(":", "-").replace("/", "-")
    stem = f"{experiment.name}-{strategy}-s{experiment.run.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    for attempt in range(1000):
        folder = root / (stem if not attempt else f"{stem}-{attempt + 1}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue  # another run of this experiment began within the same second
        return folder
    raise FileExistsError(f"{root} has a thousand runs called {stem}.")


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

    def begin(self) -> str:
        """Write configuration and environment; return the run's identity."""
        write_text(self.path / "config.yaml", as_yaml(self.experiment))
        write_json(self.path / "env.json", environment())
        identity = f"{self.path.name}-{uuid.uuid4().hex[:12]}"
        write_json(self.path / "run.json", {"id": identity})
        return identity

    def identity(self) -> str:
        """Return the run's identity."""
        return str(read_json(self.path / "run.json")["id"])

    def add(
        self,
        round_: int,
        side: str,
        split: str,
        values: Mapping[str, float],
        seconds: float,
        client: int = -1,
    ) -> None:
        """Add metrics: one row each.

        Args:
            round_: Round.
            side: `server`, `client` (one client), or `clients` (over clients).
            split: `train`, `validation`, `test`, or `all`.
            values: Value of each metric.
            seconds: Time since the run began.
            client: The client, or -1.
        """
        config = self.experiment
        head = (self._run, config.strategy.name, config.run.seed, round_, side, client, split)
        self._rows.extend((*head, metric, float(value), seconds) for metric, value in values.items())

    def write_metrics(self, name: str = "metrics.parquet") -> None:
        """Write a file with all rows so far."""
        columns = list(zip(*self._rows, strict=True)) or [()] * len(SCHEMA)
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), sink)
        write_bytes(self.path / name, sink.getvalue().to_pybytes())

    def read_metrics(self, last_round: int) -> None:
        """Take over the rows that are on disk up to a round: what a resume goes on from."""
        path = self.path / "metrics.parquet"
        if path.is_file():
            rows = pq.read_table(path).to_pylist()
            self._rows = [tuple(row[name] for name in SCHEMA.names) for row in rows if row["round"] <= last_round]

    def write_model(self, state: Mapping[str, Tensor], name: str = "model.safetensors") -> str:
        """Write a model and return the SHA-256 of its tensors."""
        write_tensors(self.path / name, state)
        return sha256(state)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_json(self.path / "summary.json", dict(summary))


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
