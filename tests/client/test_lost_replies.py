"""A reply that the server never took: the client goes on from the memory that belongs to the last one it did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from umbel.conf.load import load
from umbel.core.memory import MemoryStore, Version
from umbel.server import checkpoint
from umbel.server.listener import Listener
from umbel.server.main import execute
from umbel.server.results import new_folder
from umbel.simulations.api import run_config
from umbel.simulations.engines.inline import InlinePort


class Lossy(InlinePort):
    """Answers client by client, and loses client 0's reply of round 2 after its memory was written."""

    def exchange(self, tasks, deadline, on_wait=None):
        for task in tasks:
            for client, place in task.work.leaves.items():
                alone = replace(task, work=replace(task.work, leaves={client: place}))
                (answer,) = super().exchange([alone], deadline)
                if not (client == 0 and task.work.round == 2):
                    yield answer


def test_scaffold_keeps_c_the_mean_of_its_clients(tmp_path: Path) -> None:
    """c = mean c_i holds whatever is lost: it would not if client 0 went on from the c_i that was never counted."""
    options = ["strategy.name=scaffold", "model.name=cnn", "data.num_clients=3", "data.max_train=150", "run.rounds=4"]
    fixed = ["client.precision=fp64", f"run.results={tmp_path}", "evaluate.every=0"]
    experiment = load("digits", [*options, *fixed])
    folder = new_folder(experiment)
    port = Lossy(run_config(experiment), {"state-folder": str(folder / "memory")}, lambda _: None)
    execute(experiment, port, Listener(), folder)

    newest = checkpoint.latest(folder / "checkpoints")
    assert newest is not None
    assert newest.progress.num_failures == 1
    (run_folder,) = (folder / "memory").iterdir()
    store = MemoryStore(run_folder)
    controls = [
        store.read(int(client), Version(*version)).trees["control"]
        for client, version in newest.progress.memories.items()
    ]
    assert len(controls) == 3
    name = next(name for name in newest.tensors if name.startswith("state/control/"))
    mean = sum(control[name.removeprefix("state/control/")] for control in controls) / 3
    torch.testing.assert_close(newest.tensors[name], mean, rtol=0, atol=1e-12)
