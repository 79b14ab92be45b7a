"""EfficientNet-Lite: layers by hand, the package as reference, two backends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.data.encoders.samples import needs_lite, needs_minilm, needs_onnx, random_images
from umbel.core.rng import generator
from umbel.data import DataError, encoders
from umbel.data.encoders import base, lite_layers
from umbel.data.encoders.lite import LITE0, in_onnxruntime
from umbel.data.texts import Texts

torch.set_num_threads(1)


def hand_made(channels: int) -> list[lite_layers.Layer]:
    """Strides, one-sided padding, groups, a block that adds its input, in four small layers."""
    random = generator(3)

    def layer(out: int, into: int, kernel: int, **settings: Any) -> lite_layers.Layer:
        weight = torch.randn(out, into, kernel, kernel, generator=random)
        return lite_layers.Layer(weight, torch.randn(out, generator=random), **settings)

    plain = {"stride": 1, "padding": (0, 0, 0, 0), "groups": 1}
    return [
        layer(4, channels, 3, stride=2, padding=(0, 1, 0, 1), groups=1, clamp=True),
        layer(8, 4, 1, **plain, clamp=True, begins=True),
        layer(8, 1, 3, stride=1, padding=(1, 1, 1, 1), groups=8, clamp=True),
        layer(4, 8, 1, **plain, clamp=False, adds=True),
        layer(5, 4, 1, **plain, clamp=True),
    ]


def by_hand(layers: list[lite_layers.Layer], images: Tensor, size: int) -> Tensor:
    x = functional.interpolate(images.double(), size=(size, size), mode="bilinear", antialias=True)
    x = (x - 127) / 128
    weights = [(layer.weight.double(), layer.bias.double()) for layer in layers]
    x = functional.conv2d(functional.pad(x, (0, 1, 0, 1)), *weights[0], stride=2).clamp(0, 6)
    inner = functional.conv2d(x, *weights[1]).clamp(0, 6)
    inner = functional.conv2d(inner, *weights[2], padding=1, groups=8).clamp(0, 6)
    x = x + functional.conv2d(inner, *weights[3])
    return functional.conv2d(x, *weights[4]).clamp(0, 6).mean((2, 3)).float()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 12])
def test_layers_in_torch(channels: int, size: int) -> None:
    images, layers = random_images(5, channels, 8, 8), hand_made(channels)
    before = images.clone()
    assert torch.allclose(lite_layers.in_torch(layers, size, 1)(images), by_hand(layers, images, size), atol=1e-4)
    assert torch.equal(images, before)


@needs_onnx
@pytest.mark.parametrize("size", [8, 12])
def test_layers_in_onnxruntime(size: int) -> None:
    images, layers = random_images(5, 3, 8, 8), hand_made(3)
    encode = in_onnxruntime(lite_layers.to_onnx(layers, 8, 8, size), num_threads=1)
    assert torch.allclose(encode(images), by_hand(layers, images, size), atol=1e-4)


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    """The package's own network: images [B, 3, S, S] to [B, 1280]."""
    network = base.imported("efficientnet_lite_pytorch").EfficientNet

    def encode(images: Tensor, size: int) -> Tensor:
        model = network.from_name("efficientnet-lite0", image_size=size)
        model.load_state_dict(torch.load(LITE0._weights(), weights_only=True))
        with torch.inference_mode():
            x = functional.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
            return model.eval().extract_features(((x - 127) / 128).expand(-1, 3, -1, -1)).mean((2, 3))  # type: ignore[no-any-return]

    yield encode


@needs_lite
@pytest.mark.parametrize(("channels", "side", "size"), [(1, 28, 64), (3, 40, 33)])
@pytest.mark.parametrize("backend", [pytest.param("onnx", marks=needs_onnx), "torch"])
def test_lite0_is_the_packages(reference: Any, channels: int, side: int, size: int, backend: str) -> None:
    images = random_images(6, channels, side, side)
    embeddings = encoders.encode_images(images, f"lite0:{backend}", size=size)
    assert embeddings.shape == (6, 1280)
    assert torch.allclose(embeddings, reference(images, size), atol=1e-4)


@needs_lite
@needs_onnx
def test_lite0_depends_on_no_neighbour() -> None:
    images = random_images(20, 1, 28, 28)
    encode = LITE0.images("onnx", 32, images, images).open()
    embeddings = encode(images)
    assert torch.equal(encode(images.flip(0)).flip(0), embeddings)
    for batch in (1, 3, 16):
        assert torch.equal(torch.cat([encode(part) for part in images.split(batch)]), embeddings)


@needs_lite
def test_lite0_in_torch_depends_on_its_neighbours_by_rounding_only() -> None:
    images = random_images(20, 1, 28, 28)
    encode = LITE0.images("torch", 32, images, images).open()
    embeddings = encode(images)
    assert torch.equal(encode(images), embeddings)
    assert torch.allclose(torch.cat([encode(part) for part in images.split(3)]), embeddings, atol=1e-4)


@needs_lite
@needs_onnx
def test_backends_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(2, 1, 8, 8)

    def identity(argument: str, size: int = 0) -> dict[str, Any]:
        return dict(LITE0.images(argument, size, images, images).identity)

    assert identity("") == identity("onnx") == identity("onnx", 96)
    assert identity("onnx") != identity("torch") and identity("onnx") != identity("onnx", 64)
    assert set(identity("onnx")["versions"]) == {"onnxruntime"} and set(identity("torch")["versions"]) == {"torch"}
    monkeypatch.setattr("umbel.data.encoders.lite.installed", lambda *modules: False)
    plan = LITE0.images("", 0, images, images)
    assert plan.identity == identity("torch") and "pip install onnx onnxruntime" in plan.note


@needs_lite
@pytest.mark.parametrize("name", ["lite0:torch", pytest.param("minilm", marks=needs_minilm)])
def test_nothing_global_is_drawn_or_set(name: str) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    if name == "minilm":
        encoders.encode_texts(Texts.of(["a"]), name)
    else:
        encoders.encode_images(random_images(2, 1, 8, 8), name, size=32)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


@needs_lite
def test_channels_that_are_no_picture() -> None:
    with pytest.raises(DataError, match=r"lite0: expected images of 1 or 3 channels, found 2"):
        encoders.encode_images(random_images(2, 2, 8, 8), "lite0")
