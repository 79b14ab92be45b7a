"""`fashion_mnist`: IDX files, as the Debian package installs them, as they are downloaded, or unpacked.

28 x 28 grey, 60,000 and 10,000 examples, 10 balanced classes (Xiao et al., 2017). Looked for in `data.path`,
else in the folder named by the environment variable UMBEL_DATA (or its subfolder fashion-mnist), else where
the Debian package puts it. Any four files of these names will do, MNIST's as well.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from umbel.data.config import DataConfig
from umbel.data.errors import DataError, MissingDataError
from umbel.data.sources import hub, idx
from umbel.data.types import DataSet, channel_statistics

DESCRIPTION = "60,000 + 10,000 pieces of clothing, 28 x 28 grey, 10 classes; IDX files or the hub"
OPTIONS: dict[str, Any] = {"hub": False}

PACKAGE = Path("/usr/share/datasets/fashion-mnist")
HUB_NAME = "zalando-datasets/fashion_mnist"
LICENCE = "MIT"
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def folders(config: DataConfig) -> list[Path]:
    """Return the folders in which the files are looked for, in that order."""
    if config.path is not None:
        return [Path(config.path).expanduser()]
    root = os.environ.get("UMBEL_DATA")
    own = [Path(root), Path(root, "fashion-mnist")] if root else []
    return [*own, PACKAGE]


def check(config: DataConfig) -> None:
    """Raise `MissingDataError` when the files are nowhere and the hub is not allowed."""
    if not isinstance(config.options.get("hub", False), bool):
        raise DataError(
            f"data.options.hub must be true or false, found {config.options['hub']!r}.", key="data.options.hub"
        )
    if not config.options.get("hub"):
        _find(config)


def load(config: DataConfig, _seed: int) -> DataSet:
    """Read the files; with `data.options.hub=true` and no files, fetch the same set from the hub.

    Args:
        config: Where to look.
        _seed: Changes nothing here.

    Raises:
        MissingDataError: There are no such files.
        DamagedDataError: A file is not what its header says.
    """
    try:
        folder = _find(config)
    except MissingDataError:
        if not config.options.get("hub"):
            raise
        return hub.read(HUB_NAME, {}, licence=LICENCE, name="fashion_mnist", class_names=CLASSES)
    train, test = (idx.read_split(folder, split, len(CLASSES)) for split in ("train", "test"))
    mean, std = channel_statistics(train.images)
    return DataSet("fashion_mnist", train, test, CLASSES, (), mean, std, LICENCE)


def _find(config: DataConfig) -> Path:
    searched = folders(config)
    folder = idx.find(searched)
    if folder is None:
        raise MissingDataError(
            f"data.name=fashion_mnist: expected the files {', '.join(idx.NAMES)} (each plain or .gz) in one of "
            f"{', '.join(map(str, searched))}, and they are not there.",
            key="data.path",
            remedy="Install them with\n"
            f"    sudo apt-get install dataset-fashion-mnist\n"
            f"or set data.path to a folder that has them, or data.options.hub=true to fetch {HUB_NAME} from the "
            f"Hugging Face hub.",
        )
    return folder
