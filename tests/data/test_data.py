"""Data sets, transforms and the federation."""

from __future__ import annotations

import gzip
import json
import struct
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from umbel import data
from umbel.core.names import UnknownNameError
from umbel.core.refusal import Refusal
from umbel.core.rng import generator
from umbel.data.config import DataConfig
from umbel.data.sets import fashion_mnist
from umbel.data.sources import hub
from umbel.data.split import hashed, stratified, subset
from umbel.data.types import channel_statistics

torch.set_num_threads(1)


def synthetic(**settings: object) -> DataConfig:
    options = {"num_examples": 600, "num_test": 50, "image_size": 8, "num_domains": 2, "num_classes": 5}
    return DataConfig(name="synthetic", options=options, **settings)  # type: ignore[arg-type]


# --- types ----------------------------------------------------------------------------------------


def test_examples_take_and_to() -> None:
    images = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2)
    examples = data.Examples(images, torch.tensor([5, 6, 7]), tasks=torch.tensor([0, 1, 2]))
    found = examples.take(torch.tensor([2, 0]))
    assert len(found) == 2 and found.labels.tolist() == [7, 5] and found.domains is None
    assert found.tasks is not None and found.tasks.tolist() == [2, 0]
    assert found.images[:, 0, 0, 0].tolist() == [8, 0]
    assert examples.take(torch.tensor([False, True, False])).labels.tolist() == [6]
    floating = examples.to("cpu", torch.float32)
    assert torch.equal(floating.images, images.float() / 255)
    assert floating.to("cpu", torch.float64).images.max() == pytest.approx(11 / 255)
    assert images.dtype == torch.uint8 and images[0, 0, 0, 1] == 1  # what was given is as it was


def test_examples_of_wrong_shape() -> None:
    with pytest.raises(data.DataError, match=r"or embeddings \[N, D\], found \(3, 2, 2\)"):
        data.Examples(torch.zeros(3, 2, 2), torch.zeros(3).long())
    with pytest.raises(data.DataError, match=r"Expected labels of shape \[3\] and dtype int64, found \(2,\)"):
        data.Examples(torch.zeros(3, 1, 2, 2), torch.zeros(2).long())


def test_channel_statistics_are_torchs() -> None:
    images = torch.randint(0, 256, (70, 3, 5, 5), generator=generator(0), dtype=torch.uint8)
    images[:, 2] = 9
    mean, std = channel_statistics(images, chunk=32)
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert std[:2] == pytest.approx(pixels[:, :2].std((0, 2, 3), correction=0).tolist())
    assert std[2] == 1.0  # a constant channel is not divided by zero


# --- splits ---------------------------------------------------------------------------------------


def test_stratified_takes_its_share_of_each_group() -> None:
    groups = torch.tensor([0] * 40 + [3] * 10 + [1] * 1)
    rest, taken = stratified(groups, 0.25, seed=3, purpose="test")
    assert torch.bincount(groups[taken], minlength=4).tolist() == [10, 0, 0, 3]
    assert torch.equal(torch.cat([rest, taken]).sort().values, torch.arange(51))
    assert torch.equal(stratified(groups, 0.25, 3, "test")[1], taken)
    assert not torch.equal(stratified(groups, 0.25, 4, "test")[1], taken)
    assert not torch.equal(stratified(groups, 0.25, 3, "other")[1], taken)
    # The last example of a group is never taken.
    assert torch.bincount(groups[stratified(groups, 0.99, 3, "test")[0]]).min() == 0
    assert torch.bincount(groups[stratified(groups, 0.99, 3, "test")[0]]).tolist() == [1, 1, 0, 1]


def test_subset_and_hash() -> None:
    assert subset(5, 0, 0, "x").tolist() == [0, 1, 2, 3, 4] == subset(5, 9, 0, "x").tolist()
    some = subset(1000, 10, 0, "x")
    assert len(some.unique()) == 10 and torch.equal(some, some.sort().values)
    assert sum(hashed(str(key), 0.2) for key in range(2000)) == pytest.approx(400, abs=60)


# --- the registry ---------------------------------------------------------------------------------


def test_names_have_lines_and_options() -> None:
    assert {"digits", "emoji_domains", "fashion_mnist", "hub:<owner/name>", "stamps"} < set(data.names())
    assert list(data.names()) == sorted(data.names())
    assert all("\n" not in data.describe(name) and data.describe(name) for name in data.names())
    assert data.options("synthetic")["num_examples"] == 6400
    assert "image_column" in data.options("hub:owner/name")


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown data set 'digit' \(key data\.name\)\. Did you mean 'digits'"):
        data.check(DataConfig(name="digit"))
    with pytest.raises(UnknownNameError, match=r"\(key data\.options\.num_example\)\. Did you mean 'num_examples'"):
        data.check(DataConfig(name="synthetic", options={"num_example": 3}))
    with pytest.raises(UnknownNameError, match=r"augmentation 'flips' \(key data\.augment\)"):
        data.check(DataConfig(augment="flips"))
    with pytest.raises(UnknownNameError, match=r"partition 'iidd' \(key data\.partition\)"):
        data.check(DataConfig(partition="iidd"))


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_set.py").write_text(
        "import dataclasses, data\n"
        "def load(config, seed):\n"
        "    found = data.load(dataclasses.replace(config, name='synthetic'), seed)\n"
        "    return dataclasses.replace(found, name='mine')\n"
        "def wrong(config, seed):\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = DataConfig(name="my_own_set:load", options={"num_examples": 20, "num_test": 5})
    data.check(config)
    assert data.load(config, 0).name == "mine"
    with pytest.raises(data.DataError, match=r"my_own_set has no function 'other'"):
        data.check(DataConfig(name="my_own_set:other"))
    with pytest.raises(data.DataError, match=r"module 'no_such_module' is not installed"):
        data.check(DataConfig(name="no_such_module:load"))
    with pytest.raises(data.DataError, match=r"expected a data\.DataSet, found int"):
        data.load(DataConfig(name="my_own_set:wrong"), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"client_test": 1.0}, r"data\.client_test should be at least 0 and below 1, found 1\.0"),
        ({"client_test": 0.5, "client_validation": 0.5}, r"must be less than 1, found 1; a client must keep"),
        ({"server_validation": -0.1}, r"data\.server_validation should be at least 0"),
        ({"max_train": -1}, r"data\.max_train should be at least 0, found -1"),
        (
            {"name": "synthetic", "options": {"noise": -1}},
            r"data\.options\.noise must be a number of at least 0",
        ),
        (
            {"name": "synthetic", "options": {"image_size": 0}},
            r"data\.options\.image_size must be a whole number",
        ),
        ({"name": "hub:"}, r"expected hub:<owner/name> or hub:<folder>"),
        ({"name": "hub:/no/such"}, r"there is no folder /no/such"),
        ({"name": "image_folder"}, r"needs data\.path"),
        ({"name": "image_folder", "path": "/no/such"}, r"data\.path=/no/such: there is no such folder"),
        ({"name": "fashion_mnist", "options": {"hub": "yes"}}, r"data\.options\.hub must be true or false"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(Refusal, match=message):
        data.check(DataConfig(**settings))  # type: ignore[arg-type]


# --- digits and synthetic -------------------------------------------------------------------------


def test_digits() -> None:
    found = data.load(DataConfig(), 0)
    assert (len(found.train), len(found.test)) == (1438, 359)
    assert found.train.images.shape == (1438, 1, 8, 8) and found.train.images.dtype == torch.uint8
    assert int(found.train.images.max()) == 255
    assert (found.num_classes, found.image_size, found.in_channels) == (10, 8, 1)
    share = torch.bincount(found.test.labels) / torch.bincount(torch.cat([found.train.labels, found.test.labels]))
    assert float((share - 0.2).abs().max()) < 0.01
    assert torch.equal(data.load(DataConfig(), 9).test.images, found.test.images)  # one test set for ever


def test_synthetic_follows_its_seed_and_can_be_learnt() -> None:
    config = DataConfig(name="synthetic", options={"image_size": 8})
    found, again, other = (data.load(config, seed) for seed in (0, 0, 1))
    assert torch.equal(found.train.images, again.train.images)
    assert not torch.equal(found.train.images, other.train.images)
    assert torch.bincount(found.train.labels).tolist() == [640] * 10
    flat = found.train.images.flatten(1)
    means = torch.stack([flat[found.train.labels == label].mean(0) for label in range(10)])
    guess = torch.cdist(found.test.images.flatten(1), means).argmin(1)
    assert float((guess == found.test.labels).float().mean()) > 0.95
    noisy = data.load(DataConfig(name="synthetic", options={"image_size": 8, "noise": 20.0}), 0)
    flat = noisy.train.images.flatten(1)
    means = torch.stack([flat[noisy.train.labels == label].mean(0) for label in range(10)])
    guess = torch.cdist(noisy.test.images.flatten(1), means).argmin(1)
    assert float((guess == noisy.test.labels).float().mean()) < 0.5


def test_synthetic_is_fast() -> None:
    started = time.perf_counter()
    assert data.load(DataConfig(name="synthetic"), 0).train.images.shape == (6400, 1, 28, 28)
    assert time.perf_counter() - started < 1


# --- fashion_mnist --------------------------------------------------------------------------------


def write_idx(path: Path, values: np.ndarray) -> None:
    raw = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 30), ("t10k", 10)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


def test_idx_folder(idx_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = data.load(DataConfig(name="fashion_mnist", path=str(idx_folder)), 0)
    assert found.train.images.shape == (30, 1, 28, 28) and found.test.labels.tolist() == list(range(10))
    expected = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    assert np.array_equal(found.train.images[:, 0].numpy(), expected)
    # The same through the environment.
    monkeypatch.setenv("UMBEL_DATA", str(idx_folder))
    assert len(data.load(DataConfig(name="fashion_mnist"), 0).train) == 30


def test_missing_idx_files_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(data.MissingDataError, match=r"sudo apt-get install dataset-fashion-mnist") as caught:
        data.check(DataConfig(name="fashion_mnist", path=str(tmp_path)))
    assert str(tmp_path) in str(caught.value) and "data.options.hub=true" in str(caught.value)
    # With leave to use the hub the same set comes from there.
    monkeypatch.setattr(hub, "fetch", lambda source, *_, **named: (source, named["name"]))
    config = DataConfig(name="fashion_mnist", path=str(tmp_path), options={"hub": True})
    data.check(config)
    assert fashion_mnist.load(config, 0) == ("zalando-datasets/fashion_mnist", "fashion_mnist")


def damage(folder: Path, kind: str) -> Path:
    images, labels = folder / "train-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte"
    match kind:
        case "cut gzip":
            images.write_bytes(images.read_bytes()[:-100])
            return images
        case "flipped bits":
            raw = bytearray(images.read_bytes())
            raw[len(raw) // 2] ^= 0xFF
            images.write_bytes(bytes(raw))
            return images
        case "no gzip":
            images.write_bytes(b"<html>not found</html>")
            return images
        case "magic":
            labels.write_bytes(b"\x01" + labels.read_bytes()[1:])
        case "cut":
            labels.write_bytes(labels.read_bytes()[:-1])
        case "header":
            labels.write_bytes(labels.read_bytes()[:6])
        case "empty":
            labels.write_bytes(b"")
        case "count":
            write_idx(labels, np.zeros(9, dtype=np.uint8))
        case "label":
            write_idx(labels, np.full(10, 10, dtype=np.uint8))
    return labels


@pytest.mark.parametrize(
    "kind", ["cut gzip", "flipped bits", "no gzip", "magic", "cut", "header", "empty", "count", "label"]
)
def test_damaged_idx_files_are_named(idx_folder: Path, kind: str) -> None:
    damaged = damage(idx_folder, kind)
    with pytest.raises(data.DamagedDataError, match="again") as caught:
        data.load(DataConfig(name="fashion_mnist", path=str(idx_folder)), 0)
    assert str(damaged) in str(caught.value)


def test_the_installed_fashion_mnist() -> None:
    if not fashion_mnist.PACKAGE.is_dir():
        pytest.skip(f"{fashion_mnist.PACKAGE} is not there: sudo apt-get install dataset-fashion-mnist")
    started = time.perf_counter()
    found = data.load(DataConfig(name="fashion_mnist", path=str(fashion_mnist.PACKAGE)), 0)
    print(f"fashion_mnist loaded in {time.perf_counter() - started:.2f} s")
    assert torch.bincount(found.train.labels).tolist() == [6000] * 10
    assert torch.bincount(found.test.labels).tolist() == [1000] * 10
    assert found.mean == pytest.approx((0.2860,), abs=1e-4) and found.std == pytest.approx((0.3530,), abs=1e-4)


# --- image_folder ---------------------------------------------------------------------------------


def picture(path: Path, colour: tuple[int, ...], size: tuple[int, int] = (6, 6), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour if len(colour) > 1 else colour[0]).save(path)


def test_image_folder_with_given_split(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for number in range(count):
            picture(tmp_path / split / "cat" / f"{number}.png", (255, 0, 0), size=(12, 9))
            picture(tmp_path / split / "dog" / f"{number}.jpg", (0, 0, 255))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no picture")
    found = data.load(DataConfig(name="image_folder", path=str(tmp_path), options={"image_size": 8}), 0)
    assert found.class_names == ("cat", "dog") and found.domain_names == ()
    assert found.train.images.shape == (6, 3, 8, 8) and found.test.labels.tolist() == [0, 0, 1, 1]
    assert found.train.images[0].amin((1, 2)).tolist() == [255, 0, 0]


def test_image_folder_with_domains_keeps_a_concept_on_one_side(tmp_path: Path) -> None:
    for domain in ("photo", "sketch"):
        for number in range(20):
            picture(tmp_path / domain / "cat" / f"{number}.png", (number,), mode="L")
            picture(tmp_path / domain / "dog" / f"{number}.png", (100 + number,), mode="L")
    options = {"domains": True, "in_channels": 1, "image_size": 4}
    found = data.load(DataConfig(name="image_folder", path=str(tmp_path), options=options), 0)
    assert found.domain_names == ("photo", "sketch") and found.in_channels == 1
    assert len(found.train) + len(found.test) == 80
    train, test = (set(part.images[:, 0, 0, 0].tolist()) for part in (found.train, found.test))
    assert test and not train & test, "a concept is on both sides"
    assert found.test.domains is not None and torch.bincount(found.test.domains).unique().numel() == 1


def test_image_folder_transparency_and_bad_files(tmp_path: Path) -> None:
    for number in range(30):
        picture(tmp_path / "a" / f"{number}.png", (9, 9, 9, 0), mode="RGBA")
    config = DataConfig(name="image_folder", path=str(tmp_path))
    assert int(data.load(config, 0).train.images.min()) == 255  # transparent is white
    bad = tmp_path / "a" / "broken.png"
    bad.write_bytes((tmp_path / "a" / "0.png").read_bytes()[:40])
    with pytest.raises(data.DamagedDataError, match=r"cannot be read as a picture") as caught:
        data.load(config, 0)
    assert str(bad) in str(caught.value)


def test_image_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match=r"expected pictures as <class>/\*"):
        data.load(DataConfig(name="image_folder", path=str(tmp_path)), 0)


# --- hub ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set as the hub would serve it: parquet files with encoded pictures."""
    import datasets

    folder = tmp_path_factory.mktemp("hub")
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["shoe", "hat"]),
            "coarse": datasets.ClassLabel(names=["thing"]),
            "writer": datasets.Value("string"),
            "number": datasets.Value("int64"),
        }
    )
    datasets.disable_progress_bars()
    for split, count in (("train", 12), ("test", 4)):
        rows = {
            "picture": [Image.new("L", (6, 6), number) for number in range(count)],
            "kind": [number % 2 for number in range(count)],
            "coarse": [0] * count,
            "writer": [f"writer {number % 3}" for number in range(count)],
            "number": [10 * (number % 4) for number in range(count)],
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    datasets.enable_progress_bars()
    return folder


def hub_config(folder: Path, **options: object) -> DataConfig:
    given = {"label_column": "kind", "cache_dir": str(folder / "cache")} | options
    return DataConfig(name=f"hub:{folder}", options=given)


def test_hub_from_a_folder(hub_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    config = hub_config(hub_folder, natural_id_column="writer", domain_column="writer")
    data.check(config)
    found = data.load(config, 0)
    assert found.train.images[:, 0, 0, 0].tolist() == list(range(12)) and found.in_channels == 1
    assert found.class_names == ("shoe", "hat") and found.test.labels.tolist() == [0, 1, 0, 1]
    assert found.natural_ids is not None and found.natural_ids.tolist() == [0, 1, 2] * 4
    assert found.domain_names == ("writer 0", "writer 1", "writer 2")
    assert capfd.readouterr() == ("", "") and datasets.is_progress_bar_enabled()
    plain = data.load(hub_config(hub_folder, label_column="number", image_size=4, in_channels=3), 0)
    assert plain.train.images.shape == (12, 3, 4, 4) and plain.class_names == ("0", "10", "20", "30")
    assert plain.train.labels.tolist() == [0, 1, 2, 3] * 3


def test_hub_without_a_test_split(hub_folder: Path) -> None:
    found = data.load(hub_config(hub_folder, test_split="", natural_id_column="writer"), 0)
    assert (len(found.train), len(found.test)) == (10, 2)
    assert found.natural_ids is not None
    assert found.natural_ids.tolist() == (found.train.images[:, 0, 0, 0].long() % 3).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": ""}, r"expected one column of type ClassLabel, found \['kind', 'coarse'\]"),
        (
            {"image_column": "photo"},
            r"has no column 'photo' \(data\.options\.image_column\); it has picture, kind",
        ),
        ({"image_column": "kind"}, r"column 'kind' holds no images"),
        ({"domain_column": "site"}, r"has no column 'site'"),
        ({"test_split": "validation"}, r"Set data\.options\.test_split"),
        ({"train_split": "all"}, r"Check data\.options\.train_split=all"),
    ],
)
def test_hub_errors_name_the_option(hub_folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(data.DataError, match=message):
        data.load(hub_config(hub_folder, **options), 0)


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(data.MissingDataError, match=r"hub:owner/name cannot be fetched .*\n    hf download"):
        data.load(DataConfig(name="hub:owner/name"), 0)


# --- transforms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalize(dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (4, 3, 5, 5), generator=generator(1), dtype=torch.uint8)
    mean, std = (0.2, 0.5, 0.7), (0.1, 0.2, 0.4)
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1).double()) / torch.tensor(std).view(3, 1, 1)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    for given in (images, images.float() / 255):
        found = data.normalize(given, mean, std, dtype)
        assert found.dtype == dtype
        assert torch.allclose(found.double(), expected.double(), atol=tolerance)


def test_augmentations_are_named() -> None:
    assert data.augmentations() == ("none", "flip", "crop", "flip_crop")
    with pytest.raises(UnknownNameError, match=r"\(key data\.augment\)"):
        data.augment(torch.zeros(1, 1, 4, 4), "rotate", generator(0))


@pytest.mark.parametrize("kind", data.augmentations())
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augment_keeps_shape_and_input_and_follows_its_generator(kind: str, dtype: torch.dtype) -> None:
    images = torch.randint(1, 256, (64, 2, 16, 16), generator=generator(2), dtype=torch.uint8).to(dtype)
    before = images.clone()
    found = data.augment(images, kind, generator(3))
    assert found.shape == images.shape and found.dtype == dtype and torch.equal(images, before)
    assert torch.equal(found, data.augment(images, kind, generator(3)))
    assert torch.equal(found, data.augment(images, kind, generator(4))) == (kind == "none")


def test_flip_is_by_sample() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    found = data.augment(image.repeat(400, 1, 1, 1), "flip", generator(5))
    straight = (found == image).flatten(1).all(1)
    mirrored = (found == image.flip(-1)).flatten(1).all(1)
    assert bool((straight ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250


def test_crop_is_by_sample_and_every_shift_occurs() -> None:
    size, pad = 16, 2
    image = torch.arange(1.0, size * size + 1).view(1, 1, size, size)
    found = data.augment(image.repeat(600, 1, 1, 1), "crop", generator(6))
    padded = torch.nn.functional.pad(image, (pad,) * 4)
    seen: set[tuple[int, int]] = set()
    for sample in found:
        shifts = [
            (top, left)
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            if torch.equal(sample, padded[0, :, top : top + size, left : left + size])
        ]
        assert len(shifts) == 1, "not a shift with zeros from outside"
        seen.update(shifts)
    assert len(seen) == (2 * pad + 1) ** 2


def test_permute_pixels() -> None:
    images = torch.randn(3, 2, 6, 6, generator=generator(7))
    assert torch.equal(data.permute_pixels(images, 0, seed=1), images)
    first, second = data.permute_pixels(images, 1, seed=1), data.permute_pixels(images, 2, seed=1)
    assert torch.equal(data.permute_pixels(images, 1, seed=1), first)
    assert not torch.equal(first, second) and not torch.equal(data.permute_pixels(images, 1, seed=2), first)
    assert torch.equal(first.flatten(2).sort(2).values, images.flatten(2).sort(2).values)
    # All images and channels in the same order.
    assert torch.equal(data.permute_pixels(images[1:, 1:], 1, seed=1), first[1:, 1:])


# --- the federation -------------------------------------------------------------------------------


def parts(federation: data.Federation) -> dict[str, set[int]]:
    found = {"server": set(federation.validation_index.tolist())}
    for client in range(federation.num_clients):
        names = ("train", "validation", "test")
        for name, index in zip(names, federation.client_indices(client), strict=True):
            found[f"{client} {name}"] = set(index.tolist())
    return found


@pytest.mark.parametrize("name", ["iid", "dirichlet", "split_tasks", "permuted_tasks", "domain_label"])
def test_all_parts_are_disjoint_and_cover_the_training_set(name: str) -> None:
    config = synthetic(partition=name, client_validation=0.1, client_test=0.25, num_clients=7)
    federation = data.Federation.build(config, 0)
    found = parts(federation)
    for (one, left), (other, right) in combinations(found.items(), 2):
        assert not left & right, f"{one} and {other} share examples"
    assert set().union(*found.values()) == set(range(600))
    assert len(found["server"]) == 60
    times = 5 if name == "permuted_tasks" else 1
    # Stratified by class and domain.
    assert torch.bincount(federation.server.validation.labels).tolist() == [12 * times] * 5
    assert len(federation.server.test) == 50 * times
    for client in range(7):
        whole = federation.client(client)
        assert len(whole.train) == federation.num_examples(client)
    assert federation.num_train.tolist() == [federation.num_examples(client) for client in range(7)]


def test_client_data_are_the_examples_of_its_indices() -> None:
    federation = data.Federation.build(DataConfig(), 3)
    found = federation.client(2)
    train, _, test = federation.client_indices(2)
    assert torch.equal(found.train.images, federation.pool.images[train])
    assert torch.equal(found.test.labels, federation.pool.labels[test])
    assert len(found.validation) == 0 and found.train.images.dtype == torch.uint8
    with pytest.raises(IndexError, match=r"Client 10 asked for"):
        federation.client(10)


def test_federation_follows_its_seed() -> None:
    def fingerprint(seed: int, own: int | None = None) -> list[Tensor]:
        federation = data.Federation.build(DataConfig(partition="dirichlet", seed=own), seed)
        return [federation.validation_index, *federation.client_indices(4)]

    first = fingerprint(0)
    assert all(map(torch.equal, first, fingerprint(0)))
    assert not any(torch.equal(one, two) for one, two in zip(first, fingerprint(1), strict=True) if len(one))
    assert all(map(torch.equal, first, fingerprint(1, own=0)))  # data.seed goes before run.seed


def test_clients_with_few_examples_keep_one_to_train_on() -> None:
    config = synthetic(num_clients=540, client_test=0.5, client_validation=0.4)
    federation = data.Federation.build(config, 0)
    assert federation.num_train.tolist() == [1] * 540
    config = synthetic(num_clients=180, client_test=0.5, client_validation=0.4)
    sizes = [tuple(map(len, data.Federation.build(config, 0).client_indices(k))) for k in range(3)]
    assert sizes == [(1, 0, 2)] * 3


def test_max_train_and_max_test() -> None:
    federation = data.Federation.build(DataConfig(max_train=200, max_test=30, num_clients=4), 0)
    assert len(federation.pool) == 200 and len(federation.server.test) == 30
    assert int(federation.num_train.sum()) < 200


def test_split_tasks_reach_clients_and_server() -> None:
    federation = data.Federation.build(synthetic(partition="split_tasks", num_tasks=2, num_clients=3), 0)
    tasks = torch.tensor([0, 0, 0, 1, 1])
    for examples in (federation.client(1).train, federation.server.test, federation.server.validation):
        assert examples.tasks is not None and torch.equal(examples.tasks, tasks[examples.labels])
        assert set(examples.tasks.tolist()) == {0, 1}
    assert federation.num_tasks == 2


def test_permuted_tasks_show_each_example_in_every_task() -> None:
    federation = data.Federation.build(synthetic(partition="permuted_tasks", num_tasks=3, num_clients=3), 5)
    train = federation.client(0).train
    assert train.tasks is not None and train.domains is not None
    count = len(train) // 3
    assert train.tasks.tolist() == [0] * count + [1] * count + [2] * count
    plain = federation.pool.take(federation.client_indices(0)[0])
    for task in range(3):
        chosen = train.take(train.tasks == task)
        assert torch.equal(chosen.images, data.permute_pixels(plain.images, task, 5))
        assert torch.equal(chosen.labels, plain.labels)
    assert len(federation.server.test) == 150


@pytest.mark.parametrize("name", ["dirichlet", "split_tasks", "permuted_tasks"])
def test_federation_over_read_only_arrays(name: str) -> None:
    built = data.Federation.build(synthetic(partition=name, num_clients=5), 0)
    arrays = built.arrays()
    for array in arrays.values():
        array.setflags(write=False)  # as Ray hands them out
    meta = json.loads(json.dumps(built.meta))
    found = data.Federation.from_arrays(arrays, meta)
    assert np.shares_memory(found.pool.images.numpy(), arrays["pool_images"])
    for one, two in ((built.client(3), found.client(3)), (built.server, found.server)):
        assert torch.equal(one.test.images, two.test.images) and torch.equal(one.test.labels, two.test.labels)
        for left, right in ((one.test.tasks, two.test.tasks), (one.test.domains, two.test.domains)):
            assert (left is None) == (right is None)
            assert left is None or right is None or torch.equal(left, right)
    assert found.num_train.tolist() == built.num_train.tolist()
    assert (found.mean, found.class_names, found.image_size) == (built.mean, built.class_names, 8)
    assert (found.num_classes, found.in_channels, found.domain_names) == (5, 1, ("domain 0", "domain 1"))


def test_a_hundred_thousand_clients() -> None:
    options = {"num_examples": 400_000, "num_test": 10, "image_size": 2}
    config = DataConfig(name="synthetic", options=options, num_clients=100_000, partition="iid")
    data_set = data.load(config, 0)
    started = time.perf_counter()
    federation = data.Federation.cut(data_set, config, 0)
    seconds = time.perf_counter() - started
    print(f"100,000 clients cut in {seconds:.2f} s")
    assert federation.num_train.shape == (100_000,) and int(federation.num_train.min()) >= 1
    assert len(federation.client(99_999).train) == federation.num_examples(99_999)
    assert seconds < 15
