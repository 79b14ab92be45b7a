"""Digits as fonts draw them, without a font renderer: outlines of the font files, filled by our own arithmetic.

Renderers differ between versions in hinting and in the last bits of grey. Here the curves of a font file are cut
into straight edges, turned, slanted and stretched, and filled by the winding rule on a grid eight times as fine.

Shapes: P points of a contour, E edges, H x W pixels.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 28  # of a picture, in pixels
BOX = 20  # of the longer side of the ink
_MIDDLE = 14.5  # where MNIST has the mean of the mass, if the first pixel is from 0 to 1
_FINE = 8  # rows and columns of the grid to a pixel
_STEPS = 8  # straight edges to a curve

Contour = NDArray[np.float64]


def outlines(font: Path) -> list[list[Contour]] | None:
    """Return the contours of the ten digits of a font file, TrueType or OpenType.

    Returns:
        For each digit its closed contours, each [P, 2] in the font's units with y upwards; None where the file is
        no font, or a font without digits.
    """
    # It comes with matplotlib, and has no types.
    pens = importlib.import_module("fontTools.pens.recordingPen")
    library = importlib.import_module("fontTools.ttLib")
    logger = logging.getLogger("fontTools")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it has opinions about dates in fonts
    try:
        # Opened here, as the library leaves a file that is no font open.
        with font.open("rb") as file, library.TTFont(file, lazy=True, fontNumber=0) as opened:
            known = opened.getBestCmap() or {}
            names = [known.get(ord(digit)) for digit in "0123456789"]
            if None in names or len(set(names)) < len(names):  # a font may show one sign for whatever it has not
                return None
            glyphs = opened.getGlyphSet()
            contours = []
            for name in names:
                pen = pens.DecomposingRecordingPen(glyphs)
                glyphs[name].draw(pen)
                contours.append(list(_flattened(pen.value)))
    except Exception:  # noqa: BLE001 - whatever its parser stumbles over, the file is no font
        return None
    finally:
        logger.setLevel(level)
    return contours if all(contours) else None


def _flattened(commands: Sequence[tuple[str, tuple[Any, ...]]]) -> Iterator[Contour]:
    """Yield the contours that drawing commands describe, curves cut into straight edges."""
    segments = importlib.import_module("fontTools.pens.basePen").decomposeQuadraticSegment
    points: list[Any] = []
    for command, given in commands:
        if command == "moveTo":
            points = [given[0]]
        elif command == "lineTo":
            points.append(given[0])
        elif command == "curveTo":
            points += _bezier([points[-1], *given])
        elif command == "qCurveTo":
            if given[-1] is None:  # TrueType's contour without a point on it begins between its last and first
                start = tuple((a + b) / 2 for a, b in zip(given[-2], given[0], strict=True))
                points, given = [start], (*given[:-1], start)
            for control, end in segments(given):
                points += _bezier([points[-1], control, end])
        elif len(points) > 2:  # closePath, endPath
            yield np.array(points, dtype=np.float64)


def _bezier(control: Sequence[Any]) -> list[tuple[float, float]]:
    """Return points of a Bezier curve of any degree, without its first."""
    points = np.array(control, dtype=np.float64)
    degree = len(points) - 1
    at = np.arange(1, _STEPS + 1)[:, None] / _STEPS
    weights = [math.comb(degree, k) * at**k * (1 - at) ** (degree - k) for k in range(degree + 1)]
    return [(float(x), float(y)) for x, y in sum(w * p for w, p in zip(weights, points, strict=True))]


def render(contours: Sequence[Contour], shear: float = 0.0, degrees: float = 0.0, width: float = 1.0) -> NDArray[Any]:
    """Draw a glyph, white on black, framed as MNIST's are.

    Args:
        contours: Its contours, each [P, 2], y upwards.
        shear: How far it leans to the right, in widths to a height.
        degrees: How far it is turned, counter-clockwise.
        width: Factor of its width, before it is turned.

    Returns:
        [28, 28] uint8.
    """
    turn = math.radians(degrees)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    matrix = rotation @ np.array([[width, shear], [0.0, 1.0]]) * [[1.0], [-1.0]]  # and y downwards
    moved = [contour @ matrix.T for contour in contours]
    low = np.min([contour.min(0) for contour in moved], axis=0)
    extent = np.max([contour.max(0) for contour in moved], axis=0) - low
    scale = BOX / extent.max()
    columns, rows = (max(1, math.ceil(side * scale - 1e-6)) for side in extent)
    inside = _winding([(contour - low) * scale * _FINE for contour in moved], rows * _FINE, columns * _FINE) != 0
    grey = inside.reshape(rows, _FINE, columns, _FINE).mean((1, 3))
    return centred(np.rint(grey * 255).astype(np.uint8))


def _winding(contours: Sequence[Contour], height: int, width: int) -> NDArray[np.int64]:
    """Return how often contours wind around the middle of each cell of a grid, [H, W]."""
    edges = np.concatenate([np.hstack([contour, np.roll(contour, -1, axis=0)]) for contour in contours])  # [E, 4]
    x0, y0, x1, y1 = (edges[:, [column]] for column in range(4))
    middle = np.arange(height) + 0.5
    crossed = (y0 <= middle).astype(np.int64) - (y1 <= middle)  # [E, H]: 1 downwards, -1 upwards
    edge, row = np.nonzero(crossed)
    at = x0[edge, 0] + (middle[row] - y0[edge, 0]) / (y1 - y0)[edge, 0] * (x1 - x0)[edge, 0]
    changes = np.zeros((height, width + 1), dtype=np.int64)
    np.add.at(changes, (row, np.clip(np.ceil(at - 0.5), 0, width).astype(np.int64)), crossed[edge, row])
    return changes[:, :width].cumsum(1)


def centred(ink: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture of at most 28 x 28 on black, moved by whole pixels so that its mass is in the middle.

    Args:
        ink: [H, W] with some ink.

    Returns:
        [28, 28] uint8.
    """
    mass = ink.astype(np.float64)
    places = []
    for axis, size in enumerate(ink.shape):
        mean = float(mass.sum(1 - axis) @ (np.arange(size) + 0.5)) / mass.sum()
        places.append(int(np.clip(round(_MIDDLE - mean), 0, SIDE - size)))
    top, left = places
    framed = np.zeros((SIDE, SIDE), dtype=np.uint8)
    framed[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return framed


def framed(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a grey picture, white on black, framed as MNIST's are: the ink's longer side 20 pixels, its mass central.

    Args:
        picture: [H, W] of any size with some ink.

    Returns:
        [28, 28] uint8.
    """
    from PIL import Image

    rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
    ink = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    resized = Image.fromarray(ink).resize((width, height), Image.Resampling.BILINEAR)
    return centred(np.asarray(resized, dtype=np.uint8))
