"""Digits that fonts draw."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from umbel.data.sources import glyphs


def square(low: float, high: float, hole: bool = False) -> np.ndarray:
    corners = np.array([[low, low], [high, low], [high, high], [low, high]])
    return corners[::-1] if hole else corners


def test_a_square_with_a_hole_is_filled_by_the_winding_rule() -> None:
    drawn = glyphs.render([square(0, 20), square(5, 15, hole=True)])
    expected = np.zeros((28, 28), dtype=np.uint8)
    expected[4:24, 4:24] = 255
    expected[9:19, 9:19] = 0
    # The mass of 20 pixels can be in the middle, or half a pixel after it, where MNIST's is.
    assert any(np.array_equal(drawn, np.roll(expected, shift, (0, 1))) for shift in ((0, 0), (1, 1)))
    # Turned the same way, the inner contour is ink as well: it winds around twice.
    assert int(glyphs.render([square(0, 20), square(5, 15)]).astype(int).sum()) == 400 * 255


def test_a_glyph_is_upright_and_leans_to_the_right() -> None:
    flag = np.array(
        [[0.0, 0.0], [2.0, 0.0], [2.0, 6.0], [8.0, 6.0], [8.0, 10.0], [0.0, 10.0]]
    )  # a pole, top right a flag
    drawn = glyphs.render([flag]).astype(int)
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    assert len(rows) == 20 and len(columns) == 16
    assert drawn[rows[2]].sum() == 16 * 255 and drawn[rows[-2]].sum() == 4 * 255
    pole = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 20.0], [0.0, 20.0]])
    leaning = glyphs.render([pole], shear=0.5).astype(int)
    top, bottom = (leaning[row] @ np.arange(28) / leaning[row].sum() for row in (5, 20))
    assert top - bottom == pytest.approx(7.5, abs=0.5)
    turned = glyphs.render([pole], degrees=90.0).astype(int)
    assert len(np.flatnonzero(turned.any(1))) == 2 and len(np.flatnonzero(turned.any(0))) == 20
    wide = glyphs.render([pole], width=2.0).astype(int)
    assert len(np.flatnonzero(wide.any(0))) == 4


def test_framing_puts_the_mass_into_the_middle() -> None:
    picture = np.zeros((8, 8), dtype=np.uint8)
    picture[1:7, 2:5] = 200
    drawn = glyphs.framed(picture)
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    assert len(rows) == 20 and len(columns) == 10 and int(drawn.max()) == 200
    for axis in (0, 1):
        mean = drawn.astype(float).sum(1 - axis) @ (np.arange(28) + 0.5) / drawn.sum()
        assert mean == pytest.approx(14.5, abs=0.5)
    heavy = np.zeros((20, 20), dtype=np.uint8)
    heavy[:, :2], heavy[:, 19] = 255, 1  # its mass is on the left, yet nothing may fall off
    assert (glyphs.centred(heavy) > 0).sum() == 60


def matplotlib_font(name: str) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path(), "fonts", "ttf", name)


def test_outlines_of_fonts_and_of_what_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outlines = glyphs.outlines(matplotlib_font("DejaVuSans.ttf"))
    assert outlines is not None
    assert [len(contours) for contours in outlines] == [2, 1, 1, 1, 2, 1, 2, 1, 3, 2]
    assert glyphs.outlines(matplotlib_font("cmr10.ttf")) is not None and not caplog.records
    assert glyphs.outlines(matplotlib_font("STIXSizOneSymReg.ttf")) is None  # no digits
    assert glyphs.outlines(matplotlib_font("LastResortHE-Regular.ttf")) is None  # the same sign for each
    (tmp_path / "a.ttf").write_bytes(b"no font")
    (tmp_path / "cut.ttf").write_bytes(matplotlib_font("DejaVuSans.ttf").read_bytes()[:5000])
    assert glyphs.outlines(tmp_path / "a.ttf") is None and glyphs.outlines(tmp_path / "cut.ttf") is None


FONT_DIGEST = "c3753f2ed6bc673f15846dc45addbeb3b9c872f32fb18fd53a21f1bef1ed7676"
DRAWN_DIGEST = "8e28f21e7bcf0fc1aac084b522f7a3f01791f4c37f4deb076a3eeaa99575436f"


def test_what_is_drawn_is_the_same_everywhere() -> None:
    outlines = glyphs.outlines(matplotlib_font("DejaVuSerif-Bold.ttf"))
    assert outlines is not None
    drawn = np.stack([glyphs.render(contours, 0.1, 5.0, 1.1) for contours in outlines])
    again = np.stack([glyphs.render(contours, 0.1, 5.0, 1.1) for contours in outlines])
    assert np.array_equal(drawn, again)
    # Another version of the font may differ, another machine may not.
    font = hashlib.sha256(matplotlib_font("DejaVuSerif-Bold.ttf").read_bytes()).hexdigest()
    if font != FONT_DIGEST:
        pytest.skip(f"another version of DejaVu Serif Bold: {font}")
    assert hashlib.sha256(drawn.tobytes()).hexdigest() == DRAWN_DIGEST
