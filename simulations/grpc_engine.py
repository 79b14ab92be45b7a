"""The gRPC engine: hand the bundle to a SuperLink and follow the run from outside."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conf.load import as_yaml
from conf.schema import Experiment
from server.errors import RunStoppedError, StopRequested
from server.listener import PROGRESS_FILE, Listener, replay
from simulations import federate
from simulations.federate import CONNECTION, Federation

_PACKAGES = ("core", "models", "data", "strategies", "conf", "server", "client")
_LOOK_SECONDS = 0.1
_STATUS_SECONDS = 3.0
_STOP_SECONDS = 60.0


def submit(experiment: Experiment, listener: Listener, folder: Path, resuming: bool) -> None:
    """Run an experiment on the federation that is up, or on one started for it.

    Args:
        experiment: The experiment.
        listener: Told of everything that happens.
        folder: The run's folder, absolute: the ServerApp has a current folder of its own.
        resuming: Go on from the folder's last checkpoint.
    """
    with _federation(experiment.engine.nodes, folder) as federation:
        progress = folder / PROGRESS_FILE
        seen = progress.stat().st_size if progress.is_file() else 0
        run_id = _flwr_run(experiment, federation, folder, resuming)
        try:
            _follow(experiment, listener, federation, run_id, progress, seen)
        except KeyboardInterrupt:
            (folder / "stop").touch()
            _await_end(progress)
            raise


@contextmanager
def _federation(nodes: int, folder: Path) -> Iterator[Federation]:
    """Yield the federation that is up; without one, start one whose client memory lives in the run's folder."""
    found = federate.find()
    if found is not None:
        yield found
        return
    home = folder / "federation"
    federate.stop(home)  # what a run that was killed may have left
    try:
        yield federate.start(nodes, home, memory=folder / "memory")
    finally:
        federate.stop(home)


def bundle_folder(target: Path) -> Path:
    """Copy what the bundle is built from into a folder whose name Flower accepts.

    The checkout may be in a folder with an underscore in its name, which Flower refuses.

    Raises:
        RunStoppedError: The project is not there as source.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        raise RunStoppedError(
            f"{root} has no pyproject.toml: the gRPC engine ships the project's source to the nodes. Install from a "
            "checkout (pip install -e .)."
        )
    app = target / "umbel"
    app.mkdir(parents=True)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(root / file, app / file)
    for package in _PACKAGES:
        shutil.copytree(root / package, app / package, ignore=shutil.ignore_patterns("__pycache__"))
    return app


def _flwr_run(experiment: Experiment, federation: Federation, folder: Path, resuming: bool) -> str:
    """Submit the bundle and return Flower's run id."""
    with tempfile.TemporaryDirectory(prefix="umbel-bundle-") as temporary:
        app = bundle_folder(Path(temporary))
        config = Path(temporary) / "run.toml"
        values = {
            "experiment": experiment.name,
            "experiment-yaml": as_yaml(experiment),
            "overrides": "",
            "folder": str(folder),
            "resume": "yes" if resuming else "",
        }
        # JSON's strings are TOML's basic strings.
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
        answer = _flwr(federation, "run", str(app), CONNECTION, "--run-config", str(config))
    return str(answer["run-id"])


def _flwr(federation: Federation, *arguments: str) -> dict[str, Any]:
    """Call Flower's command line and return its JSON."""
    flwr = str(Path(sys.executable).parent / "flwr")
    done = subprocess.run(
        [flwr, *arguments, "--format", "json"],
        env=federation.environment(),
        cwd=federation.home,
        capture_output=True,
        text=True,
        check=False,
    )
    start = done.stdout.find("{")
    try:
        answer: dict[str, Any] = json.loads(done.stdout[start:]) if start >= 0 else {}
    except json.JSONDecodeError:
        answer = {}
    if done.returncode or not answer.get("success", False):
        message = answer.get("error-message") or done.stderr.strip() or done.stdout.strip()
        raise RunStoppedError(f"flwr {arguments[0]} failed: {message}")
    return answer


def _follow(
    experiment: Experiment, listener: Listener, federation: Federation, run_id: str, progress: Path, seen: int
) -> None:
    """Replay the run's progress file until the run has ended."""
    checked = time.monotonic()
    rest = ""
    while True:
        if progress.is_file() and progress.stat().st_size > seen:
            with progress.open("rb") as file:
                file.seek(seen)
                content = file.read()
            seen += len(content)
            *lines, rest = (rest + content.decode()).split("\n")
            for line in lines:
                ended, error = replay(line, experiment, listener)
                if ended:
                    _raise(error)
                    return
            continue
        if time.monotonic() - checked > _STATUS_SECONDS:
            checked = time.monotonic()
            _check_alive(federation, run_id, progress, seen)
        time.sleep(_LOOK_SECONDS)


def _raise(error: str | None) -> None:
    if error is None:
        return
    kind, _, text = error.partition(": ")
    if kind == StopRequested.__name__:
        raise StopRequested
    raise RunStoppedError(text if kind == RunStoppedError.__name__ else error)


def _check_alive(federation: Federation, run_id: str, progress: Path, seen: int) -> None:
    """Raise when Flower says that the run is over, although its server never said so."""
    answer = _flwr(federation, "ls", CONNECTION, "--run-id", run_id)
    status = str(answer["runs"][0]["status"])
    if status.startswith("finished") and not (progress.is_file() and progress.stat().st_size > seen):
        log = Path(federation.home) / "logs" / "superlink.log"
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        raise RunStoppedError(f"The server ended without a word ({status}). The end of {log}:\n{tail}")


def _await_end(progress: Path) -> None:
    """Give the server time to write its checkpoint."""
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        if progress.is_file() and '"event": "end"' in progress.read_text(encoding="utf-8").rsplit("\n", 2)[-2]:
            return
        time.sleep(_LOOK_SECONDS)
