"""Tiny sets in the form of the hub's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from umbel import data
from umbel.data.config import DataConfig


def shade(number: int, size: int = 8, mode: str = "RGB") -> Image.Image:
    value = number % 256
    return Image.new(mode, (size, size), value if mode == "L" else (value, 255 - value, 0))


def write(folder: Path, features: Mapping[str, Any], **splits: Mapping[str, list[Any]]) -> Path:
    import datasets

    for split, rows in splits.items():
        table = datasets.Dataset.from_dict(dict(rows), features=datasets.Features(dict(features)))
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def labelled(folder: Path, image: str, label: str, classes: list[str], count: int = 0, **also: str) -> Path:
    import datasets

    features = {image: datasets.Image(), label: datasets.ClassLabel(names=classes)}
    features |= {name: datasets.ClassLabel(names=["other"]) for name in also}

    def rows(size: int) -> dict[str, list[Any]]:
        columns = {image: [shade(row) for row in range(size)], label: [row % len(classes) for row in range(size)]}
        return columns | {name: [0] * size for name in also}

    size = count or 4 * len(classes)
    return write(folder, features, train=rows(size), test=rows(len(classes)))


def load(name: str, folder: Path | None, **options: Any) -> data.DataSet:
    config = DataConfig(name=name, path=None if folder is None else str(folder), options=options)
    return data.load(config, 0)
