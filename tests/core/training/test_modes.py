"""Fast modes: how they are written, what `auto` comes to, and where a run names them."""

from __future__ import annotations

import json

import pytest
import torch

from umbel import run
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load, portable_hash
from umbel.core.training import LocalConfig, modes
from umbel.models import build

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = ("model.name=linear", "data.max_train=40", "data.num_clients=2", "run.rounds=1", "client.max_steps=1")


@pytest.mark.parametrize(
    ("written", "meant"), [("false", "none"), ("true", "model"), ("none", "none"), ("model", "model"), ("step", "step")]
)
def test_truth_values_mean_what_they_meant(written, meant):
    assert load("digits", [f"client.compile={written}"]).client.compile == meant
    assert LocalConfig(compile=written).compile == meant


@pytest.mark.parametrize(("written", "meant"), [("false", False), ("true", True), ("auto", "auto")])
def test_memory_order_is_a_truth_value_or_auto(written, meant):
    assert load("digits", [f"client.channels_last={written}"]).client.channels_last == meant


@pytest.mark.parametrize(
    "override", ["client.compile=fast", "client.channels_last=2", "client.together=0", "client.together=some"]
)
def test_other_words_are_refused_by_key(override):
    with pytest.raises(ExperimentError, match=override.partition("=")[0].replace(".", r"\.")):
        load("digits", [override])


def test_each_mode_is_part_of_what_all_must_agree_on():
    overrides = ["", "client.compile=step", "client.together=2", "client.channels_last=true", "client.together=auto"]
    assert len({portable_hash(load("digits", [each] if each else [])) for each in overrides}) == len(overrides)


@pytest.mark.parametrize(
    ("name", "sizes", "expected"),
    [("cnn", {"width": 32}, True), ("cnn", {"width": 4}, False), ("linear", {}, False), ("mlp", {}, False)],
)
def test_auto_looks_for_convolutions_over_many_channels(name, sizes, expected):
    model = build(name, 10, image_size=16, in_channels=3, **sizes)
    assert modes.uses_channels_last(LocalConfig(channels_last="auto"), model) is expected
    assert not modes.uses_channels_last(LocalConfig(), model)


def test_how_many_train_at_once():
    assert modes.num_together(LocalConfig(), CUDA) == 1
    assert modes.num_together(LocalConfig(together=3), CPU) == 3
    assert modes.num_together(LocalConfig(together="auto"), CPU) == 1
    assert modes.num_together(LocalConfig(together="auto"), CUDA) > 1


def test_what_cannot_be_had_is_said_before_the_first_step(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    bounded = build("convnext_dcls_tiny32", 10, image_size=32, in_channels=3)
    (about,) = modes.notices(LocalConfig(compile="model"), bounded, CPU)
    assert "no C++ compiler" in about
    (about,) = modes.notices(LocalConfig(together=2), bounded, CPU)
    assert about.startswith("client.together=2") and "within bounds" in about
    bounded.head.register_forward_hook(lambda module, given, output: None)
    (about,) = modes.notices(LocalConfig(compile="step"), bounded, CUDA)
    assert "has hooks" in about
    assert not list(modes.notices(LocalConfig(), bounded, CPU))


def test_a_run_names_them(tmp_path):
    result = run("digits", *SMALL, "client.together=9", "client.channels_last=auto", f"run.results={tmp_path}")
    assert result.summary["modes"] == {"channels_last": False, "compile": "none", "together": 9}
    asked = json.loads((result.path / "env.json").read_text())["modes"]
    assert asked == {"channels_last": "auto", "compile": "none", "together": 9}
    assert "together: 9" in (result.path / "config.yaml").read_text()
