"""Ways of running a model that are configuration: recomputation, memory order, compilation, the norm's rule."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import COMPILES
from umbel import run
from umbel.client.host import Host
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load

SMALL = (
    *("model.name=cvt_tiny32", "data.max_train=60", "data.num_clients=2", "run.rounds=1"),
    *("client.max_steps=2", "evaluate.clients=0", "checkpoint.every=0"),
)


def go(tmp_path, *options: str):
    return run("digits", *SMALL, *options, f"run.results={tmp_path}").summary


def test_recomputed_blocks_change_no_bit(tmp_path):
    options = ("model.sizes={drop_path: 0.2}",)
    plain, other = go(tmp_path / "a", *options), go(tmp_path / "b", *options, "model.checkpoint=true")
    assert plain["weights_sha256"] == other["weights_sha256"]


def test_channels_last_changes_only_rounding(tmp_path):
    plain, other = go(tmp_path / "a"), go(tmp_path / "b", "client.channels_last=true")
    assert other["metrics"]["test/loss"] == pytest.approx(plain["metrics"]["test/loss"], abs=1e-4)
    host = Host(load("digits", [*SMALL, "client.channels_last=true"]))
    assert host.model.stages[0].embed.weight.is_contiguous(memory_format=torch.channels_last)
    prepared = host.prepare(host.data.client(0).train)[0]
    assert prepared.is_contiguous(memory_format=torch.channels_last)
    assert prepared[torch.tensor([2, 0, 1])].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own parts, on its first import
@COMPILES
def test_compiled_models_change_only_rounding(tmp_path):
    plain, other = go(tmp_path / "a"), go(tmp_path / "b", "client.compile=true")
    assert other["num_failures"] == 0
    assert other["metrics"]["test/loss"] == pytest.approx(plain["metrics"]["test/loss"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own parts, on its first import
@COMPILES
@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_compiled_steps_change_only_rounding(strategy, tmp_path):
    """The second client, and the second round, go through the graph that the first one's steps were made into."""
    few = ("model.name=mlp", "model.sizes={hidden: 8}", "client.batch_size=8", "client.max_steps=3", "run.rounds=2")
    options = (*few, f"strategy.name={strategy}")
    plain, other = go(tmp_path / "a", *options), go(tmp_path / "b", *options, "client.compile=step")
    assert other["num_failures"] == 0 and other["modes"]["compile"] == "step"
    assert other["metrics"]["test/loss"] == pytest.approx(plain["metrics"]["test/loss"], abs=1e-5)


@pytest.mark.parametrize(("norm", "groups"), [("group", 8), ("layer", 1)])
def test_norms_in_the_place_of_batch_norm(norm, groups):
    model = Host(load("digits", [*SMALL, f"model.norm={norm}"])).model
    group_counts = {module.num_groups for module in model.modules() if isinstance(module, torch.nn.GroupNorm)}
    assert group_counts == {groups}
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


def test_refusals():
    with pytest.raises(ExperimentError, match=r"model\.norm"):
        load("digits", [*SMALL, "model.norm=instance"])
    with pytest.raises(ExperimentError, match=r"client\.compile=model and model\.checkpoint=true"):
        load("digits", [*SMALL, "client.compile=true", "model.checkpoint=true"])
    with pytest.raises(ValueError, match=r"model\.checkpoint: CNN has no blocks"):
        _ = Host(load("digits", ["model.name=cnn", "model.checkpoint=true"])).model
