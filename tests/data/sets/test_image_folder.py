"""Pictures in folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from umbel import data
from umbel.data.config import DataConfig

torch.set_num_threads(1)


def picture(path: Path, colour: tuple[int, ...], size: tuple[int, int] = (6, 6), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour if len(colour) > 1 else colour[0]).save(path)


def test_image_folder_with_given_split(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for number in range(count):
            picture(tmp_path / split / "cat" / f"{number}.png", (255, 0, 0), size=(12, 9))
            picture(tmp_path / split / "dog" / f"{number}.jpg", (0, 0, 255))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no picture")
    loaded = data.load(DataConfig(name="image_folder", path=str(tmp_path), options={"image_size": 8}), 0)
    assert loaded.class_names == ("cat", "dog") and loaded.domain_names == ()
    assert loaded.train.images.shape == (6, 3, 8, 8) and loaded.test.labels.tolist() == [0, 0, 1, 1]
    assert loaded.train.images[0].amin((1, 2)).tolist() == [255, 0, 0]


def test_image_folder_with_domains_keeps_a_concept_on_one_side(tmp_path: Path) -> None:
    for domain in ("photo", "sketch"):
        for number in range(20):
            picture(tmp_path / domain / "cat" / f"{number}.png", (number,), mode="L")
            picture(tmp_path / domain / "dog" / f"{number}.png", (100 + number,), mode="L")
    options = {"domains": True, "in_channels": 1, "image_size": 4}
    loaded = data.load(DataConfig(name="image_folder", path=str(tmp_path), options=options), 0)
    assert loaded.domain_names == ("photo", "sketch") and loaded.in_channels == 1
    assert len(loaded.train) + len(loaded.test) == 80
    train, test = (set(part.images[:, 0, 0, 0].tolist()) for part in (loaded.train, loaded.test))
    assert test and not train & test, "a concept is on both sides"
    assert loaded.test.domains is not None and torch.bincount(loaded.test.domains).unique().numel() == 1


def test_image_folder_transparency_and_bad_files(tmp_path: Path) -> None:
    for number in range(30):
        picture(tmp_path / "ab"[number % 2] / f"{number}.png", (9, 9, 9, 0), mode="RGBA")
    config = DataConfig(name="image_folder", path=str(tmp_path))
    assert int(data.load(config, 0).train.images.min()) == 255  # transparent is white
    bad = tmp_path / "a" / "broken.png"
    bad.write_bytes((tmp_path / "a" / "0.png").read_bytes()[:40])
    with pytest.raises(data.DamagedDataError, match=r"cannot be read as a picture") as caught:
        data.load(config, 0)
    assert str(bad) in str(caught.value)


def test_image_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match=r"expected pictures of two classes or more as <class>/\*, found none"):
        data.load(DataConfig(name="image_folder", path=str(tmp_path)), 0)
