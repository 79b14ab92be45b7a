"""`fashion_mnist`: IDX files, as the Debian package installs them, as they are downloaded, or unpacked.

28 x 28 grey, 60,000 and 10,000 examples, 10 balanced classes (Xiao et al., 2017). Looked for in `data.path`,
else in the folder named by the environment variable UMBEL_DATA (or its subfolder fashion-mnist), else where
the Debian package puts it. Any four files of these names will do, MNIST's as well.

The IDX format: two zero bytes, a type byte (8 is uint8), the number of dimensions, each dimension as a
big-endian 32-bit number, then the values.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import hub
from data.config import DataConfig
from data.errors import DamagedDataError, DataError, MissingDataError
from data.types import DataSet, Examples, channel_statistics

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
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def folders(config: DataConfig) -> list[Path]:
    """Return the folders in which the files are looked for, in that order."""
    if config.path is not None:
        return [Path(config.path)]
    root = os.environ.get("UMBEL_DATA")
    own = [Path(root), Path(root, "fashion-mnist")] if root else []
    return [*own, PACKAGE]


def check(config: DataConfig) -> None:
    """Raise `MissingDataError` when the files are nowhere and the hub is not allowed."""
    if not isinstance(config.options.get("hub", False), bool):
        raise DataError(f"data.options.hub must be true or false, found {config.options['hub']!r}.")
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
        return hub.fetch(HUB_NAME, {}, licence=LICENCE, name="fashion_mnist", class_names=CLASSES)
    train, test = (_read_split(folder, split) for split in ("train", "test"))
    mean, std = channel_statistics(train.images)
    return DataSet("fashion_mnist", train, test, CLASSES, (), mean, std, LICENCE)


def _find(config: DataConfig) -> Path:
    wanted = [name for pair in _FILES.values() for name in pair]
    searched = folders(config)
    for folder in searched:
        if all(_variant(folder, name) is not None for name in wanted):
            return folder
    raise MissingDataError(
        f"data.name=fashion_mnist: expected the files {', '.join(wanted)} (each plain or .gz) in one of "
        f"{', '.join(map(str, searched))}, and they are not there. Install them with\n"
        f"    sudo apt-get install dataset-fashion-mnist\n"
        f"or set data.path to a folder that has them, or data.options.hub=true to fetch {HUB_NAME} from the "
        f"Hugging Face hub."
    )


def _variant(folder: Path, name: str) -> Path | None:
    """Return the file as it is there: unpacked first, which is faster to read."""
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    return None


def _read_split(folder: Path, split: str) -> Examples:
    image_file, label_file = (_variant(folder, name) for name in _FILES[split])
    if image_file is None or label_file is None:
        raise MissingDataError(f"{folder}: the {split} files went away while they were read.")
    images, labels = read_idx(image_file, dimensions=3), read_idx(label_file, dimensions=1).long()
    if len(images) != len(labels):
        raise DamagedDataError(
            f"{image_file} has {len(images)} images and {label_file} has {len(labels)} labels; expected as "
            f"many. Fetch both again."
        )
    if len(labels) and int(labels.max()) >= len(CLASSES):
        raise DamagedDataError(
            f"{label_file}: expected labels 0..{len(CLASSES) - 1}, found {int(labels.max())}. Fetch it again."
        )
    return Examples(images.unsqueeze(1), labels)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an IDX file of bytes, packed by gzip or plain.

    Args:
        path: The file; a name that ends in .gz is unpacked.
        dimensions: How many the header must state.

    Raises:
        DamagedDataError: The file is cut short, too long, or something else; the message names it.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedDataError(f"{path}: cannot be read ({error}). Fetch it again.") from error
    expected = bytes([0, 0, 8, dimensions])
    if raw[:4] != expected:
        raise DamagedDataError(
            f"{path}: expected the IDX magic {expected.hex()} (bytes in {dimensions} dimensions), found "
            f"{raw[:4].hex() or 'nothing'}. Fetch it again."
        )
    header = 4 + 4 * dimensions
    if len(raw) < header:
        raise DamagedDataError(f"{path}: ends inside its header of {header} bytes. Fetch it again.")
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    if len(raw) - header != math.prod(shape):
        raise DamagedDataError(
            f"{path}: its header states {shape}, which is {math.prod(shape)} bytes, and {len(raw) - header} "
            f"follow. Fetch it again."
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())
