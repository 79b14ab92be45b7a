"""What lies in folders of pictures and is none of them: what is left out, what is refused, and what is said."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from umbel import data
from umbel.data.config import DataConfig
from umbel.data.errors import DataError
from umbel.data.pictures import Form
from umbel.data.sets.papers.folders import read_domains
from umbel.data.sources import picture_files


def pictures(folder: Path, count: int = 10, shade: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("L", (4, 4), shade + number).save(folder / f"{number}.png")
    return folder


def load(root: Path, **options: object) -> data.DataSet:
    return data.load(DataConfig(name="image_folder", path=str(root), options={"image_size": 4} | options), 0)


def counts(loaded: data.DataSet) -> list[int]:
    return torch.bincount(torch.cat([loaded.train.labels, loaded.test.labels])).tolist()


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two classes of ten pictures."""
    pictures(tmp_path / "cat")
    pictures(tmp_path / "dog", shade=100)
    return tmp_path


# --- what is left out -----------------------------------------------------------------------------


def test_two_classes_say_nothing(two: Path) -> None:
    (two / "README.md").write_text("beside the classes")
    loaded = load(two)
    assert loaded.class_names == ("cat", "dog") and counts(loaded) == [10, 10] and loaded.notices == ()


def test_hidden_folders_and_files_are_no_classes_and_no_pictures(two: Path) -> None:
    pictures(two / ".ipynb_checkpoints")
    pictures(two / ".Trash-1000" / "files")
    pictures(two / "cat" / ".thumbnails")
    (two / "cat" / "._0.png").write_bytes(b"of another system")
    loaded = load(two)
    assert loaded.class_names == ("cat", "dog") and counts(loaded) == [10, 10]
    (notice,) = loaded.notices
    assert "left out 4 hidden files or folders: .Trash-1000, .ipynb_checkpoints, cat/._0.png, ..." in notice


def test_a_class_whose_pictures_lie_deeper_is_named(two: Path) -> None:
    pictures(two / "emu" / "2024", count=5)
    pictures(two / "cat" / "more", count=2)
    (two / "owl").mkdir()
    loaded = load(two)
    assert loaded.class_names == ("cat", "dog") and counts(loaded) == [10, 10]
    deeper, bare = loaded.notices
    assert (
        "left out 7 pictures that lie deeper than <class>/*: cat/more/0.png, cat/more/1.png, emu/2024/0.png" in deeper
    )
    assert "left out 2 folders without a picture at <class>/*, which are no classes: emu, owl." in bare


def test_a_class_of_another_suffix_is_named(two: Path) -> None:
    (two / "emu").mkdir()
    for number in range(3):
        np.save(two / "emu" / f"{number}.npy", np.zeros((4, 4)))
    loaded = load(two)
    other, bare = loaded.notices
    assert "left out 3 files whose suffix is none of" in other and "emu/0.npy" in other and ".png" in other
    assert bare.endswith("which are no classes: emu.")


def test_pictures_beside_the_classes_are_counted(two: Path) -> None:
    Image.new("L", (4, 4)).save(two / "preview.png")
    (notice,) = load(two).notices
    assert "left out 1 pictures that lie above <class>/*: preview.png." in notice


def test_suffixes_of_pictures(two: Path) -> None:
    for number, suffix in enumerate((".JPG", ".jfif", ".jpe", ".bmp", ".tif", ".pbm", ".webp")):
        kind = {".jfif": "JPEG", ".jpe": "JPEG", ".pbm": "PPM"}.get(suffix)
        Image.new("L", (4, 4)).convert("1" if suffix == ".pbm" else "L").save(two / "cat" / f"x{number}{suffix}", kind)
    loaded = load(two)
    assert counts(loaded) == [17, 10] and loaded.notices == ()


def test_links_to_classes_are_followed_and_circles_are_not(two: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = pictures(tmp_path_factory.mktemp("elsewhere") / "emu", shade=50)
    (two / "emu").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(two)
    loaded = load(two)
    assert loaded.class_names == ("cat", "dog", "emu") and counts(loaded) == [10, 10, 10]


def test_a_class_without_training_pictures_is_said(tmp_path: Path) -> None:
    for split, classes in (("train", ("a", "b", "c")), ("test", ("a", "b", "d"))):
        for name in classes:
            pictures(tmp_path / split / name, count=2)
    loaded = load(tmp_path)
    assert loaded.class_names == ("a", "b", "c", "d")
    assert loaded.notices == (
        "image_folder: 1 of 4 classes have no example in train: d.",
        "image_folder: 1 of 4 classes have no example in test: c.",
    )


# --- splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "Valid"), ("train", "validation")])
def test_val_is_the_test_set_where_there_is_no_test(tmp_path: Path, names: tuple[str, str]) -> None:
    for split, count in zip(names, (6, 3), strict=True):
        pictures(tmp_path / split / "cat", count)
        pictures(tmp_path / split / "dog", count)
    loaded = load(tmp_path)
    assert (len(loaded.train), len(loaded.test), loaded.class_names) == (12, 6, ("cat", "dog"))
    (notice,) = loaded.notices
    assert notice.endswith(f"so that {names[1]} is the test set.")


def test_what_lies_beside_the_splits_is_named(tmp_path: Path) -> None:
    for split in ("train", "test", "train_extra", "masks"):
        pictures(tmp_path / split / "cat", 3)
        pictures(tmp_path / split / "dog", 3)
    loaded = load(tmp_path, test_fraction=0.5)
    assert (len(loaded.train), len(loaded.test)) == (6, 6)
    beside, fraction = loaded.notices
    assert beside.endswith("left out 2 folders beside those of splits: masks, train_extra.")
    assert fraction.startswith("data.options.test_fraction=0.5 has no part here")


def test_val_beside_test_is_left_out(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 4), ("Testing", 3)):
        pictures(tmp_path / split / "cat", count)
        pictures(tmp_path / split / "dog", count)
    loaded = load(tmp_path)
    assert (len(loaded.train), len(loaded.test)) == (12, 6)
    (notice,) = loaded.notices
    assert "left out the folder val; the server validates with a part of train" in notice


def test_splits_are_no_classes_and_no_domains(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pictures(tmp_path / "flat" / split)
        for name in ("cat", "dog"):
            pictures(tmp_path / "deep" / split / name)
    with pytest.raises(data.DataError, match=r"expected classes, found the folders of splits test, train") as caught:
        load(tmp_path / "flat")
    assert caught.value.key == "data.path" and "train/<class>/*" in caught.value.remedy
    with pytest.raises(data.DataError, match=r"expected domains, found the folders of splits test, train") as caught:
        load(tmp_path / "deep", domains=True)
    assert caught.value.remedy == "Remove data.options.domains."


def test_train_alone_is_answered_with_its_folder(tmp_path: Path) -> None:
    pictures(tmp_path / "train" / "cat")
    pictures(tmp_path / "train" / "dog")
    pictures(tmp_path / "test")  # without labels
    with pytest.raises(data.DataError) as caught:
        load(tmp_path)
    assert f"data.path={tmp_path}/train" in caught.value.remedy
    assert counts(load(tmp_path / "train")) == [10, 10]


def test_train_is_a_class_among_others(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        pictures(tmp_path / name)
    assert load(tmp_path).class_names == ("bus", "train")


# --- fewer than two classes -----------------------------------------------------------------------


def test_one_class_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "only")
    with pytest.raises(
        data.DataError, match=r"of two classes or more as <class>/\*, found one class \(only\)"
    ) as caught:
        load(tmp_path)
    assert caught.value.key == "data.path" and "domains" not in caught.value.remedy
    pictures(tmp_path / "emu" / "2024")
    with pytest.raises(
        data.DataError, match=r"found one class \(only\)\. .*lie deeper than <class>/\*: emu/2024/0"
    ) as caught:
        load(tmp_path)
    assert "data.options.domains=true" in caught.value.remedy


def test_one_class_to_train_on_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "train" / "cat")
    pictures(tmp_path / "test" / "cat")
    pictures(tmp_path / "test" / "dog")
    with pytest.raises(data.DataError, match=r"train: expected pictures of two classes or more .* one class \(cat\)"):
        load(tmp_path)


def test_domains_of_a_paper_leave_the_same_out(tmp_path: Path) -> None:
    for domain in ("art", "photo"):
        for name in ("cat", "dog"):
            pictures(tmp_path / domain / name)
    pictures(tmp_path / ".cache" / "cat")
    pictures(tmp_path / "photo" / "emu" / "2024")
    loaded = read_domains(tmp_path, Form(4, "L"))
    assert loaded.domain_names == ("art", "photo") and loaded.class_names == ("cat", "dog")
    assert [notice.split(": ", 1)[1].split(":")[0] for notice in loaded.notices] == [
        "left out 1 hidden files or folders",
        "left out 10 pictures that lie deeper than <domain>/<class>/*",
        "left out 1 folders without a picture at <domain>/<class>/*, which are no classes",
    ]
    with pytest.raises(data.DataError, match=r"as <domain>/<class>/\*, found one class \(2024\)"):
        read_domains(tmp_path / "photo", Form(4, "L"))


# --- names ----------------------------------------------------------------------------------------


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that another account can look into."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        yield Path(place)


@contextmanager
def as_another() -> Iterator[None]:
    """Be an account to which permissions apply."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_folder_that_cannot_be_opened_is_refused(open_to_all: Path, depth: int) -> None:
    """Its pictures would be missing without a word."""
    closed = open_to_all / Path(*("cat", "more")[:depth])
    closed.mkdir(parents=True)
    pictures(open_to_all / "dog")
    closed.chmod(0)
    ways = (lambda: picture_files.find(open_to_all, 2, "<class>/*"), lambda: picture_files.find_anywhere(open_to_all))
    for look in ways:
        with as_another(), pytest.raises(DataError, match=f"The folder .*{closed.name} cannot be opened: Permission"):
            look()
    closed.chmod(0o755)


def test_names_that_are_no_utf8(two: Path) -> None:
    place = two / os.fsdecode(b"\xe9t\xe9")
    place.mkdir()
    for number in range(20):
        with (place / os.fsdecode(b"\xe9_%d.png" % number)).open("wb") as file:
            Image.new("L", (4, 4), 200).save(file, "PNG")
    loaded = load(two)
    assert loaded.class_names == ("cat", "dog", "\\xe9t\\xe9") and counts(loaded) == [10, 10, 20]
    assert torch.equal(load(two).test.images, loaded.test.images)
    (place / "bad.png").write_bytes(b"no picture")
    with pytest.raises(data.DamagedDataError, match=r"\\xe9t\\xe9/bad\.png: cannot be read"):
        load(two)


# --- two ways to the same pictures ----------------------------------------------------------------


def test_turned_and_deep_pictures_are_the_same_by_folder_and_by_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the pictures are stored turned, a third of them in 16 bits: the two loaders see what a viewer shows."""
    upright = np.arange(16, dtype=np.uint8).reshape(4, 4) * 10
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("cat", "dog"):
        (tmp_path / "set" / "train" / name).mkdir(parents=True)
        (tmp_path / "set" / "test" / name).mkdir(parents=True)
        for number in range(6):
            values = np.rot90(upright) if number % 2 else upright
            wide = values.astype(np.uint16) * 257 if number % 3 == 0 else values
            path = tmp_path / "set" / ("train" if number < 4 else "test") / name / f"{number}.png"
            Image.fromarray(np.ascontiguousarray(wide)).save(path, exif=exif if number % 2 else None)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = load(tmp_path / "set", in_channels=1)
    hub = data.load(
        DataConfig(name=f"hub:{tmp_path}/set", options={"cache_dir": str(tmp_path / "cache"), "in_channels": 1}), 0
    )
    for loaded in (folder, hub):
        assert loaded.class_names == ("cat", "dog") and len(loaded.train) == 8 and len(loaded.test) == 4
        for image in torch.cat([loaded.train.images, loaded.test.images]):
            assert image[0].tolist() == upright.tolist()
