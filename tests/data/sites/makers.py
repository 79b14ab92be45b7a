"""Sites made of a few small pictures: folders, tables, and their data files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from umbel.conf.federation import listed
from umbel.conf.load import load
from umbel.data.federation import Federation
from umbel.data.sites.agreement import Inventory

# The experiment `digits` cuts and holds out, which sites do not.
NOTHING = ("data.partition=iid", "data.server_validation=0")
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


def held(file: Path, *overrides: str, clients: int = 1) -> Federation:
    """What one site holds as an experiment would have it."""
    options = ("data.name=sites", f"data.num_clients={clients}", f"data.sites=[{file}]", f"data.image_size={SIDE}")
    classes = () if any(each.startswith("data.classes") for each in overrides) else ("data.classes=union",)
    asked = [*options, *classes, "data.channels=3", "data.client_test=0", *overrides]
    return listed(load("digits", [*NOTHING, *asked])).whole


def counts(made: Federation, *splits: str) -> list[dict[str, int]]:
    """Examples of each class, for each client and each of the splits."""
    inventory = Inventory.of(made, range(made.num_clients))
    return [dict(inventory.counts[client][split]) for client in range(made.num_clients) for split in splits]
