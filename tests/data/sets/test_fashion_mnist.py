"""Fashion-MNIST from IDX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.sets.idx_files import write_idx
from umbel import data
from umbel.data.config import DataConfig
from umbel.data.sets import fashion_mnist
from umbel.data.sources import hub

torch.set_num_threads(1)


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 30), ("t10k", 10)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


def test_idx_folder(idx_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = data.load(DataConfig(name="fashion_mnist", path=str(idx_folder)), 0)
    assert loaded.train.images.shape == (30, 1, 28, 28) and loaded.test.labels.tolist() == list(range(10))
    expected = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    assert np.array_equal(loaded.train.images[:, 0].numpy(), expected)
    # The same through the environment.
    monkeypatch.setenv("UMBEL_DATA", str(idx_folder))
    assert len(data.load(DataConfig(name="fashion_mnist"), 0).train) == 30


def test_missing_idx_files_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(data.MissingDataError, match=r"sudo apt-get install dataset-fashion-mnist") as caught:
        data.check(DataConfig(name="fashion_mnist", path=str(tmp_path)))
    assert str(tmp_path) in str(caught.value) and "data.options.hub=true" in str(caught.value)
    # With leave to use the hub the same set comes from there.
    monkeypatch.setattr(hub, "read", lambda source, *_, **named: (source, named["name"]))
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
    loaded = data.load(DataConfig(name="fashion_mnist", path=str(fashion_mnist.PACKAGE)), 0)
    assert torch.bincount(loaded.train.labels).tolist() == [6000] * 10
    assert torch.bincount(loaded.test.labels).tolist() == [1000] * 10
    assert loaded.mean == pytest.approx((0.2860,), abs=1e-4) and loaded.std == pytest.approx((0.3530,), abs=1e-4)
