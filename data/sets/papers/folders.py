"""Sets of several domains out of folders, and sets joined as domains.

Shapes: N examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from umbel.core.names import shown
from umbel.data.errors import DataError
from umbel.data.pictures import Form, read
from umbel.data.sources.picture_files import find, require_classes
from umbel.data.split import stratified, subset
from umbel.data.types import DataSet, Examples, channel_statistics

_SPLIT_SEED = 20_240_103
_TEST_FRACTION = 0.2


def is_pictures(folder: Path) -> bool:
    """Say whether a folder holds `<domain>/<class>/*` pictures rather than files of the hub."""
    hub_files = any(next(folder.glob(f"**/*.{suffix}"), None) for suffix in ("parquet", "arrow"))
    return not hub_files and any(path.is_dir() for path in folder.glob("*/*"))


def read_domains(folder: Path, form: Form, limit: int = 0) -> DataSet:
    """Read `<domain>/<class>/*` and hold a fixed fifth of each class of each domain out.

    Args:
        folder: Above the domains.
        form: What all pictures are made to be.
        limit: Pictures that are read, drawn by a constant; 0 reads all.

    Raises:
        DataError: There are no pictures in that form, or those of one class only.
        DamagedDataError: A picture cannot be read; the message names it.
    """
    files = find(folder, 3, "<domain>/<class>/*")
    require_classes(folder, files, "<domain>/<class>/*", "Set data.path to the folder above the domains.")
    paths = [files.paths[index] for index in subset(len(files.paths), limit, _SPLIT_SEED, "limit").tolist()]
    domains = sorted({path.parent.parent.name for path in paths})
    classes = sorted({path.parent.name for path in paths})
    images, notices = read(paths, form)
    everything = Examples(
        images=images,
        labels=torch.tensor([classes.index(path.parent.name) for path in paths]),
        domains=torch.tensor([domains.index(path.parent.parent.name) for path in paths]),
    )
    groups = everything.labels + len(classes) * _domains(everything)
    rest, held_out = stratified(groups, _TEST_FRACTION, _SPLIT_SEED, "domain test")
    made = _made(everything.take(rest), everything.take(held_out), classes, domains)
    return replace(made, notices=(*files.notices, *notices))


def join(parts: Mapping[str, DataSet]) -> DataSet:
    """Join sets of the same classes and picture size, each as a domain.

    Args:
        parts: Domain -> set, in the order of the domains.

    Raises:
        DataError: They have other classes.
    """
    names, sets = list(parts), list(parts.values())
    for name, one in parts.items():
        if one.class_names != sets[0].class_names:
            raise DataError(
                f"{name} has the classes {', '.join(one.class_names)} and {names[0]} has "
                f"{', '.join(sets[0].class_names)}; domains must share theirs.",
                key="data.options.domains",
            )

    def joined(each: Sequence[Examples]) -> Examples:
        return Examples(
            images=torch.cat([examples.images for examples in each]),
            labels=torch.cat([examples.labels for examples in each]),
            domains=torch.cat([torch.full((len(examples),), number) for number, examples in enumerate(each)]),
        )

    train, test = joined([one.train for one in sets]), joined([one.test for one in sets])
    notices = tuple(f"{name}: {notice}" for name, one in parts.items() for notice in one.notices)
    return replace(_made(train, test, sets[0].class_names, names), notices=notices)


def _made(train: Examples, test: Examples, classes: Sequence[str], domains: Sequence[str]) -> DataSet:
    mean, std = channel_statistics(train.images)
    return DataSet(
        name="domains",
        train=train,
        test=test,
        class_names=tuple(map(shown, classes)),
        domain_names=tuple(map(shown, domains)),
        mean=mean,
        std=std,
        licence="",
        natural_ids=train.domains,
    )


def _domains(examples: Examples) -> Tensor:
    return torch.zeros_like(examples.labels) if examples.domains is None else examples.domains
