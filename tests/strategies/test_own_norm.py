"""Batch norm that stays with each client (FedBN): a phase that loads no model leaves each client's own as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import watch_phases
from umbel import run
from umbel.client import host
from umbel.core.memory import MemoryRecord, MemoryStore, Version
from umbel.strategies.fedloge.method import FedLoGe

K = 4
SMALL = (
    *("model.name=cnn", "model.sizes={width: 4, hidden: 16, norm: batch}", "model.norm=local", "run.min_replies=1"),
    *(f"data.num_clients={K}", "data.options.num_examples=400", "run.participation=1.0", "evaluate.every=0"),
)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int, int], MemoryRecord]:
    """All memory that is written, by round, step of the round, and client."""
    records: dict[tuple[int, int, int], MemoryRecord] = {}
    write = MemoryStore.write

    def noting(self: MemoryStore, client: int, version: Version, record: MemoryRecord, *rest: Any) -> None:
        records[version.round, version.step, client] = record
        write(self, client, version, record, *rest)

    monkeypatch.setattr(MemoryStore, "write", noting)
    return records


def norm_of(record: MemoryRecord) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for _, tensor in sorted(record.trees[host.OWN].items())])


def test_ggeurs_geometry_leaves_it_alone(written, tmp_path):
    """Round 2: step 0 is `statistics`, which loads the model; step 1 is `geometry`, which does not; 2 is `train`."""
    options = ("strategy.name=ggeur", "strategy.refresh=1", "run.rounds=2")
    run("synthetic", *SMALL, *options, f"run.results={tmp_path}")
    trained = [norm_of(written[1, 2, k]) for k in range(K)]
    assert not any(torch.equal(trained[0], other) for other in trained[1:])
    for k in range(K):
        assert "ggeur:geometry" in written[2, 1, k].trees  # it did remember
        assert torch.equal(norm_of(written[2, 1, k]), trained[k])
        assert not torch.equal(norm_of(written[2, 2, k]), trained[k])


def test_fedloges_classes_leave_it_alone(written, tmp_path, monkeypatch):
    """Client 3 is away in round 1, so that `classes` is asked again in round 2, after the others have trained."""

    def away(phase, payload, client):
        if client.round == 1 and client.id == 3:
            raise RuntimeError("away")
        return phase.local(payload, client)

    watch_phases(monkeypatch, FedLoGe, local=away)
    run("synthetic", *SMALL, "strategy.name=fedloge", "run.rounds=2", f"run.results={tmp_path}")
    for k in range(3):
        assert torch.equal(norm_of(written[2, 0, k]), norm_of(written[1, 1, k]))
    assert host.OWN not in written[2, 0, 3].trees  # it has trained nothing yet


def test_fot_keeps_what_was_trained_when_it_sketches_the_clients_own_model(written, tmp_path):
    """To load the model again for the sketch would bring back the batch norm of before."""
    tasks = ("data.partition=split_tasks", "data.num_tasks=2", "data.rounds_per_task=1", "run.rounds=2")
    run("synthetic", *SMALL, *tasks, "strategy.name=fot", "strategy.sketched=local", f"run.results={tmp_path}")
    trained = [norm_of(written[1, 0, k]) for k in range(K)]
    assert not any(torch.equal(trained[0], other) for other in trained[1:])  # as initialised, all would be equal
