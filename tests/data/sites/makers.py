"""Sites made of a few small pictures: folders, tables, and their data files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

SHADES = {"ant": 20, "cat": 90, "dog": 160, "zebra": 230}
SIDE = 8


def picture(name: str, number: int, mode: str = "RGB") -> Image.Image:
    """A picture of a class, of its own shade and noise."""
    noise = np.random.default_rng([number, *name.encode()])
    pixels = noise.normal(SHADES[name], 20, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def folder(root: Path, counts: Mapping[str, int], mode: str = "RGB") -> Path:
    """Write pictures as <class>/*, the counts by folder, which may have further levels in front."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(name.split("/")[-1], number, mode).save(root / name / f"{number:03d}.png")
    return root


def site(file: Path, **content: object) -> Path:
    """Write a site's data file."""
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file
