"""`image_folder`: pictures in folders, resized to one size.

Three layouts under `data.path`:

    train/<class>/*  and  test/<class>/*      the split is given
    <class>/*                                 a hashed part of the pictures is the test set
    <domain>/<class>/*                        with data.options.domains=true

The hashed split looks at class and file name only. So it never changes when pictures are added, and a concept
that every domain draws in its own style, under one file name, never has one drawing on each side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from umbel.data import pictures
from umbel.data.config import DataConfig
from umbel.data.errors import DataError, MissingDataError
from umbel.data.split import hashed
from umbel.data.types import DataSet, Examples, channel_statistics

DESCRIPTION = "pictures in folders: train/<class>, <class>, or <domain>/<class>; needs data.path"
OPTIONS: dict[str, Any] = {"image_size": 32, "in_channels": 3, "domains": False, "test_fraction": 0.2}

_SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def check(config: DataConfig) -> None:
    """Raise `MissingDataError` without a folder, and `DataError` for options that cannot be."""
    options = OPTIONS | config.options
    pictures.as_size(options["image_size"])
    pictures.mode_of(options["in_channels"])
    if not isinstance(options["domains"], bool):
        raise DataError(
            f"data.options.domains must be true or false, found {options['domains']!r}.", key="data.options.domains"
        )
    fraction = options["test_fraction"]
    if not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise DataError(
            f"data.options.test_fraction must be between 0 and 1, found {fraction!r}.",
            key="data.options.test_fraction",
        )
    if config.path is None:
        raise MissingDataError("data.name=image_folder needs data.path, the folder with the pictures.", key="data.path")
    if not Path(config.path).expanduser().is_dir():
        raise MissingDataError(
            f"data.path={config.path}: there is no such folder.", key="data.path", remedy="Set data.path to one."
        )


def load(config: DataConfig, _seed: int) -> DataSet:
    """Read all pictures.

    Args:
        config: The folder and the options.
        _seed: Changes nothing here.

    Raises:
        DataError: There are no pictures, or no split can be made of them.
        DamagedDataError: A picture cannot be read; the message names it.
    """
    check(config)
    options = OPTIONS | config.options
    root = Path(str(config.path)).expanduser()
    size, mode = pictures.as_size(options["image_size"]), pictures.mode_of(options["in_channels"])
    has_domains = bool(options["domains"])
    given = {split: root / split for split in ("train", "test")}
    if all(folder.is_dir() for folder in given.values()) and not has_domains:
        found = {split: _walk(folder, domains=False) for split, folder in given.items()}
    else:
        found = _hashed_split(_walk(root, has_domains), float(options["test_fraction"]))
    everything = [entry for entries in found.values() for entry in entries]
    shown = sorted({_concept(entry) for entry in everything})
    number = {concept: place for place, concept in enumerate(shown)}
    classes = sorted({class_name for _, class_name, _ in everything})
    domains = sorted({domain for domain, _, _ in everything}) if has_domains else []

    def examples(split: str) -> Examples:
        entries = found[split]
        if not entries:
            raise DataError(
                f"data.path={root}: no picture is left for {split}.",
                key="data.options.test_fraction",
                remedy=f"Add pictures, or change data.options.test_fraction={options['test_fraction']}.",
            )
        return Examples(
            images=pictures.read([path for _, _, path in entries], size, mode),
            labels=torch.tensor([classes.index(class_name) for _, class_name, _ in entries]),
            domains=torch.tensor([domains.index(domain) for domain, _, _ in entries]) if domains else None,
            concepts=torch.tensor([number[_concept(entry)] for entry in entries]) if domains else None,
        )

    train = examples("train")
    mean, std = channel_statistics(train.images)
    return DataSet(
        name="image_folder",
        train=train,
        test=examples("test"),
        class_names=tuple(classes),
        domain_names=tuple(domains),
        mean=mean,
        std=std,
        licence=f"as stated by whoever made {root}",
        natural_ids=train.domains,
    )


Entry = tuple[str, str, Path]


def _walk(root: Path, domains: bool) -> list[Entry]:
    """Return (domain, class, file) of all pictures below `root`, sorted; the domain is "" without domains."""
    depth = 3 if domains else 2
    entries = [
        (path.parent.parent.name if domains else "", path.parent.name, path)
        for path in sorted(root.glob("/".join(["*"] * depth)))
        if path.suffix.lower() in _SUFFIXES and path.is_file()
    ]
    if not entries:
        layout = "<domain>/<class>/*" if domains else "<class>/*"
        hint = "" if domains else ", or data.options.domains=true where folders are <domain>/<class>/*"
        raise DataError(
            f"{root}: expected pictures as {layout} ({', '.join(sorted(_SUFFIXES))}), found none.",
            key="data.path",
            remedy=f"Set data.path to the folder above them{hint}.",
        )
    return entries


def _hashed_split(entries: list[Entry], fraction: float) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {"train": [], "test": []}
    for entry in entries:
        found["test" if hashed(_concept(entry), fraction) else "train"].append(entry)
    return found


def _concept(entry: Entry) -> str:
    """Return what a picture shows: with domains, files of one name in a class show the same."""
    _, class_name, path = entry
    return f"{class_name}/{path.stem}"
