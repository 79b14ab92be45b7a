"""Where a site's rows come from: folders, tables, IDX files, or any set that `data.name` takes."""

from __future__ import annotations

from pathlib import Path

import torch

from umbel.core.refusal import Refusal
from umbel.data.config import DataConfig
from umbel.data.errors import DataError, MissingDataError
from umbel.data.sets import registry
from umbel.data.sites import folder, tables
from umbel.data.sites.description import SiteData, composed
from umbel.data.sites.rows import Rows, of_tensor
from umbel.data.sources import idx
from umbel.data.types import DataSet, Examples

_MOST_CLASSES = 256  # labels of an IDX file are bytes


def rows(site: SiteData, seed: int) -> Rows:
    """List a site's examples.

    Args:
        site: What its file says.
        seed: The seed of the data, for sets that are made from one.

    Raises:
        DataError: They are not there, or are no pictures with classes.
    """
    if site.source == "image_folder":
        return folder.rows(site)
    if site.source in ("csv", "parquet", "arrow"):
        return tables.rows(site)
    return _of_idx(site) if site.source == "idx" else _of_set(site, seed)


def places(site: SiteData) -> list[Path]:
    """Return the files and folders that a site's file names; what a function of one's own opens, it alone knows."""
    hub = site.source.removeprefix("hub:") if site.source.startswith("hub:") else ""
    return [Path(place) for place in (site.path, hub) if place]


def _of_idx(site: SiteData) -> Rows:
    root = idx.find([Path(site.path)])
    if root is None:
        raise MissingDataError(
            f"path={site.path}: expected the files {', '.join(idx.NAMES)}, each plain or .gz.",
            key="path",
            remedy="Set path to their folder.",
        )
    train, test = (idx.read_split(root, split, _MOST_CLASSES) for split in ("train", "test"))
    labels = torch.cat([train.labels, test.labels]).tolist()
    return Rows(
        labels=[str(label) for label in labels],
        read=of_tensor(torch.cat([train.images, test.images])),
        splits=["train"] * len(train) + ["test"] * len(test),
    )


def _of_set(site: SiteData, seed: int) -> Rows:
    """Return the rows of a set or of a function; its test set is the site's split `test`."""
    config = DataConfig(name=site.source, path=site.path or None, options=site.options)
    try:
        data_set = registry.load(config, seed)
    except Refusal as error:
        raise _by_our_keys(error) from error
    _require_pictures(data_set)
    sides, label_names = (data_set.train, data_set.test), [composed(name) for name in data_set.class_names]
    groups = None
    if data_set.train.concepts is not None and data_set.test.concepts is not None:
        groups = [str(concept) for side in sides for concept in side.concepts.tolist()]  # type: ignore[union-attr]
    return Rows(
        labels=[label_names[label] for side in sides for label in side.labels.tolist()],
        read=of_tensor(torch.cat([side.images for side in sides])),
        clients=_clients(site, data_set, sides),
        splits=["train"] * len(data_set.train) + ["test"] * len(data_set.test),
        groups=groups,
        notices=data_set.notices,
    )


def _by_our_keys(error: Refusal) -> Refusal:
    """Return the refusal of a set with the key of a site's file in place of that of an experiment."""
    keys = {"data.name": "source", "data.path": "path"}
    key = keys.get(error.key, error.key.removeprefix("data."))
    meant = f" (In a site's file {error.key} is {key}.)" if key != error.key else ""
    kind = type(error) if isinstance(error, DataError) else DataError
    return kind(error.reason, key=key, remedy=f"{error.remedy}{meant}".strip())


def _require_pictures(data_set: DataSet) -> None:
    images = data_set.train.images
    if images.ndim != 4 or images.dtype != torch.uint8 or data_set.train.texts is not None:
        kind = "texts" if data_set.train.texts is not None else f"{list(images.shape[1:])} of {images.dtype}"
        raise DataError(
            f"{data_set.name}: expected pictures as uint8 [N, channels, side, side] with 255 as white, found {kind}.",
            key="source",
            remedy="Sites agree on a normalisation by exact sums of pixels of 8 bits: give the pictures so.",
        )


def _clients(site: SiteData, data_set: DataSet, sides: tuple[Examples, Examples]) -> list[str] | None:
    """Return whose each example is, by its domain, where the site's file asks for that."""
    column = site.columns.get("client")
    if column is None:
        return None
    if data_set.domain_names:
        codes = [code for side in sides for code in side.domains.tolist()]  # type: ignore[union-attr]
        return [composed(data_set.domain_names[code]) for code in codes]
    raise DataError(
        f"{data_set.name} has no domains, which columns.client={column} asks for.",
        key="columns.client",
        remedy="Leave it out.",
    )
