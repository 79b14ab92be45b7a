"""Fast modes whatever happens to workers, and what a run says where a mode could not be had."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.end_to_end.test_engines import SMALL
from tests.helpers import bits
from umbel import run
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
