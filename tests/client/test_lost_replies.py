"""A reply that the server never took: the client goes on from the memory that belongs to the last one it did."""

from __future__ import annotations

from pathlib import Path

import torch
from flwr.app import Message

from umbel.conf.load import load
from umbel.core.memory import MemoryStore, Version
from umbel.core.messages import Pieces, split_work
from umbel.server import checkpoint
from umbel.server.listener import Listener
from umbel.server.main import execute
from umbel.server.results import new_folder
from umbel.simulations.api import run_config
from umbel.simulations.engines.inline import InlinePort


class Lossy(InlinePort):
    """Answers block by block, as Ray does, and loses client 0's reply of round 2 after its memory was written."""

    def stream(self, messages, deadline, on_wait=None):
        for message in messages:
            arrays = dict(message.content.array_records)
            for piece in split_work(message.content):
                content = Pieces(piece.head, arrays).content()
                part = Message(content, message.metadata.dst_node_id, message.metadata.message_type)
                (reply,) = super().stream([part], deadline)
                if not (piece.clients == (0,) and '"round": 2' in piece.head):
                    yield reply


def test_scaffold_keeps_c_the_mean_of_its_clients(tmp_path: Path) -> None:
    """c = mean c_i holds whatever is lost: it would not if client 0 went on from the c_i that was never counted."""
    options = ["strategy.name=scaffold", "model.name=cnn", "data.num_clients=3", "data.max_train=150", "run.rounds=4"]
    fixed = ["run.fold_block=1", "client.precision=fp64", f"run.results={tmp_path}", "evaluate.every=0"]
    experiment = load("digits", [*options, *fixed])
    folder = new_folder(experiment)
    port = Lossy(run_config(experiment), {"state-folder": str(folder / "memory")}, lambda _: None)
    execute(experiment, port, Listener(), folder)

    found = checkpoint.latest(folder / "checkpoints")
    assert found is not None
    assert found.progress.num_failures == 1
    (run_folder,) = (folder / "memory").iterdir()
    store = MemoryStore(run_folder)
    controls = [
        store.read(int(client), Version(*version)).trees["control"]
        for client, version in found.progress.memories.items()
    ]
    assert len(controls) == 3
    name = next(name for name in found.tensors if name.startswith("state/control/"))
    mean = sum(control[name.removeprefix("state/control/")] for control in controls) / 3
    torch.testing.assert_close(found.tensors[name], mean, rtol=0, atol=1e-12)
