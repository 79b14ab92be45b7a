"""`hub:<owner/name>`: any image set of the Hugging Face hub, through flwr-datasets; or `hub:<folder>`.

A folder has the form of a downloaded set (parquet files, or pictures in folders) and needs no network.
Columns are found by their type: the one of images, the one of class labels. Where there are several, options
name them. Flower's usage reports are off unless the environment variable FLWR_TELEMETRY_ENABLED is set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import pictures
from data.config import DataConfig
from data.errors import DamagedDataError, DataError, MissingDataError
from data.split import stratified
from data.types import DataSet, Examples, channel_statistics

DESCRIPTION = "any image set of the Hugging Face hub, or a folder in its form, through flwr-datasets"
# Empty names are found by type; image_size 0 and in_channels 0 take those of the first picture.
OPTIONS: dict[str, Any] = {
    "image_column": "",
    "label_column": "",
    "domain_column": "",
    "natural_id_column": "",
    "train_split": "train",
    "test_split": "test",
    "subset": "",
    "revision": "",
    "cache_dir": "",
    "image_size": 0,
    "in_channels": 0,
}

_SPLIT_SEED = 20_240_102
_TEST_FRACTION = 0.2


def check(config: DataConfig) -> None:
    """Raise for what is wrong without asking the network: no name, no such folder, impossible options."""
    name = config.name.removeprefix("hub:")
    if not name or name.startswith("<"):
        raise DataError(f"data.name={config.name}: expected hub:<owner/name> or hub:<folder>.")
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise MissingDataError(f"data.name={config.name}: there is no folder {name}. Set data.name to one.")
    options = OPTIONS | config.options
    if options["image_size"] != 0:
        pictures.as_size(options["image_size"])
    if options["in_channels"] != 0:
        pictures.mode_of(options["in_channels"])


def load(config: DataConfig, _seed: int) -> DataSet:
    """Fetch the set, or read it from the cache of an earlier fetch.

    Args:
        config: The name after `hub:`, and the options.
        _seed: Changes nothing here.
    """
    return fetch(config.name.removeprefix("hub:"), config.options)


def fetch(
    source: str,
    given: Mapping[str, Any],
    licence: str = "",
    name: str = "",
    class_names: Sequence[str] = (),
) -> DataSet:
    """Fetch a set from the hub or a folder.

    Args:
        source: owner/name, or a folder.
        given: Options that differ from `OPTIONS`.
        licence: Overrides what the set says of itself.
        name: Name of the result; "" makes it `hub:<source>`.
        class_names: Overrides the names of the classes.

    Raises:
        MissingDataError: The set is not there, or there is no network.
        DataError: A split or a column is not there; the message lists those that are.
    """
    options = {key: str(value) for key, value in (OPTIONS | dict(given)).items()}
    splits, info = _splits(source, options)
    columns = _Columns.find(source, splits["train"].features, options)
    classes = list(class_names) or columns.classes(splits)
    domains = _values(splits, options["domain_column"], source)
    first = splits["train"][0][columns.image]
    size = int(options["image_size"]) or _square(first.size, source)
    channels = int(options["in_channels"]) or (1 if first.mode in ("1", "L", "I", "I;16", "F") else 3)
    mode = pictures.mode_of(channels)

    def examples(split: Any) -> Examples:
        try:
            images = pictures.stack(split[columns.image], len(split), size, mode)
        except (OSError, SyntaxError) as error:
            raise DamagedDataError(f"{source}: a picture cannot be decoded ({error}). Fetch it again.") from error
        return Examples(
            images=images,
            labels=columns.labels(split, classes),
            domains=_codes(split, options["domain_column"], domains) if domains else None,
        )

    found = {key: examples(split) for key, split in splits.items()}
    train = found["train"]
    people = _values({"train": splits["train"]}, options["natural_id_column"], source)
    natural_ids = _codes(splits["train"], options["natural_id_column"], people) if people else train.domains
    if "test" not in found:
        rest, held_out = stratified(train.labels, _TEST_FRACTION, _SPLIT_SEED, "hub test")
        found["test"], train = train.take(held_out), train.take(rest)
        natural_ids = None if natural_ids is None else natural_ids[rest]
    mean, std = channel_statistics(train.images)
    return DataSet(
        name=name or f"hub:{source}",
        train=train,
        test=found["test"],
        class_names=tuple(map(str, classes)),
        domain_names=tuple(map(str, domains)),
        mean=mean,
        std=std,
        licence=licence or info or "see its page on the hub",
        natural_ids=natural_ids,
    )


class _Columns:
    """The column of images and the column of labels."""

    def __init__(self, image: str, label: str, names: Sequence[str] | None) -> None:
        self.image, self.label, self.names = image, label, names

    @classmethod
    def find(cls, source: str, features: Mapping[str, Any], options: Mapping[str, str]) -> _Columns:
        """Find both by their types, or by the options that name them."""
        from datasets import ClassLabel, Image

        image = cls._one(source, features, options["image_column"], "image_column", Image)
        if not isinstance(features[image], Image):
            raise DataError(f"{source}: column {image!r} holds no images; set data.options.image_column.")
        label = cls._one(source, features, options["label_column"], "label_column", ClassLabel)
        feature = features[label]
        return cls(image, label, list(feature.names) if isinstance(feature, ClassLabel) else None)

    @staticmethod
    def _one(source: str, features: Mapping[str, Any], wanted: str, option: str, kind: type) -> str:
        known = ", ".join(features)
        if wanted:
            if wanted not in features:
                raise DataError(f"{source} has no column {wanted!r} (data.options.{option}); it has {known}.")
            return wanted
        found = [name for name, feature in features.items() if isinstance(feature, kind)]
        if not found and option == "label_column" and "label" in features:
            return "label"
        if len(found) != 1:
            raise DataError(
                f"{source}: expected one column of type {kind.__name__}, found {found or 'none'} among "
                f"{known}. Set data.options.{option}."
            )
        return found[0]

    def classes(self, splits: Mapping[str, Any]) -> list[Any]:
        """Return the classes in the order of their labels."""
        if self.names is not None:
            return list(self.names)
        return sorted({value for split in splits.values() for value in split.unique(self.label)})

    def labels(self, split: Any, classes: Sequence[Any]) -> Tensor:
        """Return the labels of a split, [N] int64."""
        if self.names is not None:
            return torch.from_numpy(np.asarray(split[self.label], dtype=np.int64).copy())
        return _codes(split, self.label, classes)


def _values(splits: Mapping[str, Any], column: str, source: str) -> list[Any]:
    """Return the sorted values of a column over all splits; none without a column."""
    if not column:
        return []
    known = splits["train"].column_names
    if column not in known:
        raise DataError(f"{source} has no column {column!r}; it has {', '.join(known)}.")
    return sorted({value for split in splits.values() for value in split.unique(column)})


def _codes(split: Any, column: str, values: Sequence[Any]) -> Tensor:
    """Return the position in `values` of each entry of a column, [N] int64."""
    position = {value: index for index, value in enumerate(values)}
    return torch.tensor([position[value] for value in split[column]], dtype=torch.int64)


def _square(size: tuple[int, int], source: str) -> int:
    width, height = size
    if width != height:
        raise DataError(
            f"{source}: the first picture has {width} x {height} pixels and is not square. Set data.options.image_size."
        )
    return width


def _splits(source: str, options: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Return the wanted splits under the names train and test, and the licence."""
    with _quiet():
        from flwr_datasets import FederatedDataset

        extra = {key: options[key] for key in ("cache_dir", "revision") if options[key]}
        federated = FederatedDataset(
            dataset=str(Path(source).expanduser()) if source.startswith("~") else source,
            subset=options["subset"] or None,
            partitioners={},
            shuffle=False,
            **extra,
        )
        try:
            train = federated.load_split(options["train_split"])
        except OSError as error:
            raise MissingDataError(
                f"hub:{source} cannot be fetched ({error}). Expected a set of the Hugging Face hub and a "
                f"network (or its files in the cache), or a folder of parquet files. Check data.name; behind "
                f"a firewall, fetch it elsewhere with\n"
                f"    hf download --repo-type dataset {source} --local-dir FOLDER\n"
                f"and set data.name=hub:FOLDER."
            ) from error
        except ValueError as error:
            raise DataError(
                f"hub:{source}: {error} Check data.options.train_split={options['train_split']} and "
                f"data.options.subset."
            ) from error
        splits = {"train": train}
        if options["test_split"]:
            try:
                splits["test"] = federated.load_split(options["test_split"])
            except ValueError as error:
                raise DataError(
                    f"hub:{source}: {error} Set data.options.test_split; an empty one holds a fifth of each "
                    f"class of {options['train_split']} out."
                ) from error
    return splits, str(train.info.license or "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Load without progress bars and without reports to Flower; both are put back."""
    import datasets
    from flwr_datasets.common import telemetry

    had_bars = datasets.is_progress_bar_enabled()
    had_reports, source = telemetry.FLWR_TELEMETRY_ENABLED, telemetry.state["source"]
    if os.environ.get("FLWR_TELEMETRY_ENABLED") is None:
        telemetry.FLWR_TELEMETRY_ENABLED = "0"
        # A source that is known already is not written to the home directory.
        telemetry.state["source"] = "unavailable"
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        executor = telemetry.state["executor"]
        if executor is not None:
            executor.shutdown(wait=True)
            telemetry.state["executor"] = None
        telemetry.FLWR_TELEMETRY_ENABLED, telemetry.state["source"] = had_reports, source
        if had_bars:
            datasets.enable_progress_bars()
