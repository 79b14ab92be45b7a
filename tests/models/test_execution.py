"""Ways of running a model that are configuration: recomputation, memory order, compilation, the norm's rule."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

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
@pytest.mark.skipif(
    shutil.which("c++") is None or not (Path(sysconfig.get_path("include")) / "Python.h").is_file(),
    reason="torch.compile needs a C++ compiler and Python's headers on a CPU",
)
def test_compiled_models_change_only_rounding(tmp_path):
    plain, other = go(tmp_path / "a"), go(tmp_path / "b", "client.compile=true")
    assert other["num_failures"] == 0
    assert other["metrics"]["test/loss"] == pytest.approx(plain["metrics"]["test/loss"], abs=1e-3)


@pytest.mark.parametrize(("norm", "groups"), [("group", 8), ("layer", 1)])
def test_norms_in_the_place_of_batch_norm(norm, groups):
    model = Host(load("digits", [*SMALL, f"model.norm={norm}"])).model
    found = {module.num_groups for module in model.modules() if isinstance(module, torch.nn.GroupNorm)}
    assert found == {groups}
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


def test_refusals():
    with pytest.raises(ExperimentError, match=r"model\.norm"):
        load("digits", [*SMALL, "model.norm=instance"])
    with pytest.raises(ExperimentError, match=r"client\.compile=true and model\.checkpoint=true"):
        load("digits", [*SMALL, "client.compile=true", "model.checkpoint=true"])
    with pytest.raises(ValueError, match=r"model\.checkpoint: CNN has no blocks"):
        _ = Host(load("digits", ["model.name=cnn", "model.checkpoint=true"])).model
