"""CreamFL as a whole: what travels, who takes part, what the server makes of it."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from tests.strategies.creamfl.pairs import go
from umbel import resume
from umbel.server.listener import Listener
from umbel.strategies.creamfl.architectures import modality
from umbel.strategies.creamfl.method import Config, CreamFL


@pytest.mark.slow
def test_clients_of_every_kind_are_measured_and_the_server_learns(tmp_path):
    result = go(tmp_path, "run.rounds=6", "strategy.server_epochs=3", "evaluate.clients=-1")
    metrics = result.summary["metrics"]
    assert {"clients/test/image/accuracy", "clients/test/text/accuracy", "clients/test/retrieval/i2t_recall@1"} <= set(
        metrics
    )
    rows: pd.DataFrame = result.metrics
    rsum = rows[(rows.side == "server") & (rows.split == "validation") & (rows.metric == "rsum")].sort_values("round")
    assert rsum.value.iloc[-1] > rsum.value.iloc[0] + 50
    assert result.summary["best_round"] > 1
    assert len(result.summary["representations_sha256"]) == 64


def test_every_client_has_a_model_of_its_own(tmp_path):
    """Kinds by partition number, architectures in turn, different weights."""
    config = Config(num_image=2, num_text=2, num_both=2)
    assert [modality(client, config) for client in range(6)] == ["image", "image", "text", "text", "both", "both"]
    result = go(tmp_path, "run.rounds=1", "checkpoint.every=1")
    from safetensors.torch import load_file

    encoders = {
        int(path.parent.name): load_file(path) for path in sorted((result.path / "memory").rglob("*.safetensors"))
    }
    assert sorted(encoders) == list(range(6))
    assert not any("text" in name for name in encoders[0])
    assert any("convolution" in name or "conv" in name for name in encoders[0])  # cnn, then mlp
    assert any("layers" in name for name in encoders[1])
    assert not any("encoders/image" in name for name in encoders[2])
    assert any("image" in name for name in encoders[4])
    assert any("text" in name for name in encoders[4])
    assert not torch.equal(encoders[4]["encoders/text_map.weight"], encoders[5]["encoders/text_map.weight"])


@pytest.mark.slow
def test_noise_hardly_counts_under_contrast(tmp_path, monkeypatch):
    """Weights of the clients with images, one of which sends noise, beside the third of the mean."""
    weights: list[torch.Tensor] = []
    from umbel.strategies.creamfl import ensemble

    original = ensemble.aggregate

    def watched(*arguments):
        made = original(*arguments)
        weights.append(made[1].mean(1))
        return made

    monkeypatch.setattr(ensemble, "aggregate", watched)
    options = ("strategy.noise_clients=[0]", "strategy.ensemble_temperature=0.05", "strategy.server_epochs=3")
    go(tmp_path, *options, "run.rounds=6", "client.epochs=2", "evaluate.every=6")
    image = weights[-2]  # text comes last
    assert len(image) == 4
    torch.testing.assert_close(image.sum(), torch.tensor(1.0))
    assert float(image[0]) < 0.6 * float(image[1:].mean())


@pytest.mark.slow
def test_each_switch_changes_the_outcome(tmp_path):
    base = go(tmp_path / "base").summary
    switches = (
        *("strategy.inter=false", "strategy.intra=false", "strategy.contrast=0", "strategy.ensemble=mean"),
        *("strategy.distil=0", "strategy.wire=int8", "strategy.class_loss=plain", "strategy.exclude_self=true"),
        *("strategy.pair_loss=pcme", "strategy.server_cosine=false", "strategy.public_per_round=50"),
    )
    hashes = {each: go(tmp_path / each, each).summary["representations_sha256"] for each in switches}
    assert len({base["representations_sha256"], *hashes.values()}) == len(switches) + 1


def test_a_stop_and_a_resume_change_no_bits(tmp_path):
    class Stopping(Listener):
        def begin(self, experiment, folder: str) -> None:
            self._folder = folder

        def round(self, round_: int, num_rounds: int, metrics, seconds: float) -> None:
            if round_ == 3:
                raise KeyboardInterrupt

    options = ("run.rounds=5", "checkpoint.every=2", "strategy.stratify=false", "run.clients_per_round=3")
    whole = go(tmp_path / "whole", *options).summary
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", *options, listener=Stopping())
    gone_on = resume(tmp_path / "cut" / "run").summary
    for key in ("weights_sha256", "representations_sha256"):
        assert gone_on[key] == whole[key]


def test_the_phases_of_a_round():
    phases = CreamFL(Config(num_image=1, num_text=1, num_both=1)).phases(None)
    assert [(each.name, each.who, each.groups) for each in phases] == [
        ("learn", "server", ()),
        ("contrast", "sample", (0, 1, 2)),
    ]
