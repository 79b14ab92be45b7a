"""IDX files of pictures and labels, as MNIST, Fashion-MNIST and their kin are published.

The format: two zero bytes, a type byte (8 is uint8), the number of dimensions, each dimension as a big-endian
32-bit number, then the values.

Shapes: N examples, H height, W width.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from umbel.data.errors import DamagedDataError, MissingDataError
from umbel.data.types import Examples

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
NAMES = tuple(name for pair in _FILES.values() for name in pair)
_AGAIN = "Fetch it again."


def find(folders: Sequence[Path]) -> Path | None:
    """Return the first of the folders that has all four files, each plain or .gz; None where there is none."""
    for folder in folders:
        if all(_variant(folder, name) is not None for name in NAMES):
            return folder
    return None


def read_split(folder: Path, split: str, num_classes: int) -> Examples:
    """Read the pictures and the labels of `train` or `test`.

    Returns:
        Examples with images [N, 1, H, W] uint8.

    Raises:
        MissingDataError: A file is not there.
        DamagedDataError: A file is not what its header says, or the two do not go together; the message names it.
    """
    image_file, label_file = (_variant(folder, name) for name in _FILES[split])
    if image_file is None or label_file is None:
        raise MissingDataError(f"{folder}: the {split} files went away while they were read.")
    images, labels = read_idx(image_file, dimensions=3), read_idx(label_file, dimensions=1).long()
    if len(images) != len(labels):
        raise DamagedDataError(
            f"{image_file} has {len(images)} images and {label_file} has {len(labels)} labels; expected as many.",
            remedy="Fetch both again.",
        )
    if len(labels) and int(labels.max()) >= num_classes:
        raise DamagedDataError(
            f"{label_file}: expected labels 0..{num_classes - 1}, found {int(labels.max())}.",
            remedy=_AGAIN,
        )
    return Examples(images.unsqueeze(1), labels)


def _variant(folder: Path, name: str) -> Path | None:
    """Return the file as it is there: unpacked first, which is faster to read."""
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    return None


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
        raise DamagedDataError(f"{path}: cannot be read ({error}).", remedy=_AGAIN) from error
    expected = bytes([0, 0, 8, dimensions])
    if raw[:4] != expected:
        raise DamagedDataError(
            f"{path}: expected the IDX magic {expected.hex()} (bytes in {dimensions} dimensions), found "
            f"{raw[:4].hex() or 'nothing'}.",
            remedy=_AGAIN,
        )
    header = 4 + 4 * dimensions
    if len(raw) < header:
        raise DamagedDataError(f"{path}: ends inside its header of {header} bytes.", remedy=_AGAIN)
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    if len(raw) - header != math.prod(shape):
        raise DamagedDataError(
            f"{path}: its header states {shape}, which is {math.prod(shape)} bytes, and {len(raw) - header} follow.",
            remedy=_AGAIN,
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())
