"""`image_folder`: pictures in folders, resized to one size.

Three layouts under `data.path`:

    train/<class>/*  and  test/<class>/*      the split is given; val/ is the test set where there is no test/
    <class>/*                                 a hashed part of the pictures is the test set
    <domain>/<class>/*                        with data.options.domains=true

The hashed split looks at class and file name only. So it never changes when pictures are added, and a concept
that every domain draws in its own style, under one file name, never has one drawing on each side.

What lies elsewhere, is hidden, or has another suffix is left out, and the set's notices say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from umbel.core.names import shown
from umbel.data import pictures
from umbel.data.config import DataConfig
from umbel.data.errors import DataError, MissingDataError
from umbel.data.sources.picture_files import PictureFiles, find, left_out, require_classes
from umbel.data.split import hashed
from umbel.data.types import DataSet, Examples, channel_statistics

DESCRIPTION = "pictures in folders: train/<class>, <class>, or <domain>/<class>; needs data.path"
OPTIONS: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 3,
    "domains": False,
    "test_fraction": 0.2,
    "white": 0,  # value of white in pictures of more than 8 bits; 0 takes what their format says
}

# What the folders of a split are called, in small letters; the first one that is there is taken.
_SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation"),
}


def check(config: DataConfig) -> None:
    """Raise `MissingDataError` without a folder, and `DataError` for options that cannot be."""
    options = OPTIONS | config.options
    pictures.Form.of(options)
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
        DataError: There are no pictures, those of one class only, or no split can be made of them.
        DamagedDataError: A picture cannot be read; the message names it.
    """
    check(config)
    options = OPTIONS | config.options
    root, form = Path(str(config.path)).expanduser(), pictures.Form.of(options)
    has_domains = bool(options["domains"])
    sides, notices = _sides(root, has_domains, float(options["test_fraction"]))
    everything = [path for paths in sides.values() for path in paths]
    concepts = _numbered(map(_concept, everything))
    classes = _numbered(path.parent.name for path in everything)
    domains = _numbered(path.parent.parent.name for path in everything) if has_domains else {}

    def examples(split: str) -> tuple[Examples, tuple[str, ...]]:
        paths = sides[split]
        if not paths:
            raise DataError(
                f"data.path={shown(root)}: no picture is left for {split}.",
                key="data.options.test_fraction",
                remedy=f"Add pictures, or change data.options.test_fraction={options['test_fraction']}.",
            )
        images, more = pictures.read(paths, form)
        return Examples(
            images=images,
            labels=torch.tensor([classes[path.parent.name] for path in paths]),
            domains=torch.tensor([domains[path.parent.parent.name] for path in paths]) if domains else None,
            concepts=torch.tensor([concepts[_concept(path)] for path in paths]) if domains else None,
        ), more

    (train, of_train), (test, of_test) = examples("train"), examples("test")
    mean, std = channel_statistics(train.images)
    return DataSet(
        name="image_folder",
        train=train,
        test=test,
        class_names=tuple(map(shown, classes)),
        domain_names=tuple(map(shown, domains)),
        mean=mean,
        std=std,
        licence=f"as stated by whoever made {shown(root)}",
        natural_ids=train.domains,
        notices=(*notices, *of_train, *of_test),
    )


def _sides(root: Path, has_domains: bool, fraction: float) -> tuple[dict[str, tuple[Path, ...]], tuple[str, ...]]:
    """Return the pictures of train and test, and what was left out."""
    places = split_folders(root)
    if "train" in places and len(places) > 1 and not has_domains:
        given, notices = _given(root, places)
        return given, (*notices, *_unused(root, places, fraction))
    layout = "<domain>/<class>/*" if has_domains else "<class>/*"
    files = find(root, 3 if has_domains else 2, layout)
    _require_no_splits(root, files, has_domains, places.get("train"))
    above = "Set data.path to the folder above the classes"
    if has_domains:
        remedy = "Set data.path to the folder above the domains."
    elif "train" in places:
        remedy = f"{above}: data.path={shown(places['train'])}; a part of it is then the test set."
    else:
        domains = ", or data.options.domains=true where folders are <domain>/<class>/*" if files.num_deeper else ""
        remedy = f"{above}{domains}."
    require_classes(root, files, layout, remedy)
    sides: dict[str, list[Path]] = {"train": [], "test": []}
    for path in files.paths:
        sides["test" if hashed(_concept(path), fraction) else "train"].append(path)
    return {split: tuple(paths) for split, paths in sides.items()}, files.notices


def _require_no_splits(root: Path, files: PictureFiles, has_domains: bool, train: Path | None) -> None:
    """Refuse folders of splits that would be taken for classes or for domains."""
    first = {path.relative_to(root).parts[0] for path in files.paths}
    if not first or not {name.lower() for name in first} <= {name for names in _SPLITS.values() for name in names}:
        return
    if has_domains:
        remedy = "Remove data.options.domains."
    elif train is not None:
        remedy = f"Set data.path={shown(train)}; a part of it is then the test set."
    else:
        remedy = "Put the pictures of each class into a folder of its own, train/<class>/* and test/<class>/*."
    raise DataError(
        f"{shown(root)}: expected {'domains' if has_domains else 'classes'}, found the folders of splits "
        f"{', '.join(sorted(first))}.",
        key="data.options.domains" if has_domains else "data.path",
        remedy=remedy,
    )


def _given(root: Path, places: Mapping[str, Path]) -> tuple[dict[str, tuple[Path, ...]], tuple[str, ...]]:
    """Return the pictures of the splits that have folders."""
    tested = places.get("test", places.get("validation"))
    assert tested is not None, "a second split is there"
    train, test = (find(place, 2, "<class>/*") for place in (places["train"], tested))
    remedy = "Put the pictures of each class into a folder of its own."
    require_classes(places["train"], train, "<class>/*", remedy)
    if not test.paths:
        raise DataError(
            " ".join([f"{shown(tested)}: expected pictures as <class>/*, found none.", *test.notices]),
            key="data.path",
            remedy=remedy,
        )
    notices = [*train.notices, *test.notices]
    if "test" not in places:
        notices.append(f"{shown(root)}: no folder test has classes in it, so that {tested.name} is the test set.")
    elif "validation" in places:
        notices.append(
            f"{shown(root)}: left out the folder {places['validation'].name}; the server validates with a part of "
            f"{places['train'].name} (data.server_validation)."
        )
    return {"train": train.paths, "test": test.paths}, tuple(notices)


def _unused(root: Path, places: Mapping[str, Path], fraction: float) -> Iterator[str]:
    """Say what has no part in a set whose splits have folders."""
    folders = (path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if rest := sorted(path for path in folders if path not in places.values()):
        yield left_out(root, "folders beside those of splits", rest)
    if fraction != OPTIONS["test_fraction"]:
        yield f"data.options.test_fraction={fraction:g} has no part here: the test set has a folder of its own."


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of splits: those with such a name that hold folders, as a class does not."""
    folders = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    named = {
        split: next((folders[name] for name in names if name in folders), None) for split, names in _SPLITS.items()
    }
    return {
        split: place
        for split, place in named.items()
        if place is not None and any(path.is_dir() and not path.name.startswith(".") for path in place.iterdir())
    }


def _numbered(values: Iterable[str]) -> dict[str, int]:
    """Return the distinct values, sorted, each with its place."""
    return {value: place for place, value in enumerate(sorted(set(values)))}


def _concept(path: Path) -> str:
    """Return what a picture shows: with domains, files of one name in a class show the same."""
    return f"{path.parent.name}/{path.stem}"
