"""Drawings as Debian's packages carry them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from umbel import data
from umbel.data.config import DataConfig
from umbel.data.sets import registry
from umbel.data.sources import debian
from umbel.data.types import DataSet


def noise(path: Path, seed: int, size: tuple[int, int] = (10, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def config(root: Path, name: str = "openclipart", **options: object) -> DataConfig:
    return DataConfig(name=name, path=str(root), options={"image_size": 8, "min_examples": 1} | options)


def equal(one: DataSet, other: DataSet) -> bool:
    pairs = ((one.train, other.train), (one.test, other.test))
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and list(a.texts) == list(b.texts)  # type: ignore[arg-type]
        for a, b in pairs
    )


def titles(loaded: DataSet) -> tuple[list[str], list[str]]:
    assert loaded.train.texts is not None and loaded.test.texts is not None
    return list(loaded.train.texts), list(loaded.test.texts)


def installed(name: str, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setattr(debian, "ROOT", Path("/"))
    asked = DataConfig(name=name)
    try:
        registry.check(asked)
    except data.MissingDataError as error:
        pytest.skip(str(error).replace("\n", " "))
    return asked
