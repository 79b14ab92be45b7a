"""Training at home: nothing travels up, and everybody goes on from where they were."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import SMALL
from umbel import models, run

OPTIONS = ("strategy.name=umbel.strategies.local:Local", "evaluate.clients=-1", "evaluate.every=1")


def test_nothing_is_shared_and_everybody_learns(tmp_path):
    result = run("digits", *SMALL, *OPTIONS, "run.rounds=4", f"run.results={tmp_path}")
    assert result.summary["num_failures"] == 0
    rows = result.metrics.query("side == 'clients' and split == 'test' and metric == 'loss_mean'")
    assert rows["value"].is_monotonic_decreasing and len(rows) == 4
    losses = result.metrics.query("metric == 'loss' and split == 'train'")["value"]
    assert losses.is_monotonic_decreasing  # each goes on from its own model


def test_no_tensor_travels_up(tmp_path):
    quiet = ("evaluate.clients=0", "evaluate.every=0", f"run.results={tmp_path}")
    summary = run("digits", *SMALL, *OPTIONS, *quiet).summary
    assert summary["bytes_up"]["tensors"] == 0 < summary["bytes_up"]["framing"]


def test_the_generic_model_is_the_initial_one(tmp_path):
    one, two = (run("digits", *SMALL, *OPTIONS, f"run.rounds={n}", f"run.results={tmp_path}") for n in (1, 2))
    assert one.summary["weights_sha256"] == two.summary["weights_sha256"]


def test_clients_end_with_different_models(tmp_path):
    result = run("digits", *SMALL, *OPTIONS, "run.rounds=1", f"run.results={tmp_path}")
    files = sorted((result.path / "memory").rglob("*.safetensors"))
    heads = [next(t for name, t in load_file(path).items() if name.endswith("head.weight")) for path in files]
    assert len(heads) == 4 and not any(torch.equal(a, b) for a, b in combinations(heads, 2))


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
