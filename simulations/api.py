"""Run an experiment from Python; the command line does the same."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from umbel import data
from umbel.conf.errors import ExperimentError
from umbel.conf.load import as_yaml, load
from umbel.conf.schema import Experiment
from umbel.core.files import read_json, write_json
from umbel.core.refusal import REFUSALS
from umbel.server.flower import strategies as flower
from umbel.server.listener import Listener, has_begun
from umbel.server.main import execute, summary
from umbel.server.port import Port
from umbel.server.results import new_folder
from umbel.simulations.engines.inline import InlinePort


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        path: The run's folder.
    """

    path: Path

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """Content of summary.json."""
        return summary(self.path)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """All metrics, long and tidy."""
        return pd.read_parquet(self.path / "metrics.parquet")


def run(experiment: str | Experiment, *overrides: str, listener: Listener | None = None) -> RunResult:
    """Run an experiment on the engine that it names.

    Args:
        experiment: Name of a shipped experiment, path of a YAML file, or an `Experiment`.
        overrides: `key=value` each.
        listener: Told of everything that happens.

    Raises:
        Refusal: The experiment is refused; nothing has started, and no folder is left.
        RunStoppedError: The run could not go on; everything up to the last completed round is saved.
    """
    if isinstance(experiment, Experiment):
        if overrides:
            raise ExperimentError("Overrides go with an experiment's name or path, not with a composed one.")
        composed = experiment
    else:
        composed = load(experiment, overrides)
    flower.check(composed)
    data.check(composed.data)
    folder = new_folder(composed)
    try:
        return _start(composed, listener or Listener(), folder, resuming=False)
    except REFUSALS:
        if not has_begun(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def resume(folder: str | Path, *overrides: str, listener: Listener | None = None) -> RunResult:
    """Go on with a run from its last checkpoint; it ends with the bits of one that was never interrupted.

    Args:
        folder: The run's folder.
        overrides: What may change: `run.rounds`, and everything of `engine` and `checkpoint`.
        listener: Told of everything that happens.

    Raises:
        ExperimentError: There is no such run, or an override would change the experiment.
    """
    path = Path(folder).expanduser().resolve()
    config = path / "config.yaml"
    if not config.is_file():
        raise ExperimentError(f"{path} is no run: it has no config.yaml.")
    for override in overrides:
        key = override.partition("=")[0]
        if key != "run.rounds" and key.partition(".")[0] not in ("engine", "checkpoint"):
            raise ExperimentError(
                f"{key} cannot change in the middle of a run; run.rounds, engine.*, checkpoint.* can."
            )
    text = config.read_text(encoding="utf-8")
    composed = load(config.stem, overrides, text)
    (path / "stop").unlink(missing_ok=True)
    return _start(composed, listener or Listener(), path, resuming=True)


def run_config(experiment: Experiment) -> dict[str, Any]:
    """Return the run configuration that travels to both apps: the resolved YAML as text."""
    return {"experiment": experiment.name, "overrides": "", "experiment-yaml": as_yaml(experiment)}


def _start(experiment: Experiment, listener: Listener, folder: Path, resuming: bool) -> RunResult:
    # Absolute, because workers and nodes have current folders of their own.
    absolute = replace(experiment.run, results=str(folder.parent))
    experiment = replace(experiment, run=absolute)
    _check_memory_place(experiment, folder, resuming)
    if experiment.engine.name == "grpc":
        from umbel.simulations.engines.grpc_engine import submit

        submit(experiment, listener, folder, resuming)  # the round loop runs where Flower starts it
    else:
        with _port(experiment, listener, folder) as port:
            execute(experiment, port, listener, folder, resuming)
    return RunResult(folder)


def _check_memory_place(experiment: Experiment, folder: Path, resuming: bool) -> None:
    """Note where the clients' memory lives; refuse to go on where it is not.

    A federation that is up keeps memory on its nodes; everything else keeps it in the run's folder.
    """
    from umbel.simulations.engines import federate

    outside = experiment.engine.name == "grpc" and federate.find() is not None
    place = "nodes" if outside else "run"
    file = folder / "memory.json"
    if not resuming or not file.is_file():
        write_json(file, {"place": place})
        return
    before = read_json(file)["place"]
    if before == place:
        return
    remedy = (
        "Bring that federation up again (umbel federate up) and say engine.name=grpc."
        if before == "nodes"
        else "Take the federation down first (umbel federate down), or resume on inline or ray."
    )
    raise ExperimentError(
        f"The clients of {folder} keep their memory elsewhere ({before}), not here ({place}). {remedy}"
    )


def _port(experiment: Experiment, listener: Listener, folder: Path) -> AbstractContextManager[Port]:
    """Return how the server reaches nodes on this machine."""
    config, memory = run_config(experiment), folder / "memory"
    if experiment.engine.name == "inline":
        return nullcontext(InlinePort(config, {"state-folder": str(memory)}, listener.clients_done))
    from umbel.simulations.engines.ray_engine import RayPort

    return RayPort(experiment, config, memory)
