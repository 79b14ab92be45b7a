"""One run from beginning to end: folder, loop, model, summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from umbel.conf.schema import Experiment
from umbel.core.device import set_threads
from umbel.core.files import read_json
from umbel.core.kernels import kernels
from umbel.server import checkpoint
from umbel.server.flower import strategies as flower
from umbel.server.listener import Both, FileListener, Listener
from umbel.server.lock import exclusive
from umbel.server.port import Port
from umbel.server.results import RunFolder, new_folder
from umbel.server.rounds import FederatedRun
from umbel.server.session import Session


def execute(
    experiment: Experiment, port: Port, listener: Listener, folder: Path | None = None, resume: bool = False
) -> Path:
    """Run an experiment, or go on with one.

    Args:
        experiment: The experiment.
        port: How nodes are reached.
        listener: Told of everything that happens.
        folder: The run's folder; None makes one.
        resume: Go on from the folder's last checkpoint.

    Returns:
        The run's folder, with model and summary.

    Raises:
        RunStoppedError: The run cannot go on.
        StopRequested: Somebody asked it to stop.
    """
    flower.check(experiment)
    set_threads(experiment.run.threads)  # before anything is written down about this process
    path = folder or new_folder(experiment)
    told = Both(listener, FileListener(path))
    run_folder = RunFolder(path, experiment)
    with exclusive(path), _told_of_its_end(told):
        found = None
        if resume:
            found = checkpoint.latest(run_folder.checkpoints)
            if found is not None:
                run_folder.read_metrics(found.progress.round)
        if not resume or not (path / "run.json").is_file():
            run_folder.begin()
        told.begin(experiment, str(path))
        if found is not None and (text := other_arithmetic(path)):
            told.notice(text)
        run = FederatedRun(Session(experiment), run_folder, told, found)
        run.start(port)
        _finish(run, run_folder)
    return path


@contextmanager
def _told_of_its_end(listener: Listener) -> Iterator[None]:
    """Tell a listener how what is inside ended, whatever that was."""
    try:
        yield
    except BaseException as error:
        listener.end(error)
        raise
    listener.end(None)


def other_arithmetic(folder: Path) -> str:
    """Say whether this process rounds otherwise than the one that began a run; "" where it does not, or none knows."""
    file = folder / "env.json"
    before = read_json(file).get("kernels") if file.is_file() else None
    now = kernels()
    if not isinstance(before, dict) or before.get("bits") == now["bits"]:
        return ""
    then, here = (", ".join(f"{key}={value}" for key, value in each.items()) for each in (before, now))
    return (
        f"This run began where arithmetic rounds otherwise ({then}; here {here}). It goes on, but its weights will not "
        "be to the bit those of a run that was never interrupted."
    )


def _finish(run: FederatedRun, folder: RunFolder) -> None:
    session, progress = run.session, run.progress
    model = session.full_state(session.strategy.model(run.state))
    folder.write_metrics()
    digest = folder.write_model(model)
    if run.best_model is not None:
        folder.write_model(session.full_state(run.best_model), "best.safetensors")
    experiment = session.experiment
    best = {f"best/{name}": value for name, value in progress.best_metrics.items()}
    folder.write_summary(
        {
            "run": folder.path.name,
            "experiment": experiment.name,
            "strategy": experiment.strategy.name,
            "seed": experiment.run.seed,
            "rounds": progress.round,
            "metrics": {**progress.last_metrics, **best},
            "best_round": progress.best_round,
            "seconds": {name: round(value, 3) for name, value in progress.seconds.items()},
            "bytes_up": progress.bytes_up,
            "bytes_down": progress.bytes_down,
            "num_failures": progress.num_failures,
            "num_parameters": sum(t.numel() for t in run.session.strategy.model(run.state).values()),
            "weights_sha256": digest,
            "config_hash": session.config_hash,
        }
        | _representations(folder, session.strategy.representations(run.state))
    )


def _representations(folder: RunFolder, found: dict[str, Tensor]) -> dict[str, str]:
    """Write a strategy's representations, if it has some, and return their hash for the summary."""
    if not found:
        return {}
    return {"representations_sha256": folder.write_model(found, "representations.safetensors")}


def summary(path: Path) -> Mapping[str, Any]:
    """Read a run's summary.

    Raises:
        FileNotFoundError: The run has not ended; the message says how to go on.
    """
    file = path / "summary.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no summary.json: the run has not ended. umbel resume {path}")
    found: Mapping[str, Any] = read_json(file)
    return found
