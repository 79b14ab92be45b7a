"""Picture files and PIL images to one tensor.

Shapes: N pictures, C channels (1 grey, 3 colour), S pixels on a side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from umbel.data.errors import DamagedDataError, DataError

_MODES = {1: "L", 3: "RGB"}


def mode_of(channels: object) -> str:
    """Return PIL's mode for 1 or 3 channels."""
    if channels not in _MODES:
        raise DataError(
            f"data.options.in_channels must be 1 (grey) or 3 (colour), found {channels!r}.",
            key="data.options.in_channels",
        )
    return _MODES[int(str(channels))]


def as_size(value: object) -> int:
    """Return an image size in pixels, or refuse it with the key to change."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DataError(
            f"data.options.image_size must be a whole number of at least 1, found {value!r}.",
            key="data.options.image_size",
        )
    return value


def to_array(picture: Image.Image, size: int, mode: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return a picture as [S, S, C] uint8; a transparent one is laid on white."""
    if picture.mode in ("P", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert(mode)
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.uint8).reshape(size, size, -1)


def stack(pictures: Iterable[Image.Image], count: int, size: int, mode: str) -> Tensor:
    """Return `count` pictures as one tensor, [N, C, S, S] uint8."""
    images = np.empty((count, size, size, len(mode)), dtype=np.uint8)
    for position, picture in enumerate(pictures):
        images[position] = to_array(picture, size, mode)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def read(paths: Sequence[Path], size: int, mode: str) -> Tensor:
    """Read picture files into one tensor, [N, C, S, S] uint8.

    Raises:
        DamagedDataError: A file is no picture that PIL reads; the message names it.
    """
    images = np.empty((len(paths), size, size, len(mode)), dtype=np.uint8)
    for position, path in enumerate(paths):
        try:
            with Image.open(path) as picture:
                images[position] = to_array(picture, size, mode)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DamagedDataError(
                f"{path}: cannot be read as a picture ({error}).", remedy="Mend the file or remove it."
            ) from error
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
