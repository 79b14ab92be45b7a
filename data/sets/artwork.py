"""Drawings of any shape, transparent or not, as square pictures on white.

Shapes: S pixels on a side.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from umbel.data import pictures
from umbel.data.errors import DamagedDataError, MissingDataError


def read(path: Path, size: int) -> NDArray[np.uint8]:
    """Read a drawing, PNG or SVG, in the middle of a white square that its longer side fills.

    Args:
        path: The file.
        size: S.

    Returns:
        [3, S, S] in RGB.

    Raises:
        DamagedDataError: It cannot be read; the message names it.
        MissingDataError: It is an SVG, and resvg-py is not installed.
    """
    try:
        with Image.open(io.BytesIO(_rendered(path, size)) if path.suffix == ".svg" else path) as picture:
            return on_white(picture, size)
    except pictures.UNREADABLE as error:
        if isinstance(error, MissingDataError):
            raise
        raise DamagedDataError(f"{path}: cannot be read as a picture ({error}).", remedy="Install it again.") from error


def on_white(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """Return a picture in the middle of a white square, [3, S, S]."""
    picture = pictures.eight_bits(picture).convert("RGBA")
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    small = picture.resize((width, height), Image.Resampling.BILINEAR)
    square = Image.new("RGBA", (size, size), "white")
    square.alpha_composite(small, ((size - width) // 2, (size - height) // 2))
    return np.ascontiguousarray(np.asarray(square.convert("RGB"), dtype=np.uint8).transpose(2, 0, 1))


def pixels(path: Path) -> int:
    """Return the number of pixels of a picture, or 0 where its header cannot be read: `read` then says why."""
    try:
        with path.open("rb") as file:
            header = file.read(24)  # of a PNG: signature, IHDR, then width and height
    except OSError:
        return 0
    width, height = struct.unpack(">II", header[16:24]) if header[:4] == b"\x89PNG" and len(header) == 24 else (0, 0)
    return int(width * height)


def check_renderer(instead: str = "", key: str = "") -> None:
    """Raise `MissingDataError` when nothing can draw SVG.

    Args:
        instead: What the user may do in place of installing it.
        key: The configuration key to change for that.
    """
    from importlib.util import find_spec

    if find_spec("resvg_py") is None:
        raise MissingDataError(
            "Drawings in SVG need resvg-py.",
            key=key,
            remedy=f"Install it with\n    pip install resvg-py\n{instead}".strip(),
        )


def _rendered(path: Path, size: int) -> bytes:
    """Return an SVG as PNG, its longer side twice the size asked for: what is left is the same filter for all."""
    check_renderer()
    import resvg_py

    content = path.read_text(encoding="utf-8", errors="replace")
    # Without dpi a size in points is none; and which fonts a system has must not change what is drawn.
    drawn = resvg_py.svg_to_bytes(svg_string=content, width=2 * size, dpi=96.0, skip_system_fonts=True)
    return bytes(drawn)
