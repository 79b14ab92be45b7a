"""The gRPC engine: hand the bundle to a SuperLink and follow the run from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from umbel.client.node.bundle import flower_name, unpack
from umbel.conf.load import as_yaml
from umbel.conf.schema import Experiment
from umbel.core import leftovers
from umbel.server.errors import RunStoppedError, raise_again
from umbel.server.listener import PROGRESS_FILE, Listener, replay
from umbel.server.lock import exclusive, is_free
from umbel.simulations.engines import federate
from umbel.simulations.engines.app_folder import write_app
from umbel.simulations.engines.federate import CONNECTION, Federation
from umbel.simulations.engines.flower_internals import build_bundle
from umbel.simulations.engines.processes import log, tail

_LOOK_SECONDS = 0.1
_FIRST_SILENCE, _LONGEST_SILENCE = 5.0, 30.0  # without a word for so long, ask Flower whether the run still runs
_DEAF = 3  # questions in a row that the SuperLink does not answer before it counts as gone
_STOP_SECONDS = 60.0


def submit(experiment: Experiment, listener: Listener, folder: Path, resuming: bool) -> None:
    """Run an experiment on the federation that is up, or on one started for it.

    Args:
        experiment: The experiment.
        listener: Told of everything that happens.
        folder: The run's folder, absolute: the ServerApp has a current folder of its own.
        resuming: Go on from the folder's last checkpoint.
    """
    with exclusive(folder):  # after a kill the server may still be writing
        pass
    with _federation(experiment.engine.nodes, folder) as federation:
        progress = _Progress(folder / PROGRESS_FILE)
        run_id = ""
        try:
            run_id = _flwr_run(experiment, federation, folder, resuming)
            _follow(experiment, listener, federation, run_id, progress)
        except KeyboardInterrupt:
            (folder / "stop").touch()
            # The server may have begun before Flower's command came back, which takes seconds.
            if (run_id or progress.has_begun) and not _await_end(progress, federation) and run_id:
                with suppress(RunStoppedError):
                    _flwr(federation, "stop", run_id, CONNECTION)
            for line in progress.lines():
                replay(line, experiment, listener)
            raise


class _Progress:
    """Reads what a progress file says from now on.

    Args:
        path: The file, which need not exist yet.

    Attributes:
        folder: The run's folder.
    """

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self._path = path
        self._seen = path.stat().st_size if path.is_file() else 0
        self._rest = b""

    @property
    def has_begun(self) -> bool:
        """Whether the server has written what was not read yet."""
        return self._path.is_file() and self._path.stat().st_size > self._seen

    def lines(self) -> list[str]:
        """Return the lines that are new; one that is written by halves waits for its end."""
        if not self._path.is_file() or self._path.stat().st_size <= self._seen:
            return []
        with self._path.open("rb") as file:
            file.seek(self._seen)
            content = file.read()
        self._seen += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        return [line.decode() for line in lines]


@contextmanager
def _federation(nodes: int, folder: Path) -> Iterator[Federation]:
    """Yield the federation that is up; without one, start one whose client memory lives in the run's folder."""
    federation = federate.find()
    if federation is not None:
        yield federation
        return
    home = folder / "federation"
    federate.stop(home)  # what a run that was killed may have left
    try:
        yield federate.start(nodes, home, memory=folder / "memory")
    finally:
        federate.stop(home)


def _flwr_run(experiment: Experiment, federation: Federation, folder: Path, resuming: bool) -> str:
    """Submit the bundle and return Flower's run id."""
    with tempfile.TemporaryDirectory(prefix=leftovers.prefix("bundle")) as temporary:
        app = write_app(Path(temporary))
        config = Path(temporary) / "run.toml"
        values = {
            "experiment": experiment.name,
            "experiment-yaml": as_yaml(experiment),
            "overrides": "",
            "folder": str(folder),
            "resume": "yes" if resuming else "",
        }
        config.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in values.items()), encoding="utf-8")
        # The ServerApps of two runs that start together would meet in Flower's own installation.
        bundle = build_bundle(app)
        unpack(bundle, Path(federation.environment()["FLWR_HOME"]) / "apps", flower_name(bundle))
        answer = _flwr(federation, "run", str(app), CONNECTION, "--run-config", str(config))
    return str(answer["run-id"])


def _toml(text: str) -> str:
    """Return a TOML string: JSON's, but that a character beyond 16 bits is no pair of escapes, and DEL is one."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _flwr(federation: Federation, *arguments: str) -> dict[str, Any]:
    """Call Flower's command line and return its JSON."""
    done = _call(federation, *arguments, "--format", "json")
    start = done.stdout.find("{")
    try:
        answer: dict[str, Any] = json.loads(done.stdout[start:]) if start >= 0 else {}
    except json.JSONDecodeError:
        answer = {}
    if done.returncode or not answer.get("success", False):
        message = answer.get("error-message") or done.stderr.strip() or done.stdout.strip()
        raise RunStoppedError(f"flwr {arguments[0]} failed: {message}")
    return answer


def _call(federation: Federation, *arguments: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "flwr"), *arguments],
        env=federation.environment(),
        cwd=federation.home,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def _follow(
    experiment: Experiment, listener: Listener, federation: Federation, run_id: str, progress: _Progress
) -> None:
    """Replay the run's progress file until the run has ended."""
    silence, deaf, begun = _FIRST_SILENCE, 0, False
    ask_at = time.monotonic() + silence
    over = ""  # Flower's word for it, or ours; what the server wrote last is read before it counts
    while True:
        lines = progress.lines()
        for line in lines:
            ended, error = replay(line, experiment, listener)
            if ended:
                if error is not None:
                    raise_again(error)
                return
        begun = begun or bool(lines)
        if lines:
            silence = _FIRST_SILENCE
            ask_at = time.monotonic() + silence
        elif over:
            raise RunStoppedError(f"The server ended without a word ({over}).\n{_last_words(federation, run_id)}")
        elif not federation.superlink_alive:
            over = "its SuperLink is gone"
            continue
        elif begun and is_free(progress.folder):
            over = "its process has died"
            with suppress(RunStoppedError):  # or nodes wait a minute for what it had begun to send
                _flwr(federation, "stop", run_id, CONNECTION)
            continue
        elif time.monotonic() > ask_at:
            status = _status(federation, run_id)
            deaf = 0 if status else deaf + 1
            over = status if status.startswith("finished") else "its SuperLink is deaf" if deaf >= _DEAF else ""
            silence = min(2 * silence, _LONGEST_SILENCE)
            ask_at = time.monotonic() + silence
            continue
        time.sleep(_LOOK_SECONDS)


def _status(federation: Federation, run_id: str) -> str:
    """Return what Flower says of the run; empty when it says nothing. Its command takes seconds: ask seldom."""
    try:
        run = _flwr(federation, "ls", CONNECTION, "--run-id", run_id)["runs"][0]
    except (RunStoppedError, KeyError, IndexError):
        return ""
    details = str(run.get("status-details") or "")
    return str(run["status"]) + (f": {details}" if details else "")


def _last_words(federation: Federation, run_id: str) -> str:
    """Return the end of the ServerApp's log, or of the SuperLink's when that is all there is."""
    home = Path(federation.home)
    if federation.superlink_alive:
        with suppress(subprocess.TimeoutExpired):
            shown = _call(federation, "log", run_id, CONNECTION, "--show", timeout=20.0).stdout.strip()
            if shown:
                return "The end of its log:\n" + "\n".join(shown.splitlines()[-20:])
    return f"The end of {log(home, 'superlink')}:\n{tail(home, 'superlink', 20)}"


def _await_end(progress: _Progress, federation: Federation) -> bool:
    """Give the server time to write its checkpoint; return whether it has ended."""
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        if is_free(progress.folder) or not federation.superlink_alive:
            return True
        time.sleep(_LOOK_SECONDS)
    return False
