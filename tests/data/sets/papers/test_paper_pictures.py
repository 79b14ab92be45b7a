"""The papers' sets of pictures with labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.data.sets.papers.hub_form import labelled, load, shade, write
from umbel import data
from umbel.data.config import DataConfig
from umbel.data.sources.hub_pictures import WORTH_CACHING

torch.set_num_threads(1)


def test_cifar10_and_its_long_tail(tmp_path: Path) -> None:
    classes = [f"c{number}" for number in range(10)]
    folder = labelled(tmp_path, "img", "label", classes, count=1000)
    loaded = load("cifar10", folder)
    assert loaded.name == "cifar10" and loaded.class_names == tuple(classes) and loaded.image_size == 32
    assert (len(loaded.train), len(loaded.test)) == (1000, 10) and loaded.train.images.shape[1] == 3
    assert loaded.train.images[7, :, 0, 0].tolist() == [7, 248, 0] and "Krizhevsky" in loaded.attribution
    cut = DataConfig(
        name="cifar10", path=str(folder), partition="long_tail", imbalance=20, alpha=100, num_clients=3, top_up=True,
        server_validation=0.0,
    )  # fmt: skip
    federation = data.Federation.build(cut, 0)
    counts = federation.partition.counts(federation.pool.labels, 10).sum(0)
    # n_c = n_0 * imbalance ** (-c / (C - 1)), 100 down to 5
    assert counts[0] == 100 and counts[-1] == 5 and bool((counts.diff() <= 0).all())
    assert int(counts[3]) == pytest.approx(100 * 20 ** (-3 / 9), abs=1)


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    folder = labelled(tmp_path, "img", "fine_label", [f"fine {number}" for number in range(5)], coarse_label="coarse")
    assert load("cifar100", folder).class_names == tuple(f"fine {number}" for number in range(5))


def test_tiny_imagenet_tests_on_valid(tmp_path: Path) -> None:
    folder = labelled(tmp_path, "image", "label", ["n01", "n02"])
    (folder / "data" / "test-00000-of-00001.parquet").rename(folder / "data" / "valid-00000-of-00001.parquet")
    loaded = load("tiny_imagenet", folder, image_size=16)
    assert (len(loaded.train), len(loaded.test), loaded.image_size) == (8, 2, 16)


def test_a_renamed_column_is_answered_with_those_there(tmp_path: Path) -> None:
    folder = labelled(tmp_path, "picture", "label", ["a", "b"])
    with pytest.raises(data.DataError, match=r"has no column 'img' \(data\.options\.image_column\); it has picture"):
        load("cifar10", folder)


def test_inaturalist_finds_its_columns(tmp_path: Path) -> None:
    loaded = load("inaturalist", labelled(tmp_path, "photo", "species", ["ant", "bee"]), in_channels=1)
    assert loaded.class_names == ("ant", "bee") and loaded.in_channels == 1 and loaded.image_size == 64


def test_limit_is_fixed_and_decodes_nothing_else(tmp_path: Path) -> None:
    import datasets

    folder = labelled(tmp_path, "img", "label", ["a", "b"], count=40)
    limited = load("cifar10", folder, limit=10)
    assert len(limited.train) == 10
    # Example n has the shade n and the class n mod 2: labels went along.
    shades = limited.train.images[:, 0, 0, 0].tolist()
    assert limited.train.labels.tolist() == [value % 2 for value in shades]
    # The same rows again, where no other has a picture that can be decoded.
    drawn = [shade(row) if row in shades else {"bytes": b"no picture", "path": None} for row in range(40)]
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    write(folder, features, train={"img": drawn, "label": [row % 2 for row in range(40)]})
    assert torch.equal(load("cifar10", folder, limit=10).train.images, limited.train.images)


def test_many_pictures_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "cache"))
    folder = labelled(tmp_path / "set", "img", "label", ["a", "b"], count=WORTH_CACHING)
    opened: list[object] = []
    real = Image.open

    def counting(*given: Any, **named: Any) -> Image.Image:
        opened.append(given)
        return real(*given, **named)

    monkeypatch.setattr(Image, "open", counting)
    first = load("cifar10", folder, image_size=4)
    once = len(opened)
    second = load("cifar10", folder, image_size=4)
    # The first picture again, for its mode, and the two of the test set, which are not worth caching.
    assert (once, len(opened) - once) == (WORTH_CACHING + 3, 3)
    assert torch.equal(first.train.images, second.train.images)
    assert first.train.images[:, 0, 0, 0].tolist() == [number % 256 for number in range(WORTH_CACHING)]
    assert load("cifar10", folder, image_size=8).image_size == 8  # another size is another entry
    entry = next((tmp_path / "cache" / "hub").glob("set-*"))
    (entry / "images.npy").write_bytes(b"damaged")
    assert torch.equal(load("cifar10", folder, image_size=4).train.images, first.train.images)
    # Other files in the same folder are another set.
    labelled(folder, "img", "label", ["a", "b"], count=299)
    assert len(load("cifar10", folder, image_size=4).train) == 299


def test_more_than_memory_is_refused(tmp_path: Path) -> None:
    folder = labelled(tmp_path, "img", "label", ["a", "b"])
    with pytest.raises(
        data.DataError, match=r"10 pictures of 9999999 x 9999999 pixels need .*Lower data\.options\.image"
    ):
        load("cifar10", folder, image_size=9_999_999)
    assert len(load("cifar10", folder, image_size=4).train) == 8


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    import datasets

    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    bad = {"img": [{"bytes": b"no picture", "path": "x.png"}] * 4, "label": [0, 1, 0, 1]}
    write(tmp_path, features, train=bad, test=bad)
    with pytest.raises(data.DamagedDataError, match=r"a picture cannot be decoded"):
        load("cifar10", tmp_path)


def imagenet(folder: Path) -> Path:
    import io

    import datasets

    def rows(names: list[str]) -> dict[str, list[Any]]:
        encoded = []
        for number, name in enumerate(names):
            buffer = io.BytesIO()
            shade(number).save(buffer, "PNG")
            encoded.append({"bytes": buffer.getvalue(), "path": name})
        return {"image": encoded, "label": [number % 2 for number in range(len(names))]}

    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["tench", "goldfish"])}
    train = [f"n0{number % 2}_{number}_n0{number % 2}.JPEG" for number in range(10)]
    validation = [f"ILSVRC2012_val_{number:08}_n0{number % 2}.JPEG" for number in range(4)]
    return write(folder, features, train=rows(train), validation=rows(validation))


def test_imagenet_lt_takes_what_the_lists_name(tmp_path: Path) -> None:
    folder = imagenet(tmp_path / "imagenet")
    lists = tmp_path / "lists"
    lists.mkdir()
    with pytest.raises(data.MissingDataError, match=r"data\.options\.lists.*\n    hf auth login\n    hf download"):
        load("imagenet_lt", folder, lists=str(lists))
    (lists / "ImageNet_LT_train.txt").write_text(
        "".join(f"train/n0{n % 2}/n0{n % 2}_{n}.JPEG {n % 2}\n" for n in (0, 3, 4))
    )
    loaded = load("imagenet_lt", folder, lists=str(lists))
    assert loaded.train.images[:, 0, 0, 0].tolist() == [0, 3, 4] and loaded.train.labels.tolist() == [0, 1, 0]
    assert len(loaded.test) == 4
    (lists / "ImageNet_LT_test.txt").write_text("val/ILSVRC2012_val_00000002.JPEG 0\n")
    assert load("imagenet_lt", folder, lists=str(lists)).test.images[:, 0, 0, 0].tolist() == [2]
    (lists / "ImageNet_LT_train.txt").write_text("train/n09/n09_1.JPEG 0\n")
    with pytest.raises(data.DamagedDataError, match=r"names 1 images and 0 of them are in the set"):
        load("imagenet_lt", folder, lists=str(lists))
