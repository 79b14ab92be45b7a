"""A site whose node is turned, with a key that is known and clients of its own: it costs the run its own clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.faults.helpers import SMALL, until
from tests.places import ROOT
from tests.server.hostile.mutations import KINDS
from umbel import run
from umbel.conf.load import load
from umbel.core.wire.work import Outcome
from umbel.server.listener import Listener
from umbel.server.main import execute
from umbel.server.port import Answer, OnWait, Task
from umbel.server.results import new_folder
from umbel.simulations.api import run_config
from umbel.simulations.engines import federate
from umbel.simulations.engines.inline import InlinePort
from umbel.simulations.engines.processes import terminate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore"),  # processes that outlive the call that started them
]
ITS_CLIENTS = {2, 3}


class Heard(Listener):
    """Who failed, in which round and phase, and why."""

    def __init__(self) -> None:
        self.failures: dict[tuple[int, str], dict[int, str]] = {}

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        self.failures.setdefault((round_, phase), {})[client] = reason


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file in which the hostile node of a federation of two notes what it sent."""
    home, sent = tmp_path / "home", tmp_path / "sent"
    monkeypatch.setenv("UMBEL_HOME", str(home))
    up = federate.start(2, home)
    hostile = None
    try:
        # It has the command line of an honest node, and with it the key, the clients and the folder.
        command = Path(f"/proc/{up.nodes[1]}/cmdline").read_bytes().decode().split("\0")[:-1]
        terminate([(up.nodes[1], up.births[2])])
        arguments = command[command.index("umbel.client.node.supernode") + 1 :]
        log = (tmp_path / "hostile.log").open("wb")
        hostile = subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.faults.hostile_node", str(sent), *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
        until(lambda: b"is connected to" in (tmp_path / "hostile.log").read_bytes())
        yield sent
    finally:
        if hostile is not None:
            hostile.kill()
            hostile.wait()
        federate.stop(home)


class Without(InlinePort):
    """The hostile node's clients are not there."""

    def exchange(self, tasks: Sequence[Task], deadline: float, on_wait: OnWait | None = None) -> Iterator[Answer]:
        for task in tasks:
            leaves = task.work.leaves
            yield Answer(task.node, Outcome(failures=dict.fromkeys(ITS_CLIENTS & leaves.keys(), "absent")))
            others = {client: place for client, place in leaves.items() if client not in ITS_CLIENTS}
            yield from super().exchange([replace(task, work=replace(task.work, leaves=others))], deadline)


def overrides(folder: Path, rounds: int) -> tuple[str, ...]:
    kept = tuple(option for option in SMALL if not option.startswith("evaluate."))
    asked = ("evaluate.every=1", "evaluate.clients=-1", f"run.rounds={rounds}")
    return (*kept, *asked, f"run.results={folder}")


def without_it(folder: Path, rounds: int) -> dict[str, Any]:
    """The summary of the same run inline, where that node's clients never answer."""
    experiment = load("digits", list(overrides(folder, rounds)))
    run_folder = new_folder(experiment)
    port = Without(run_config(experiment), {"state-folder": str(run_folder / "memory")}, lambda _: None)
    execute(experiment, port, Listener(), run_folder)
    summary: dict[str, Any] = json.loads((run_folder / "summary.json").read_text())
    return summary


def check(sent: Path, rounds: int) -> Counter[str]:
    """Two answers a round that cannot be used: only that node's clients fail, and the rest is as if it had not come."""
    heard = Heard()
    engine = ("engine.name=grpc", "engine.deadline_seconds=60")
    result = run("digits", *overrides(sent.parent / "grpc", rounds), *engine, listener=heard)
    kinds = sent.read_text().split()
    assert len(kinds) == 2 * rounds == len(heard.failures)
    for failed in heard.failures.values():
        assert failed.keys() == ITS_CLIENTS
        assert all(0 < len(reason) <= 500 and reason.isprintable() for reason in failed.values())
    expected = without_it(sent.parent / "inline", rounds)
    for key in ("weights_sha256", "metrics", "num_failures", "rounds"):
        assert result.summary[key] == expected[key], key
    return Counter(kinds)


@pytest.mark.exhaustive  # half a minute; the sample of tests/server/hostile goes through the same receiver
def test_ten_answers_that_cannot_be_used(sent: Path) -> None:
    check(sent, 5)


@pytest.mark.exhaustive  # a minute
def test_two_hundred_answers_that_cannot_be_used(sent: Path) -> None:
    assert check(sent, 100).keys() == set(KINDS)
