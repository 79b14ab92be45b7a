"""Openclipart and its pairs."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.data.sets.debian_art import config, equal, installed, noise, titles
from umbel import data
from umbel.data import assemble
from umbel.data.config import DataConfig
from umbel.data.sets import artwork, clip_art, openclipart_pairs

pytestmark = pytest.mark.usefixtures("bare_machine")

FREE = "http://web.resource.org/cc/PublicDomain"


def drawing(root: Path, place: str, title: str, keywords: list[str], licence: str = FREE) -> Path:
    """Write the SVG of a drawing; its picture is written apart."""
    path = root / "usr/share/openclipart/svg" / f"{place}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    bag = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:cc="http://web.resource.org/cc/" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><metadata>'
        f"<rdf:RDF><cc:Work><dc:title>{title}</dc:title><dc:subject><rdf:Bag>{bag}</rdf:Bag></dc:subject>"
        "<dc:creator><cc:Agent><dc:title>Somebody</dc:title></cc:Agent></dc:creator>"
        f'<cc:license rdf:resource="{licence}"/>'
        "</cc:Work></rdf:RDF></metadata></svg>"
    )
    return root / "usr/share/openclipart/png" / f"{place}.png"


@pytest.fixture
def clip_art_root(tmp_path: Path) -> Path:
    """The two packages, unpacked: 30 animals, 20 signs, 6 foods of one series, one unsorted, and what is left out."""
    root = tmp_path / "unpacked"
    for number in range(30):
        words = ["", "hash", "HASH(0x858df04)", "animals", "mammal", f"beast {number % 3}"]
        noise(drawing(root, f"animals/mammals/beast{number:02}", f"Beast  No {number}", words), number)
    for number in range(20):
        words = ["signs_and_symbols", "road sign", "traffic"]
        noise(drawing(root, f"signs_and_symbols/sign{number:02}", f"Symbol of danger {number}", words), 100 + number)
    for number in range(6):
        noise(drawing(root, f"food/menu{number}", "Menu Collection", ["food", f"dish {number // 2}"]), 200 + number)
    noise(drawing(root, "unsorted/thing", "Thing", ["unsorted"]), 300)
    copy = drawing(root, "food/beast00", "Beast No 0", [])
    copy.symlink_to("../animals/mammals/beast00.png")
    again = drawing(root, "food/again", "Beast under another title", [])  # the same pixels in another file
    with Image.open(root / "usr/share/openclipart/png/animals/mammals/beast07.png") as picture:
        picture.convert("RGBA").save(again)
    noise(drawing(root, "food/gpl", "Penguin", [], "http://creativecommons.org/licenses/GPL/2.0/"), 400)
    noise(drawing(root, "food/nothing", "Nobody's", [], ""), 401)
    blank = drawing(root, "food/blank", "Snow", [])
    Image.new("RGBA", (9, 9), (255, 255, 255, 0)).save(blank)
    huge = drawing(root, "food/huge", "Huge", [])
    huge.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 20_000, 20_000))
    return root


# --- openclipart ----------------------------------------------------------------------------------


def test_what_is_left_out_is_counted(clip_art_root: Path) -> None:
    drawings = clip_art.load(config(clip_art_root), 8)
    assert len(drawings.titles) == len(drawings.images) == 30 + 20 + 6 + 1
    entry = next((Path(os.environ["UMBEL_CACHE"]) / "sets").glob("openclipart-*/manifest.json"))
    assert '"not_free": 2' in entry.read_text() and '"too_large": 1' in entry.read_text()
    assert '"copies": 2' in entry.read_text() and '"blank": 1' in entry.read_text()
    assert drawings.names[0] == "Beast No 0" and drawings.titles[0] == "beast no 0"
    assert drawings.keywords[0] == ["animals", "beast 0", "mammal"]


def test_a_title_gives_one_picture_or_is_one_concept(clip_art_root: Path) -> None:
    loaded = data.load(config(clip_art_root), 0)
    train, test = titles(loaded)
    assert len(train) + len(test) == 51 and not {*train} & {*test} and test
    assert set(loaded.class_names) <= {"animals", "food", "signs_and_symbols"}
    assert loaded.train.images.shape[1:] == (3, 8, 8) and loaded.train.images.dtype == torch.uint8
    whole = data.load(config(clip_art_root, one_per_title=False, unsorted=True), 0)
    train, test = titles(whole)
    both = train + test
    assert len(both) == 57 and both.count("Menu Collection") == 6 and "Thing" in both
    assert not {*train} & {*test}
    assert whole.train.concepts is not None and len(whole.train.concepts.unique()) == len({*train})


def test_small_classes_are_dropped_by_their_training_examples(clip_art_root: Path) -> None:
    whole = data.load(config(clip_art_root, one_per_title=False), 0)
    counts = dict(zip(whole.class_names, torch.bincount(whole.train.labels).tolist(), strict=True))
    loaded = data.load(config(clip_art_root, one_per_title=False, min_examples=counts["signs_and_symbols"]), 0)
    assert loaded.class_names == ("animals", "signs_and_symbols")
    assert torch.bincount(loaded.train.labels).tolist() == [counts["animals"], counts["signs_and_symbols"]]
    with pytest.raises(data.DataError, match=r"no example is left for training.*data\.options\.min_examples=1000"):
        data.load(config(clip_art_root, min_examples=1000), 0)


def test_the_second_time_no_picture_is_read(
    clip_art_root: Path, bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = data.load(config(clip_art_root), 0)

    def refuse(*_: object) -> None:
        raise AssertionError("a picture was read")

    with monkeypatch.context() as patched:
        patched.setattr(artwork, "read", refuse)
        assert equal(data.load(config(clip_art_root), 7), first)  # and the seed changes nothing
        # Another package is another entry.
        noise(clip_art_root / "usr/share/openclipart/png/animals/mammals/beast03.png", 3, (30, 30))
        with pytest.raises(AssertionError, match="a picture was read"):
            data.load(config(clip_art_root), 0)
    shutil.rmtree(bare_machine)
    noise(clip_art_root / "usr/share/openclipart/png/animals/mammals/beast03.png", 3)
    assert equal(data.load(config(clip_art_root), 0), first)


@pytest.mark.parametrize("inside", [".", "usr", "usr/share", "usr/share/openclipart"])
def test_data_path_may_be_any_folder_above(clip_art_root: Path, inside: str) -> None:
    data.check(config(clip_art_root / inside))


@pytest.mark.parametrize("name", ["openclipart", "openclipart_pairs"])
def test_missing_packages_name_the_commands(tmp_path: Path, name: str) -> None:
    for given in (DataConfig(name=name), DataConfig(name=name, path=str(tmp_path))):
        with pytest.raises(data.MissingDataError) as caught:
            data.check(given)
        message = str(caught.value)
        assert "\n    sudo apt-get install --no-install-recommends openclipart-png openclipart-svg\n" in message
        assert f"\n    umbel data fetch {name}\n" in message and "set data.path to it" in message
    assert str(tmp_path) in message


def test_half_of_the_packages_is_not_enough(clip_art_root: Path) -> None:
    shutil.rmtree(clip_art_root / "usr/share/openclipart/svg")
    with pytest.raises(data.MissingDataError, match="Debian package openclipart-svg"):
        data.check(config(clip_art_root))


@pytest.mark.parametrize("kind", ["picture", "cut picture", "drawing", "no drawing", "link"])
def test_damaged_files_are_named(clip_art_root: Path, kind: str, bare_machine: Path) -> None:
    base = clip_art_root / "usr/share/openclipart"
    damaged = base / "png/animals/mammals/beast05.png"
    match kind:
        case "picture":
            damaged.write_bytes(b"<html>")
        case "cut picture":
            damaged.write_bytes(damaged.read_bytes()[:-60])
        case "drawing" | "no drawing":
            damaged = base / "svg/animals/mammals/beast05.svg"
            if kind == "drawing":
                damaged.write_text(damaged.read_text()[:-9])
            else:
                damaged.unlink()
        case "link":
            damaged.unlink()
            damaged.symlink_to("gone.png")
    with pytest.raises(data.DamagedDataError, match="again") as caught:
        data.load(config(clip_art_root), 0)
    assert str(damaged) in str(caught.value)
    assert not list(bare_machine.glob("sets/openclipart*/*"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("openclipart", {"image_size": 0}, r"data\.options\.image_size must be a whole number"),
        ("openclipart", {"min_examples": 0}, r"data\.options\.min_examples must be a whole number of at least 1"),
        ("openclipart", {"unsorted": 1}, r"data\.options\.unsorted must be true or false, found 1"),
        ("openclipart_pairs", {"folder_words": "no"}, r"data\.options\.folder_words must be true or false"),
        ("stamps", {"vectors": None}, r"data\.options\.vectors must be true or false, found None"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(data.DataError, match=message):
        data.check(DataConfig(name=name, options=options))


def test_a_drawing_keeps_its_shape_and_lies_on_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 10, 10))
    picture.save(tmp_path / "a.png")
    image = artwork.read(tmp_path / "a.png", 8)
    assert (image[:, :2] == 255).all() and (image[:, 6:] == 255).all()  # above and below
    assert image[:, 3, 0].tolist() == [255, 0, 0] and image[:, 3, 7].tolist() == [255, 255, 255]
    assert artwork.pixels(tmp_path / "a.png") == 200 and artwork.pixels(tmp_path / "none.png") == 0


# --- openclipart_pairs ----------------------------------------------------------------------------


def test_no_caption_is_there_twice(clip_art_root: Path) -> None:
    loaded = data.load(config(clip_art_root, "openclipart_pairs"), 0)
    train, test = titles(loaded)
    captions = [assemble.plain(text) for text in train + test]
    assert len(captions) == len(set(captions)) == 30 + 20 + 3 and train and test
    # No title on two sides either: the three dishes are together.
    sides = [sum("Menu Collection" in text for text in side) for side in (train, test)]
    assert sorted(sides) == [0, 3]
    assert "Beast No 4: beast 1, mammal" in train + test
    assert equal(data.load(config(clip_art_root, "openclipart_pairs"), 3), loaded)


def test_words_of_the_folder_are_dropped_unless_asked_for(clip_art_root: Path) -> None:
    train, test = titles(data.load(config(clip_art_root, "openclipart_pairs"), 0))
    assert not any(stem in text.casefold() for text in train + test for stem in ("animal", "sign", "symbol", "food"))
    assert "of danger 3: road, traffic" in train + test
    train, test = titles(data.load(config(clip_art_root, "openclipart_pairs", folder_words=True), 0))
    assert "Symbol of danger 3: road sign, signs and symbols, traffic" in train + test


def test_captions() -> None:
    caption = openclipart_pairs.caption
    assert caption("Buildings (old)", ["building", "house_roof"], "buildings") == "old: house roof"
    assert caption("Cat", ["cat", "animals"], "animals") == "Cat"
    assert caption("Food", ["food"], "food") == ""
    assert caption("Pear-shaped sand", [], "shapes") == "Pear sand"
    assert caption("Pear-shaped sand", [], "") == "Pear-shaped sand"


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_the_installed_openclipart(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = data.load(installed("openclipart", monkeypatch), 0)
    train, test = titles(loaded)
    assert not {*map(assemble.plain, train)} & {*map(assemble.plain, test)}
    assert len(train) + len(test) > 2500 and loaded.num_classes >= 15
    sizes = torch.bincount(loaded.train.labels)
    assert int(sizes.max()) > 20 * int(sizes.min())
    pairs = data.load(installed("openclipart_pairs", monkeypatch), 0)
    train, test = titles(pairs)
    captions = [assemble.plain(text) for text in train + test]
    assert len(captions) == len(set(captions)) > 2500
