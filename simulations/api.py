"""Run an experiment from Python; the command line does the same."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel import data
from umbel.conf import devices, initial
from umbel.conf.errors import ExperimentError
from umbel.conf.load import as_yaml, load
from umbel.conf.schema import Experiment
from umbel.core.device import set_threads
from umbel.core.leftovers import sweep, sweep_within
from umbel.server import coverage, reading
from umbel.server.errors import RunStoppedError, StopRequested
from umbel.server.flower import strategies as flower
from umbel.server.listener import PROGRESS_FILE, Listener, has_begun, mend
from umbel.server.lock import exclusive
from umbel.server.main import execute
from umbel.server.port import Port
from umbel.server.results import new_folder
from umbel.simulations.engines.inline import InlinePort
from umbel.simulations.trackers import tracked

if TYPE_CHECKING:
    import pandas as pd

    from umbel.conf.omega import DictConfig

_PATIENCE_SECONDS = 10.0
_MAY_CHANGE = (
    "run.rounds",
    "run.until",
    "run.patience",
    "run.budget",
    "run.trackers",
    "data.path",
    "data.sites",
    "data.server",
    "client.device",
)  # with all of engine and checkpoint


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
        return reading.summary(self.path)

    @property
    def lost(self) -> str:
        """Which clients the run lost for good, in words; empty when it lost none."""
        return coverage.in_words(self.summary)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """All metrics, long and tidy."""
        frame: pd.DataFrame = reading.metrics(self.path).to_pandas()
        return frame


def run(experiment: str | DictConfig | Experiment, *overrides: str, listener: Listener | None = None) -> RunResult:
    """Run an experiment on the engine that it names.

    Args:
        experiment: Name of a shipped experiment, path of a YAML file, a container of OmegaConf, or an `Experiment`.
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
    composed = devices.resolved(initial.resolved(composed))
    # Absolute, because workers and nodes have current folders of their own.
    results = Path(composed.run.results).expanduser().resolve()
    composed = replace(composed, run=replace(composed.run, results=str(results)))
    told = tracked(composed, listener or Listener())
    sweep(results)
    set_threads(composed.run.threads)  # the folder says with how many
    folder = new_folder(composed, _memory_place(composed))
    try:
        return _start(composed, told, folder, resuming=False)
    except RunStoppedError:
        raise  # its folder says why, and can be gone on with
    except (StopRequested, KeyboardInterrupt):
        # Over gRPC its server may begin only now: it finds that it is to stop.
        if composed.engine.name != "grpc" and not (folder / PROGRESS_FILE).is_file():
            _remove(folder)
        raise
    except BaseException:
        if not has_begun(folder):
            _remove(folder)
        raise


def _remove(folder: Path) -> None:
    """Remove the folder of a run that did not begin, once its server has ended."""
    with suppress(RunStoppedError), exclusive(folder, _PATIENCE_SECONDS):
        shutil.rmtree(folder, ignore_errors=True)


def resume(folder: str | Path, *overrides: str, listener: Listener | None = None) -> RunResult:
    """Go on with a run from its last checkpoint; it ends with the bits of one that was never interrupted.

    Args:
        folder: The run's folder.
        overrides: What may change: `run.rounds`, `run.until`, `run.patience`, `run.budget`, `run.trackers`, all of
            `engine` and `checkpoint`, and, where they have moved, `data.path`, `data.sites`, `data.server` and
            `client.device`.
        listener: Told of everything that happens.

    Raises:
        ExperimentError: There is no such run, or an override would change the experiment.
        DamagedError: What the run would go on from is not what was written.
        Refusal: More rounds are done than the run is to have.
    """
    path = Path(folder).expanduser().resolve()
    reading.is_run(path)
    check_may_change(overrides)
    with exclusive(path):  # after a kill the server may still be writing
        sweep(path.parent)
        sweep_within(path)
        mend(path)
        composed = load("config", overrides, reading.configuration(path))
        (path / "stop").unlink(missing_ok=True)
    composed = replace(composed, run=replace(composed.run, results=str(path.parent)))
    _check_memory_place(composed, path)
    told = tracked(composed, listener or Listener(), resuming=True)
    return _start(composed, told, path, resuming=True)


def check_may_change(overrides: Sequence[str]) -> None:
    """Refuse overrides that would make another run of one that goes on.

    Raises:
        ExperimentError: One would, with its key.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key not in _MAY_CHANGE and key.partition(".")[0] not in ("engine", "checkpoint"):
            raise ExperimentError(
                f"{key} cannot change in the middle of a run; {', '.join(_MAY_CHANGE)}, engine.*, checkpoint.* can.",
                key=key,
            )


def run_config(experiment: Experiment) -> dict[str, Any]:
    """Return the run configuration that travels to both apps: the resolved YAML as text."""
    return {"experiment": experiment.name, "overrides": "", "experiment-yaml": as_yaml(experiment)}


def _start(experiment: Experiment, listener: Listener, folder: Path, resuming: bool) -> RunResult:
    if experiment.engine.name == "grpc":
        from umbel.simulations.engines.grpc_engine import submit

        submit(experiment, listener, folder, resuming)  # the round loop runs where Flower starts it
    else:
        with _port(experiment, listener, folder) as port:
            execute(experiment, port, listener, folder, resuming)
    return RunResult(folder)


def _memory_place(experiment: Experiment) -> str:
    """Return where the clients' memory lives: a federation that is up keeps it, else it is in the run's folder."""
    if experiment.engine.name != "grpc":
        return "run"
    from umbel.simulations.engines import federate

    return "run" if federate.find() is None else "nodes"


def _check_memory_place(experiment: Experiment, folder: Path) -> None:
    """Refuse to go on where the clients' memory is not."""
    before, place = reading.memory_place(folder), _memory_place(experiment)
    if before == place:
        return
    remedy = (
        "Bring that federation up again (umbel federate up) and say engine.name=grpc."
        if before == "nodes"
        else "Take the federation down first (umbel federate down), or resume on inline, processes or ray."
    )
    raise ExperimentError(
        f"The clients of {folder} keep their memory elsewhere ({before}), not here ({place}).", remedy=remedy
    )


def _port(experiment: Experiment, listener: Listener, folder: Path) -> AbstractContextManager[Port]:
    """Return how the server reaches nodes on this machine."""
    config, memory = run_config(experiment), folder / "memory"
    if experiment.engine.name == "inline":
        return InlinePort(config, {"state-folder": str(memory)}, listener.clients_done)
    if experiment.engine.name == "processes":
        from umbel.simulations.engines.processes_engine import ProcessesPort

        return ProcessesPort(experiment, config, memory)
    from umbel.simulations.engines.ray_engine import RayPort

    return RayPort(experiment, config, memory)
