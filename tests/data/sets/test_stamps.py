"""The stamps of Tux Paint."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.data.sets.debian_art import config, installed, noise, titles
from umbel import data
from umbel.data import assemble
from umbel.data.config import DataConfig

pytestmark = pytest.mark.usefixtures("bare_machine")

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{0}pt" height="{0}pt"><rect width="100%" height="100%" '
    'fill="#0000ff"/></svg>'
)


@pytest.fixture
def stamps_root(tmp_path: Path) -> Path:
    root = tmp_path / "stamps-unpacked"
    folder = root / "usr/share/tuxpaint/stamps"
    for number in range(24):
        place = folder / ("animals/birds" if number % 2 else "food") / f"stamp{number:02}.png"
        noise(place, number)
        place.with_suffix(".txt").write_text(f"This is stamp {number}.\nde.utf8=Stempel {number}.\n")
    noise(folder / "food/zz_again.png", 90)
    (folder / "food/zz_again.txt").write_text("this is  stamp 4\n")
    noise(folder / "food/stamp02_mirror.png", 91)  # mirrored ones have no caption
    (folder / "food/stamp02.svg").write_text(SVG.format(40))  # there in both forms
    (folder / "food/gift.txt").write_text("A gift.\n")  # and one without a picture
    return root


def stamp_config(root: Path, **options: object) -> DataConfig:
    return config(root, "stamps", **{"vectors": False} | options)


def test_stamps(stamps_root: Path) -> None:
    loaded = data.load(stamp_config(stamps_root), 0)
    train, test = titles(loaded)
    assert sorted(train + test) == sorted(f"This is stamp {number}." for number in range(24))
    assert test and loaded.class_names == ("animals", "food") and loaded.licence == "GPL-2"
    for part in (loaded.train, loaded.test):
        assert part.texts is not None
        numbers = [int(text.split()[-1][:-1]) for text in part.texts]
        assert part.labels.tolist() == [(number + 1) % 2 for number in numbers]
    everything = data.load(stamp_config(stamps_root, one_per_caption=False), 5)
    train, test = titles(everything)
    assert len(train) + len(test) == 25
    sides = [sum(assemble.plain(text) == "this is stamp 4" for text in side) for side in (train, test)]
    assert sorted(sides) == [0, 2]


@pytest.mark.skipif(find_spec("resvg_py") is None, reason="pip install resvg-py")
def test_stamps_in_svg(stamps_root: Path) -> None:
    folder = stamps_root / "usr/share/tuxpaint/stamps/food"
    (folder / "only.svg").write_text(SVG.format(30))
    (folder / "only.txt").write_text("Only in vectors.\n")
    train, test = titles(data.load(stamp_config(stamps_root), 0))
    assert "Only in vectors." not in train + test
    loaded = data.load(stamp_config(stamps_root, vectors=True), 0)
    train, test = titles(loaded)
    assert len(train) + len(test) == 25
    part = loaded.train if "Only in vectors." in train else loaded.test
    row = (train if part is loaded.train else test).index("Only in vectors.")
    assert part.images[row].amin((1, 2)).tolist() == [0, 0, 255]
    part = loaded.train if "This is stamp 2." in train else loaded.test
    row = (train if part is loaded.train else test).index("This is stamp 2.")
    assert part.images[row].unique().numel() > 20  # not the blue square that lies beside it
    (folder / "only.svg").write_text("<svg")
    with pytest.raises(data.DamagedDataError, match=r"only\.svg"):
        data.load(stamp_config(stamps_root, vectors=True), 0)


def test_stamps_without_a_renderer(stamps_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    data.check(stamp_config(stamps_root))
    with pytest.raises(data.MissingDataError, match=r"\n    pip install resvg-py\n.*data\.options\.vectors=false"):
        data.check(stamp_config(stamps_root, vectors=True))


@pytest.mark.parametrize("content", [b"", b"de.utf8=Ein Frosch.\n", b"\xff\xfe"])
def test_damaged_captions_are_named(stamps_root: Path, content: bytes) -> None:
    damaged = stamps_root / "usr/share/tuxpaint/stamps/food/stamp04.txt"
    damaged.write_bytes(content)
    with pytest.raises(data.DamagedDataError, match=r"--reinstall --no-install-recommends tuxpaint") as caught:
        data.load(stamp_config(stamps_root), 0)
    assert str(damaged) in str(caught.value)


def test_stamps_without_captions_or_package(stamps_root: Path) -> None:
    for file in stamps_root.rglob("*.txt"):
        file.unlink()
    with pytest.raises(data.DataError, match=r"expected pictures with captions beside them"):
        data.load(stamp_config(stamps_root), 0)
    with pytest.raises(data.MissingDataError, match=r"\n    sudo apt-get install .*tuxpaint-stamps-default\n"):
        data.check(DataConfig(name="stamps"))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_installed_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = data.load(installed("stamps", monkeypatch), 0)
    assert loaded.num_classes == 16 and len(loaded.train) + len(loaded.test) > 700
    assert loaded.train.images.shape[1:] == (3, 64, 64)
