"""A model's file says what it is, and is refused when it is not what was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.simulations.use.conftest import BRIEF, SMALL
from umbel import RunResult, data, load_model, run
from umbel.core.files import DamagedError, read_tensors, write_tensors
from umbel.core.refusal import Refusal
from umbel.core.tree import sha256
from umbel.models import card
from umbel.models.norm import batch_norm_names


def said(path: Path) -> dict[str, object]:
    with safe_open(path, "pt") as file:
        content: dict[str, object] = json.loads(file.metadata()["umbel"])
    return content


def test_every_saved_model_says_what_it_is(small: RunResult) -> None:
    digits = data.load(data.DataConfig(), 0)
    for name in ("model.safetensors", "best.safetensors"):
        content = said(small.path / name)
        assert content["classes"] == [str(digit) for digit in range(10)]
        assert (content["mean"], content["std"]) == (list(digits.mean), list(digits.std))
        assert (content["image_size"], content["in_channels"]) == (8, 1)
        assert (content["model"], content["sizes"], content["version"]) == ("cnn", {"width": 4, "hidden": 16}, "0.1.0")
        assert content["unusable"] == "" and content["remarks"] == []


def test_the_hash_is_that_of_the_tensors_alone(small: RunResult) -> None:
    tensors = read_tensors(small.path / "model.safetensors")[0]
    assert (
        small.summary["weights_sha256"] == sha256(tensors) == said(small.path / "model.safetensors")["weights_sha256"]
    )


def test_the_file_has_the_same_bytes_every_time(small: RunResult, tmp_path: Path) -> None:
    again = run("digits", *SMALL, f"run.results={tmp_path}")
    assert (again.path / "model.safetensors").read_bytes() == (small.path / "model.safetensors").read_bytes()


def test_a_file_is_enough(small: RunResult, tmp_path: Path) -> None:
    file = shutil.copy(small.path / "best.safetensors", tmp_path / "some.safetensors")
    trained, images = load_model(file), data.load(data.DataConfig(), 0).test.images[:7]
    assert trained.run is None and trained.classes[3] == "3" and not trained.model.training
    state = trained.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in read_tensors(Path(file))[0].items())
    mean, std = trained.card.mean[0], trained.card.std[0]
    pixels = images if images.is_floating_point() else images / 255
    expected = trained.model((pixels - mean) / std)
    torch.testing.assert_close(trained.logits(images), expected)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.name=inception_next_tiny32", "model.sizes={}", "model.norm=group"),
        ("model.operators={wconv: {density: [0.7]}}",),
        ("client.precision=fp64",),
    ],
)
def test_norm_rule_operators_and_dtype_come_back(overrides: tuple[str, ...], tmp_path: Path) -> None:
    result = run("digits", *BRIEF, *overrides, "run.rounds=1", "evaluate.every=1", f"run.results={tmp_path}")
    model, file = load_model(result.path).model, result.path / "model.safetensors"
    assert not batch_norm_names(model)
    tensors = read_tensors(file)[0]
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == {
        name: tensor.dtype for name, tensor in tensors.items()
    }
    evaluated = model.state_dict()
    assert all(torch.equal(evaluated[name], tensor) for name, tensor in tensors.items())


def test_batch_norm_that_stayed_with_clients_is_remarked(tmp_path: Path) -> None:
    norm = (
        "model.name=inception_next_tiny32",
        "model.sizes={}",
        "model.norm=local",
        "run.rounds=1",
        "evaluate.every=1",
    )
    result = run("digits", *BRIEF, *norm, f"run.results={tmp_path}")
    assert "batch norm is as it began" in load_model(result.path).card.remarks[0]


def test_what_is_no_model_is_refused(small: RunResult, tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    write_tensors(plain, {"weight": torch.zeros(2)})
    with pytest.raises(Refusal, match="metadata do not say what model it is"):
        load_model(plain)
    with pytest.raises(Refusal, match="no such file or folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(Refusal, match=r"has no model\.safetensors"):
        load_model(tmp_path)
    tensors, known = card.read(small.path / "model.safetensors")
    other = tmp_path / "other.safetensors"
    write_tensors(other, tensors, {"umbel": json.dumps({"version": "9.9.9"})})
    with pytest.raises(Refusal, match=r"another version of umbel \(9.9.9\)"):
        load_model(other)
    write_tensors(other, tensors, {"umbel": known.metadata()["umbel"].replace('"image_size": 8', '"image_size": "8"')})
    with pytest.raises(Refusal, match="image_size='8'"):
        load_model(other)


def test_changed_weights_are_refused(small: RunResult, tmp_path: Path) -> None:
    tensors, known = card.read(small.path / "model.safetensors")
    file = tmp_path / "changed.safetensors"
    write_tensors(file, tensors | {"head.bias": tensors["head.bias"] + 1}, known.metadata())
    with pytest.raises(DamagedError, match="hash"):
        load_model(file)
    folder = shutil.copytree(small.path, tmp_path / "run")
    shutil.copy(file, folder / "model.safetensors")
    with pytest.raises(DamagedError, match=r"model\.safetensors"):
        load_model(folder)
