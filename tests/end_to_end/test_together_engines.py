"""Fast modes whatever happens to workers, and what a run says where a mode could not be had."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.end_to_end.test_engines import SMALL
from tests.helpers import bits
from umbel import RunResult, run
from umbel.server.listener import events
from umbel.simulations.engines.worker import WorkerProcess

# Tensors whose length is no multiple of a vector's: kernels round by where in a stack they lie.
TOGETHER = (*SMALL, "data.partition=iid", "client.together=4", "client.batch_size=7", "evaluate.every=0")
ODD = (*TOGETHER, "model.name=mlp", "model.sizes={hidden: 9}")


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_dies_changes_no_bits_of_who_trains_at_once(tmp_path: Path, monkeypatch) -> None:
    """Its clients run singly then, each in the slot that it has in its squad."""
    marker, original, given = tmp_path / "died", WorkerProcess.run, tmp_path / "given"

    def dying(self, opening, clients, closes, memory):
        if {0, 1, 2, 3} & set(clients) and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with given.open("a") as file:
            file.write(f"{len(clients)}\n")
        return original(self, opening, clients, closes, memory)

    inline = run("digits", *ODD, f"run.results={tmp_path}")
    monkeypatch.setattr(WorkerProcess, "run", dying)
    options = ("engine.name=processes", "engine.workers=2", f"run.results={tmp_path}")
    assert bits(run("digits", *ODD, *options)) == bits(inline)
    assert marker.exists() and "1" in given.read_text().split()


def without(result: RunResult) -> Sequence[str]:
    """Return what a run says that trained without a mode: the same in its summary and, once, in its progress file."""
    told = [event["text"] for event in events(result.path) if event["event"] == "notice"]
    assert [text for text in told if text.startswith("client.")] == result.summary["modes"]["fallbacks"]
    found: Sequence[str] = result.summary["modes"]["fallbacks"]
    return found


NOISY = (*TOGETHER, "model.name=mlp", "model.sizes={hidden: 8, dropout: 0.5}")


def test_each_run_of_a_process_says_what_trained_without_a_mode(tmp_path: Path) -> None:
    for _ in range(2):
        (said,) = without(run("digits", *NOISY, f"run.results={tmp_path}"))
        assert said.startswith("client.together=4: mlp trains one client after the other, for")
    plain = run("digits", *NOISY, "client.together=1", f"run.results={tmp_path}")
    assert "fallbacks" not in plain.summary["modes"]


@pytest.mark.slow
def test_what_could_not_be_compiled_is_in_the_record(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "/no/compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    options = (*SMALL, "model.name=linear", "model.sizes={}", "client.batch_size=8", f"run.results={tmp_path}")
    result = run("digits", *options, "client.compile=step")
    before, then = without(result)
    assert before == "client.compile=step: this machine has no C++ compiler ($CXX or g++)."
    assert then.startswith("client.compile=step: Linear trains without where it cannot be compiled (")
    assert result.summary["num_failures"] == 0


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", ["processes", pytest.param("grpc", marks=pytest.mark.exhaustive)])
def test_workers_and_nodes_say_it_as_well(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if engine == "grpc":
        request.getfixturevalue("federation")
    options = ("engine.workers=2",) if engine == "processes" else ()
    (said,) = without(run("digits", *NOISY, f"engine.name={engine}", *options, f"run.results={tmp_path}"))
    assert said.startswith("client.together=4: mlp trains one client after the other, for")
