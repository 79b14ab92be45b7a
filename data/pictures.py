"""Picture files and PIL images to one tensor, as a viewer shows them.

A picture is turned as its EXIF says, what is transparent is white, and every value is a share of white: of 16 bits
65535 is white, of floating values 1. What a format does not say (32-bit integers, floating values above 1) is refused
until `white` says it; nothing is clipped.

Shapes: N pictures, C channels (1 grey, 3 colour), S pixels on a side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from umbel.core.names import shown
from umbel.data.errors import DamagedDataError, DataError

# What PIL raises for a file that is no picture, or not a whole one.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# Part of the key of what is cached; it changes whenever the pixels of a picture would.
DECODING = 2

_MODES = {1: "L", 3: "RGB"}
# PIL gives these numbers in 0..65535 in a mode of 32 bits.
_SIXTEEN_BITS_AS_32 = ("PNG", "PPM")


@dataclass(frozen=True)
class Form:
    """What all pictures of a set are made to be.

    Attributes:
        size: Pixels on a side S.
        mode: PIL's mode, of 1 or 3 letters as there are channels.
        white: Value of white in pictures of more than 8 bits; 0 takes what their format says.
        white_key: The key that says it, for refusals; empty where there is none.
    """

    size: int
    mode: str
    white: float = 0.0
    white_key: str = "data.options.white"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Form:
        """Return the form that `image_size`, `in_channels` and `white` ask for.

        Raises:
            DataError: One of them cannot be.
        """
        return cls(as_size(options["image_size"]), mode_of(options["in_channels"]), as_white(options["white"]))

    def array(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Return a picture as [S, S, C] uint8.

        Raises:
            DataError: Its values are not between black and white, or its format does not say what white is.
        """
        picture = on_white(eight_bits(picture, self.white, self.white_key)).convert(self.mode)
        if picture.size != (self.size, self.size):
            picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return np.asarray(picture, dtype=np.uint8).reshape(self.size, self.size, -1)


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


def as_white(value: object) -> float:
    """Return the value of white, or refuse it with the key to change."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise DataError(
            f"data.options.white must be a number of at least 0 (0 takes what a picture's format says), found "
            f"{value!r}.",
            key="data.options.white",
        )
    return float(value)


def eight_bits(picture: Image.Image, white: float = 0.0, key: str = "data.options.white") -> Image.Image:
    """Return a picture of 8 bits a channel, turned as its EXIF says.

    Args:
        picture: Of any of PIL's modes.
        white: Value of white in a picture of more than 8 bits; 0 takes what its format says.
        key: The key that says it, for refusals; empty where there is none.

    Raises:
        DataError: Its values are not between black and white, or its format does not say what white is.
    """
    limit = _white_of(picture) if picture.mode[0] in "IF" else 0.0
    picture = ImageOps.exif_transpose(picture)
    if picture.mode[0] not in "IF":
        return picture
    limit = white or limit
    values = np.asarray(picture, dtype=np.float64)
    lowest, highest = float(values.min()), float(values.max())
    if not limit or not 0 <= lowest <= highest <= limit:
        kind = "floating values" if picture.mode == "F" else "values of more than 8 bits"
        asked = f"between 0 and {limit:g}" if limit else "of which the format says what white is"
        raise DataError(
            f"it has {kind} from {lowest:g} to {highest:g}, expected some {asked}.",
            key=key,
            remedy="Save pictures with 8 bits, with 16 (65535 is white) or as floating values (1 is white)"
            + (f", or set {key} to the value of white; black is 0." if key else "; black is 0."),
        )
    grey = Image.fromarray(np.rint(values * (255 / limit)).astype(np.uint8))
    if isinstance(picture.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(values == picture.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _white_of(picture: Image.Image) -> float:
    """Return the value of white that the format of a picture of more than 8 bits says; 0 where it says none."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in _SIXTEEN_BITS_AS_32):
        return 65535.0
    return 1.0 if picture.mode == "F" else 0.0


def on_white(picture: Image.Image) -> Image.Image:
    """Return a picture of 8 bits a channel without transparency: what is behind it is white."""
    transparent = picture.info.get("transparency")
    if isinstance(transparent, tuple) and max(transparent) > 255:
        # PIL keeps the upper 8 of 16 bits of each pixel, and all 16 of the colour that is transparent.
        picture = picture.copy()
        picture.info["transparency"] = tuple(value >> 8 for value in transparent)
    if picture.mode in ("P", "LA", "PA", "RGBa") or transparent is not None:
        picture = picture.convert("RGBA")
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture


def read(paths: Sequence[Path], form: Form) -> tuple[Tensor, tuple[str, ...]]:
    """Read picture files.

    Returns:
        [N, C, S, S] uint8, and what was left out of them, a sentence each.

    Raises:
        DamagedDataError: A file is no picture that PIL reads; the message names it.
        DataError: A picture's values do not say what white is; the message names the file.
    """
    images = np.empty((len(paths), form.size, form.size, len(form.mode)), dtype=np.uint8)
    several: list[Path] = []
    for position, path in enumerate(paths):
        try:
            with Image.open(path) as picture:
                # A telephone's picture has its own thumbnail behind it.
                if picture.format != "MPO" and getattr(picture, "is_animated", False):
                    several.append(path)
                images[position] = form.array(picture)
        except DataError as error:
            raise DataError(f"{shown(path)}: {error.reason}", key=error.key, remedy=error.remedy) from error
        except UNREADABLE as error:
            raise DamagedDataError(
                f"{shown(path)}: cannot be read as a picture ({error}).", remedy="Mend the file or remove it."
            ) from error
    first = (f"Of {len(several)} pictures with several pages the first is read ({shown(one)})." for one in several[:1])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), tuple(first)
