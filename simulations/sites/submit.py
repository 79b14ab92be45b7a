"""Submit a run from anywhere: the bundle and a signature of all that it says, through a tunnel to the server."""

from __future__ import annotations

import hashlib
import json
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from umbel.client.node.policy import PURPOSE, signed_content
from umbel.conf.load import as_yaml, load
from umbel.conf.schema import Experiment
from umbel.core import leftovers
from umbel.core.files import read_json, write_json
from umbel.core.names import printable, shortened
from umbel.core.refusal import Refusal
from umbel.core.wire.identity import PrivateKey, read_key, sign
from umbel.core.wire.text import read_json as read_text
from umbel.server.errors import RunFailedError, RunStoppedError, raise_again
from umbel.server.flower import strategies as flower
from umbel.server.flower.printed import MARK
from umbel.server.listener import Listener, replay
from umbel.simulations.api import check_may_change
from umbel.simulations.engines.app_folder import write_app
from umbel.simulations.engines.flower_internals import build_bundle
from umbel.simulations.sites.flower_door import ControlError, connected
from umbel.simulations.sites.folders import CA, submitter_key
from umbel.simulations.sites.tunnel import Submitter, TunnelError

RUNS = "runs.json"  # in a submitter's folder: the runs that were submitted from it
_LAST_LINES = 20
_MOST_BYTES = 1 << 24  # of a line of progress
_AGAIN_SECONDS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)  # after which the connection is tried again


@dataclass(frozen=True)
class Submitted:
    """A run that has been submitted.

    Attributes:
        run_id: Flower's number of it.
        folder: The run's folder on the server; empty until it has begun.
    """

    run_id: int
    folder: str = ""


def compose(experiment: str, overrides: Sequence[str], text: str | None = None) -> Experiment:
    """Return an experiment as it runs on a federation of sites.

    Args:
        experiment: The name of one that comes with umbel, or the path of a YAML file.
        overrides: `key=value` each.
        text: The YAML, where it is at hand.

    Raises:
        Refusal: It cannot be.
    """
    composed = load(experiment, overrides, text)
    flower.check(composed)
    if composed.model.init:
        raise Refusal(
            "model.init names a file of this machine, and the server has none of it.",
            key="model.init",
            remedy="Start from fresh weights, or run it on the server itself.",
        )
    return replace(composed, engine=replace(composed.engine, name="grpc"))


def start(submitter: Submitter, experiment: Experiment, resume: str = "") -> Submitted:
    """Submit a run, or one that goes on.

    Args:
        submitter: Who submits.
        experiment: What.
        resume: Name of the run that goes on.

    Raises:
        ControlError, TunnelError: The server cannot be reached, or refuses.
    """
    key = read_key(submitter_key(submitter.folder, submitter.settings.name))
    bundle = make_bundle()
    config = signed_config(key, submitter.settings.name, bundle, experiment, resume)
    with submitter.way() as address, connected(address, submitter.folder / CA) as control:
        run = Submitted(control.start(bundle, config))
    note(submitter.folder, run, experiment.name)
    return run


def make_bundle() -> bytes:
    """Return this project's bundle: the same bytes for the same code."""
    with tempfile.TemporaryDirectory(prefix=leftovers.prefix("bundle")) as temporary:
        return build_bundle(write_app(Path(temporary)))


def signed_config(key: PrivateKey, name: str, bundle: bytes, experiment: Experiment, resume: str) -> dict[str, str]:
    """Return a run's configuration with a signature of it and of the bundle."""
    config = {
        "experiment": experiment.name,
        "experiment-yaml": as_yaml(experiment),
        "overrides": "",
        "folder": resume,
        "resume": "yes" if resume else "",
        "signed": str(int(time.time())),
        "nonce": secrets.token_hex(16),
        "signer": name,
    }
    content = signed_content(hashlib.sha256(bundle).hexdigest(), config)
    return {**config, "signature": sign(key, PURPOSE, content)}


class Follower:
    """Follows a run by its log at the SuperLink, also when the connection is lost in between.

    Args:
        submitter: Who follows.
        run: The run.
        experiment: What runs.
        listener: Told of everything that happens.

    Attributes:
        folder: The run's folder on the server; empty until it has begun.
    """

    def __init__(self, submitter: Submitter, run: Submitted, experiment: Experiment, listener: Listener) -> None:
        self._submitter, self._run, self._experiment, self._listener = submitter, run, experiment, listener
        self._after, self._rest = 0.0, ""
        self._last: list[str] = []
        self.folder = run.folder

    def follow(self) -> None:
        """Return when the run has ended well.

        Raises:
            Refusal, StopRequested, RunStoppedError, RunFailedError: As the run ended.
            ControlError, TunnelError: The server can no longer be reached.
        """
        tries = 0
        while True:
            before = self._after
            try:
                if self._read():
                    return
            except (ControlError, TunnelError) as error:
                tries = 0 if self._after > before else tries
                if tries >= len(_AGAIN_SECONDS):
                    raise
                self._listener.notice(f"{error} Trying again in {_AGAIN_SECONDS[tries]:.0f} s; the run goes on.")
                time.sleep(_AGAIN_SECONDS[tries])
                tries += 1

    def _read(self) -> bool:
        """Read the run's log as far as it comes; return whether the run has ended well."""
        with self._submitter.way() as address, connected(address, self._submitter.folder / CA) as control:
            for text, after in control.log(self._run.run_id, self._after):
                self._after = after
                if self._take(text):
                    return True
            runs = control.runs(self._run.run_id)
        if runs and not runs[0].finished:
            return False
        status = runs[0].status if runs else "the SuperLink does not know it"
        words = printable("\n".join(self._last))
        raise RunStoppedError(f"The run ended without a word ({status}). The end of its log:\n{words}")

    def _take(self, text: str) -> bool:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            at = line.find(MARK)
            if at < 0:
                self._last = [*self._last, line][-_LAST_LINES:]
            elif self._tell(line[at + len(MARK) :]):
                return True
        return False

    def _tell(self, entry: str) -> bool:
        """Tell the listener what a line of progress says; return whether the run has ended well."""
        try:
            told = _printable(read_text(entry, _MOST_BYTES))
            if told["event"] == "begin":
                self.folder = str(told["folder"])
                note(self._submitter.folder, Submitted(self._run.run_id, self.folder), self._experiment.name)
            ended, error = replay(json.dumps(told), self._experiment, self._listener)
        except (ValueError, KeyError, TypeError) as wrong:
            text = shortened(f"The server told of nothing that is known here ({wrong}): {entry[:200]!r}")
            raise RunFailedError(text) from wrong
        if error is not None:
            raise_again(error)
        return ended


def _printable(told: Any) -> Any:
    """Return what a server told with its texts fit for a terminal."""
    if isinstance(told, str):
        return printable(told)
    if isinstance(told, list):
        return [_printable(each) for each in told]
    return {_printable(key): _printable(each) for key, each in told.items()} if isinstance(told, dict) else told


def note(folder: Path, run: Submitted, experiment: str) -> None:
    """Note a run in the submitter's folder, so that other commands find it by its name."""
    runs = noted(folder)
    runs[str(run.run_id)] = {"folder": run.folder, "experiment": experiment}
    write_json(folder / RUNS, runs)


def noted(folder: Path) -> dict[str, dict[str, str]]:
    """Return the runs that were submitted from a folder, by Flower's numbers of them."""
    if not (folder / RUNS).is_file():
        return {}
    try:
        return {str(key): dict(value) for key, value in read_json(folder / RUNS).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise Refusal(
            f"{folder / RUNS} is damaged: {error}.", remedy="Remove it; it is a list for you alone."
        ) from error


def folder_of(submitter: Submitter, run: str) -> str:
    """Return the folder, on the server, of a run by its name or by Flower's number of it.

    Raises:
        Refusal: Nobody knows where it is.
        ControlError, TunnelError: The server was asked, and cannot be reached.
    """
    for number, entry in noted(submitter.folder).items():
        where = entry.get("folder", "")
        if where and run in (number, where.rpartition("/")[2]):
            return where
    if run.isdigit() and (where := _told_folder(submitter, int(run))):
        return where
    if not submitter.settings.results:
        raise Refusal(
            f"{run!r} was not followed from {submitter.folder}, which does not say where the server keeps its runs.",
            key="results",
            remedy="Give Flower's number of the run, or set `results` in submit.yaml.",
        )
    if "/" in run or run in ("", ".", ".."):
        raise Refusal(f"{run!r} is no name of a run.")
    return f"{submitter.settings.results.rstrip('/')}/{run}"


def _told_folder(submitter: Submitter, run_id: int) -> str:
    """Return the folder that a run told of when it began, by its log; empty where it has not begun."""
    rest = ""
    with submitter.way() as address, connected(address, submitter.folder / CA) as control:
        for text, _ in control.log(run_id):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                if f'{MARK}{{"event": "begin"' in line:
                    try:
                        where = str(_printable(read_text(line[line.find(MARK) + len(MARK) :], _MOST_BYTES))["folder"])
                    except (ValueError, KeyError, TypeError):
                        return ""
                    note(submitter.folder, Submitted(run_id, where), "")
                    return where
    return ""


def compose_again(text: str, overrides: Sequence[str]) -> Experiment:
    """Return the experiment of a run that goes on.

    Args:
        text: The run's `config.yaml`.
        overrides: What may change in a run that goes on.

    Raises:
        Refusal: Something else would change.
    """
    check_may_change(overrides)
    return compose("config", overrides, text)


def run_log(submitter: Submitter, run: str, number: int, follow: bool) -> Iterator[str]:
    """Yield the lines of a run's log at the SuperLink: the last ones, then those that come until it ends.

    Args:
        submitter: Who asks.
        run: The run's name, or Flower's number of it.
        number: How many of the last ones.
        follow: Whether to wait for more.

    Raises:
        Refusal: Nobody knows the run.
        ControlError, TunnelError: The server cannot be reached.
    """
    run_id = _number_of(submitter, run)
    with submitter.way() as address, connected(address, submitter.folder / CA) as control:
        if not follow:
            text, _ = next(control.log(run_id), ("", 0.0))
            yield from map(printable, text.splitlines()[-number:])
            return
        for text, _ in control.log(run_id):
            yield from map(printable, text.splitlines())


def _number_of(submitter: Submitter, run: str) -> int:
    for number, entry in reversed(noted(submitter.folder).items()):  # of one that went on, the last
        if run in (number, entry.get("folder", "").rpartition("/")[2]):
            return int(number)
    if run.isdigit():
        return int(run)
    raise Refusal(f"{run!r} was not submitted from {submitter.folder}.", remedy="Give Flower's number of it (status).")
