"""What is exported gives the logits of the model, for any number of images, in each format, for each family."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.simulations.commands.command_line import umbel
from umbel import RunResult, data, export, load_model, models
from umbel.core.files import write_tensors
from umbel.core.refusal import Refusal
from umbel.core.tree import sha256
from umbel.models.card import Card

ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not ONNX, reason='no onnx, onnxscript and onnxruntime: pip install "umbel[export]"')
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # what torch says of TorchScript
FAMILIES = [name for name in models.names() if name.endswith("_tiny32")]
OTHERS = ["alexnet_small", "cnn", "lenet", "mlp", "resnet18", "spartan"]


def saved(name: str, folder: Path, in_channels: int = 3, image_size: int = 32) -> Path:
    """A file with a model of fresh weights."""
    torch.manual_seed(0)
    tensors = models.build(name, 10, image_size, in_channels).state_dict()
    card = Card(
        version="0.1.0",
        strategy="fedavg",
        model=name,
        sizes={},
        operators={},
        norm="average",
        seed=0,
        image_size=image_size,
        in_channels=in_channels,
        classes=tuple("abcdefghij"),
        mean=(0.5, 0.4, 0.3)[:in_channels],
        std=(0.2, 0.25, 0.3)[:in_channels],
        encoder="",
        encoder_size=0,
        picture_size=image_size,
        picture_channels=in_channels,
        white=0,
        tasks=(),
        unusable="",
        remarks=(),
        weights_sha256=sha256(tensors),
    )
    write_tensors(folder / f"{name}.safetensors", tensors, card.metadata())
    return folder / f"{name}.safetensors"


def run_file(path: Path, kind: str, images: Tensor) -> Tensor:
    if kind == "torchscript":
        with torch.jit.optimized_execution(False):
            return torch.jit.load(path)(images)
    if kind == "pt2":
        return torch.export.load(path).module()(images)
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def check(name: str, kind: str, folder: Path) -> None:
    file = saved(name, folder)
    exported = export(file, kind)
    assert exported.difference is not None
    trained = load_model(file)
    images = torch.rand(5, 3, trained.card.image_size, trained.card.image_size)
    expected = trained.logits(images)
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(run_file(exported.path, kind, images), expected, atol=1e-4 * max(scale, 1e-3), rtol=1e-3)


@pytest.mark.slow  # a trace of each family
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_as_torchscript(name: str, tmp_path: Path) -> None:
    """The file has run on one image and on three before it was written (see below for what is not)."""
    exported = export(saved(name, tmp_path), "torchscript")
    assert exported.path.is_file() and exported.difference is not None and exported.difference < 1e-5


@pytest.mark.slow
@pytest.mark.exhaustive  # seconds each
@pytest.mark.parametrize("name", FAMILIES + OTHERS)
def test_every_family_as_a_program_of_torch_export(name: str, tmp_path: Path) -> None:
    check(name, "pt2", tmp_path)


@needs_onnx
@pytest.mark.slow
@pytest.mark.exhaustive  # up to a minute each
@pytest.mark.parametrize("name", FAMILIES + OTHERS)
def test_every_family_as_onnx(name: str, tmp_path: Path) -> None:
    check(name, "onnx", tmp_path)


@needs_onnx
@pytest.mark.slow
@pytest.mark.exhaustive  # half a minute
def test_what_onnx_cannot_say_is_refused(tmp_path: Path) -> None:
    """UniFormer-XXS sorts its tokens, ties in their order, for which the exporter has no translation."""
    file = saved("uniformer_xxs", tmp_path, image_size=64)
    with pytest.raises(Refusal, match=r"uniformer_xxs cannot be exported as onnx: .*aten\.sort"):
        export(file, "onnx")
    assert export(file, "torchscript").path.is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torchscript", "pt2", pytest.param("onnx", marks=needs_onnx)])
def test_a_run_as_a_file_that_normalises_and_says_what_it_is(small: RunResult, kind: str, tmp_path: Path) -> None:
    output = tmp_path / f"model.{kind}"
    result = umbel("export", small.path, f"--{kind}", "--output", output)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(output) and "differ from the model's by" in result.stderr
    images = data.load(data.DataConfig(), 0).test.images[:9]
    pixels = images if images.is_floating_point() else images / 255
    torch.testing.assert_close(run_file(output, kind, pixels), load_model(small.path).logits(images), atol=1e-4, rtol=0)
    assert said(output, kind)["classes"] == [str(digit) for digit in range(10)]


def said(path: Path, kind: str) -> dict[str, object]:
    extra = {"umbel": ""}
    if kind == "torchscript":
        torch.jit.load(path, _extra_files=extra)
    elif kind == "pt2":
        torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra)
    else:
        import onnx

        extra = {each.key: each.value for each in onnx.load(path).metadata_props}
    content: dict[str, object] = json.loads(extra["umbel"])
    return content


BRANCHING = """
import torch
from umbel.models import Model

class Branching(Model):
    def __init__(self, num_classes, image_size, in_channels):
        super().__init__()
        self.num_features, self.in_channels, self.image_size = in_channels, in_channels, image_size
        self.head = torch.nn.Linear(in_channels, num_classes)

    def features(self, x):
        x = x.mean(dim=(2, 3))
        return x if len(x) > 1 and len(x) % 2 == 0 else 3 * x

def factory(num_classes, image_size=8, in_channels=3):
    return Branching(num_classes, image_size, in_channels)
"""


def test_a_file_that_gives_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace of two images took one of two ways; the model takes the other with one image or three."""
    (tmp_path / "branching.py").write_text(BRANCHING)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = saved("branching:factory", tmp_path, image_size=8)
    with pytest.raises(Refusal, match="gives logits that differ"):
        export(file, "torchscript")
    with pytest.raises(Refusal, match="cannot be exported as pt2"):
        export(file, "pt2")
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} == {".py", ".safetensors"}


def test_refused(small: RunResult, tmp_path: Path) -> None:
    for arguments in ((), ("--onnx", "--pt2")):
        result = umbel("export", small.path, *arguments)
        assert result.exit_code == 2 and "Say one of --onnx, --torchscript and --pt2" in result.stderr
    result = umbel("export", tmp_path, "--torchscript")
    assert result.exit_code == 2 and "has no model.safetensors" in result.stderr
    with pytest.raises(Refusal, match="onnx, torchscript, pt2"):
        export(small.path, "keras")


def test_without_onnx_the_command_to_install_it_is_said(small: RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    hidden = ("onnx", "onnxscript")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in hidden else find_spec(name, *more)
    )
    result = umbel("export", small.path, "--onnx")
    assert result.exit_code == 2 and "umbel[export]" in result.stderr
