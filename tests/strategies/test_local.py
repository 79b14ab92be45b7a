"""Training at home: nothing travels up, and everybody goes on from where they were."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import SMALL
from umbel import models, run
from umbel.server.exchange import Exchange
from umbel.strategies.local import Local

OPTIONS = ("strategy.name=umbel.strategies.local:Local", "evaluate.clients=-1", "evaluate.every=1")


def test_nothing_is_shared_and_everybody_learns(tmp_path, monkeypatch):
    up, original = [], Exchange.run

    def measured(self, work, payload, cohort, fold):
        answer, report = original(self, work, payload, cohort, fold)
        if work.phase == "train":
            up.append(report.bytes_up)
        return answer, report

    monkeypatch.setattr(Exchange, "run", measured)
    result = run("digits", *SMALL, *OPTIONS, "run.rounds=4", f"run.results={tmp_path}")
    assert up == [0, 0, 0, 0] and result.summary["num_failures"] == 0
    rows = result.metrics.query("side == 'clients' and split == 'test' and metric == 'loss_mean'")
    assert rows["value"].is_monotonic_decreasing and len(rows) == 4
    losses = result.metrics.query("metric == 'loss' and split == 'train'")["value"]
    assert losses.is_monotonic_decreasing  # each goes on from its own model


def test_the_generic_model_is_the_initial_one(tmp_path):
    found = [run("digits", *SMALL, *OPTIONS, f"run.rounds={n}", f"run.results={tmp_path}") for n in (1, 2)]
    assert found[0].summary["weights_sha256"] == found[1].summary["weights_sha256"]


def test_clients_end_with_different_models(tmp_path, monkeypatch):
    kept, local = {}, Local.local

    def watch(self, payload, client):
        def remember(record):
            kept[client.id] = record.trees["model"]["head.weight"]
            original(record)

        original = client.remember
        object.__setattr__(client, "remember", remember)
        return local(self, payload, client)

    monkeypatch.setattr(Local, "local", watch)
    run("digits", *SMALL, *OPTIONS, f"run.results={tmp_path}")
    assert len(kept) == 4 and all(not torch.equal(kept[0], kept[k]) for k in (1, 2, 3))


def test_the_cnn_with_batch_norm(tmp_path):
    torch.manual_seed(0)
    plain = models.build("cnn", 10, 8, 1)
    torch.manual_seed(0)
    normed = models.build("cnn", 10, 8, 1, norm="batch")
    # Batch norm draws nothing at random, so that both begin with the same weights.
    shared = plain.state_dict().keys() & normed.state_dict().keys()
    assert shared == plain.state_dict().keys()
    assert all(torch.equal(plain.state_dict()[k], normed.state_dict()[k]) for k in shared)
    extra = sum(p.numel() for p in normed.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == 2 * (16 + 32 + 64)
    assert normed.features(torch.randn(5, 1, 8, 8)).shape == (5, 64)
    with pytest.raises(ValueError, match=r"model\.sizes\.norm should be none or batch"):
        models.build("cnn", 10, 8, 1, norm="group")
    # Group norm takes its place as it does elsewhere.
    sizes = "model.sizes={width: 4, hidden: 16, norm: batch}"
    result = run("digits", *SMALL, sizes, "model.norm=group", "run.rounds=1", f"run.results={tmp_path}")
    assert "norm1.running_mean" not in load_file(result.path / "model.safetensors")
