"""Sets of several domains out of folders, and sets joined as domains.

Shapes: N examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from umbel.data import pictures
from umbel.data.errors import DataError
from umbel.data.split import stratified, subset
from umbel.data.types import DataSet, Examples, channel_statistics

_SPLIT_SEED = 20_240_103
_TEST_FRACTION = 0.2
_SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"}


def is_pictures(folder: Path) -> bool:
    """Say whether a folder holds `<domain>/<class>/*` pictures rather than files of the hub."""
    hub_files = any(next(folder.glob(f"**/*.{suffix}"), None) for suffix in ("parquet", "arrow"))
    return not hub_files and any(path.is_dir() for path in folder.glob("*/*"))


def read_domains(folder: Path, size: int, channels: int, limit: int = 0) -> DataSet:
    """Read `<domain>/<class>/*` and hold a fixed fifth of each class of each domain out.

    Args:
        folder: Above the domains.
        size: Pixels on a side.
        channels: 1 or 3.
        limit: Pictures that are read, drawn by a constant; 0 reads all.

    Raises:
        DataError: There are no pictures in that form.
        DamagedDataError: A picture cannot be read; the message names it.
    """
    paths = [path for path in sorted(folder.glob("*/*/*")) if path.suffix.lower() in _SUFFIXES and path.is_file()]
    if not paths:
        raise DataError(
            f"{folder}: expected pictures as <domain>/<class>/* ({', '.join(sorted(_SUFFIXES))}), found none.",
            key="data.path",
            remedy="Set data.path to the folder above them.",
        )
    paths = [paths[index] for index in subset(len(paths), limit, _SPLIT_SEED, "limit").tolist()]
    domains = sorted({path.parent.parent.name for path in paths})
    classes = sorted({path.parent.name for path in paths})
    everything = Examples(
        images=pictures.read(paths, size, pictures.mode_of(channels)),
        labels=torch.tensor([classes.index(path.parent.name) for path in paths]),
        domains=torch.tensor([domains.index(path.parent.parent.name) for path in paths]),
    )
    groups = everything.labels + len(classes) * _domains(everything)
    rest, held_out = stratified(groups, _TEST_FRACTION, _SPLIT_SEED, "domain test")
    return _made(everything.take(rest), everything.take(held_out), classes, domains)


def join(found: Mapping[str, DataSet]) -> DataSet:
    """Join sets of the same classes and picture size, each as a domain.

    Args:
        found: Domain -> set, in the order of the domains.

    Raises:
        DataError: They have other classes.
    """
    names, sets = list(found), list(found.values())
    for name, one in found.items():
        if one.class_names != sets[0].class_names:
            raise DataError(
                f"{name} has the classes {', '.join(one.class_names)} and {names[0]} has "
                f"{', '.join(sets[0].class_names)}; domains must share theirs.",
                key="data.options.domains",
            )

    def joined(parts: Sequence[Examples]) -> Examples:
        return Examples(
            images=torch.cat([part.images for part in parts]),
            labels=torch.cat([part.labels for part in parts]),
            domains=torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)]),
        )

    train, test = joined([one.train for one in sets]), joined([one.test for one in sets])
    return _made(train, test, sets[0].class_names, names)


def _made(train: Examples, test: Examples, classes: Sequence[str], domains: Sequence[str]) -> DataSet:
    mean, std = channel_statistics(train.images)
    return DataSet(
        name="domains",
        train=train,
        test=test,
        class_names=tuple(classes),
        domain_names=tuple(domains),
        mean=mean,
        std=std,
        licence="",
        natural_ids=train.domains,
    )


def _domains(examples: Examples) -> Tensor:
    return torch.zeros_like(examples.labels) if examples.domains is None else examples.domains
