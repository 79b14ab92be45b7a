"""Pictures of every depth, turn and kind of transparency, as a viewer shows them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from umbel.core.names import shown
from umbel.data.errors import DamagedDataError, DataError
from umbel.data.pictures import Form, eight_bits, read

RED, GREEN = (255, 0, 0), (0, 255, 0)


def reread(picture: Image.Image, form: str, **how: object) -> Image.Image:
    """Return a picture as a file has it."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **how)  # type: ignore[arg-type]
    return Image.open(buffer)


def pixels(picture: Image.Image, mode: str = "L", white: float = 0.0) -> list[object]:
    width, height = picture.size
    assert width == height
    array: list[object] = Form(width, mode, white).array(picture).squeeze(-1 if mode == "L" else ()).tolist()
    return array


def png(kind: int, depth: int, row: bytes, width: int, *extra: tuple[bytes, bytes]) -> Image.Image:
    """Return a PNG of one row of pixels, as no library writes it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    body = b"".join(chunk(*each) for each in extra) + chunk(b"IDAT", zlib.compress(b"\0" + row))
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")))


# --- bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_of_sixteen_bits_65535_is_white(form: str) -> None:
    values = np.array([[0, 257], [25_700, 65_535]], dtype=np.uint16)
    assert pixels(reread(Image.fromarray(values), form)) == [[0, 1], [100, 255]]
    nearest = np.array([[128, 129], [300, 65_406]], dtype=np.uint16)  # 257 of 65535 are one of 255
    assert pixels(reread(Image.fromarray(nearest), form)) == [[0, 1], [1, 254]]


def test_sixteen_bits_of_colour_and_of_the_other_byte_order() -> None:
    colour = png(2, 16, struct.pack(">3H", 65_535, 25_700, 0), 1)
    assert pixels(colour, "RGB") == [[[255, 100, 0]]]
    big = reread(Image.frombytes("I;16B", (1, 1), (25_700).to_bytes(2, "big")), "TIFF")
    assert big.mode == "I;16B" and pixels(big) == [[100]]


def test_of_floating_values_1_is_white() -> None:
    values = np.array([[0.0, 0.2], [0.5, 1.0]], dtype=np.float32)
    assert pixels(reread(Image.fromarray(values), "TIFF")) == [[0, 51], [128, 255]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.0, 255.0]], dtype=np.float32), r"floating values from 0 to 255, expected some between 0 and 1"),
        (np.array([[-0.5, 0.5]], dtype=np.float32), r"floating values from -0\.5 to 0\.5"),
        (np.array([[np.nan, 0.5]], dtype=np.float32), r"floating values from nan to nan"),
        (
            np.array([[0, 70_000]], dtype=np.int32),
            r"from 0 to 70000, expected some of which the format says",
        ),
        (np.array([[0, 200]], dtype=np.int32), r"from 0 to 200, expected some of which the format says what white is"),
    ],
)
def test_values_of_which_no_format_says_what_white_is_are_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        eight_bits(reread(Image.fromarray(values), "TIFF"))
    assert caught.value.key == "data.options.white" and "data.options.white" in caught.value.remedy


@pytest.mark.parametrize(
    ("values", "white", "expected"),
    [
        (np.array([[0, 51], [128, 255]], dtype=np.float32), 255.0, [[0, 51], [128, 255]]),
        (np.array([[0, 100], [200, 1000]], dtype=np.int32), 1000.0, [[0, 26], [51, 255]]),
        (np.array([[0, 819], [2048, 4095]], dtype=np.uint16), 4095.0, [[0, 51], [128, 255]]),  # 12 bits in 16
    ],
)
def test_white_can_be_said(values: np.ndarray, white: float, expected: list[list[int]]) -> None:
    picture = reread(Image.fromarray(values), "TIFF")
    assert pixels(picture, white=white) == expected
    with pytest.raises(DataError, match=r"expected some between 0 and 7"):
        pixels(picture, white=7.0)


# --- turned ---------------------------------------------------------------------------------------

UPRIGHT = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
# How each orientation is stored: what turns it upright again is written in its EXIF.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_turned_as_their_exif_says(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    how: dict[str, object] = {"exif": exif} | ({"lossless": True} if form == "WEBP" else {})
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    picture = eight_bits(reread(stored, form, **how)).convert("L")
    assert np.asarray(picture).tolist() == UPRIGHT.tolist()
    assert np.asarray(eight_bits(picture)).tolist() == UPRIGHT.tolist()  # not twice


def test_sixteen_bits_are_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(UPRIGHT).astype(np.uint16) * 257))
    assert np.asarray(eight_bits(reread(stored, "PNG", exif=exif))).tolist() == UPRIGHT.tolist()


def test_an_exif_that_is_none_turns_nothing() -> None:
    picture = reread(Image.new("L", (3, 2), 7), "JPEG", exif=b"Exif\0\0neither II nor MM")
    assert eight_bits(picture).size == (3, 2)


# --- transparency and colour spaces ---------------------------------------------------------------


def test_what_is_transparent_is_white() -> None:
    grey_alpha = Image.fromarray(np.array([[[9, 0], [9, 255]]] * 2, dtype=np.uint8), "LA")
    assert pixels(reread(grey_alpha, "PNG")) == [[255, 9]] * 2
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((0, 0), 0)
    assert pixels(reread(palette, "PNG"), "RGB")[0] == [list(RED), list(GREEN)]
    assert pixels(reread(palette, "PNG", transparency=0), "RGB")[0] == [[255] * 3, list(GREEN)]
    assert pixels(reread(palette, "GIF", transparency=0), "RGB")[0] == [[255] * 3, list(GREEN)]
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 51))
    assert pixels(reread(half, "PNG"), "RGB") == [[[204] * 3]]


@pytest.mark.parametrize(
    ("kind", "row", "transparent", "expected"),
    [
        (0, struct.pack(">2H", 25_700, 1000), struct.pack(">H", 1000), [100, 255]),
        (2, struct.pack(">6H", *[25_700] * 3, 1000, 2000, 3000), struct.pack(">3H", 1000, 2000, 3000), [100, 255]),
        (4, struct.pack(">4H", 25_700, 65_535, 1000, 0), b"", [100, 255]),
    ],
)
def test_what_is_transparent_in_sixteen_bits_is_white(
    kind: int, row: bytes, transparent: bytes, expected: list[int]
) -> None:
    picture = png(kind, 16, row, 2, *([(b"tRNS", transparent)] if transparent else []))
    array = Form(2, "L").array(picture)  # stretched to two rows
    assert array[:, :, 0].tolist() == [expected] * 2


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_is_red_where_it_has_neither_cyan_nor_black(form: str) -> None:
    picture = reread(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), form)
    assert picture.mode == "CMYK"
    assert pixels(picture, "RGB")[0][0] == pytest.approx(RED, abs=3)  # type: ignore[index]
    assert pixels(picture)[0][0] == pytest.approx(76, abs=3)  # type: ignore[index]


# --- files ----------------------------------------------------------------------------------------


def test_files_are_named_with_what_is_wrong(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], dtype=np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=r"deep\.tif: it has values of more than 8 bits from 0 to 255"):
        read([tmp_path / "deep.tif"], Form(1, "L"))
    Image.new("LAB", (2, 2)).save(tmp_path / "lab.tif")
    with pytest.raises(DamagedDataError, match=r"lab\.tif: cannot be read as a picture"):
        read([tmp_path / "lab.tif"], Form(1, "L"))


def test_of_several_pages_the_first_is_read_and_it_is_said(tmp_path: Path) -> None:
    pages = [Image.new("L", (2, 2), shade) for shade in (10, 200)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    pages[1].save(tmp_path / "single.png")
    images, notices = read([tmp_path / "stack.tif", tmp_path / "single.png"], Form(2, "L"))
    assert images.shape == (2, 1, 2, 2) and images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == [10, 200]
    assert notices == (f"Of 1 pictures with several pages the first is read ({tmp_path}/stack.tif).",)
    assert read([tmp_path / "single.png"], Form(2, "L"))[1] == ()


def test_names_that_are_no_utf8_can_be_printed() -> None:
    assert shown("\udce9t\udce9/ü.png") == "\\xe9t\\xe9/ü.png"
