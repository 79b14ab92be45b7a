"""What a site changes in its files is read again in the same process, and nothing else is."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.data.sites.makers import NOTHING, SIDE, counts, folder, held, picture, site
from umbel.conf.federation import federation
from umbel.conf.load import load
from umbel.data.sites.errors import SiteError
from umbel.data.sites.watched import Watched


def as_table(root: Path) -> Path:
    folder(root / "scans", {"cat": 3, "dog": 2})
    rows = [(f"scans/cat/{n:03d}.png", "cat") for n in range(3)] + [(f"scans/dog/{n:03d}.png", "dog") for n in range(2)]
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(root / "rows.csv", index=False)
    return root / "rows.csv"


def test_a_mended_data_file_is_read_again(tmp_path: Path) -> None:
    folder(tmp_path / "pictures", {"ant": 2, "cat": 3})
    content = {"source": "image_folder", "path": "pictures"}
    assert counts(held(site(tmp_path / "north.yaml", **content)), "train") == [{"ant": 2, "cat": 3}]
    mended = held(site(tmp_path / "north.yaml", **content, classes={"ant": None}))
    assert counts(mended, "train") == [{"cat": 3}]
    (tmp_path / "north.yaml").unlink()
    with pytest.raises(ValueError, match=r"north.yaml cannot be read"):
        held(tmp_path / "north.yaml")


def test_pictures_that_came_went_or_were_mended_are_read_again(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures", {"cat": 3, "dog": 2})
    file = site(tmp_path / "north.yaml", source="image_folder", path="pictures")
    first = held(file)
    assert held(file) is first
    picture("zebra", 7).save(root / "cat" / "003.png")
    assert counts(held(file), "train") == [{"cat": 4, "dog": 2}]
    (root / "cat" / "003.png").unlink()
    picture("zebra", 7).save(root / "cat" / "000.png")
    mended = held(file)
    assert counts(mended, "train") == counts(first, "train")
    same = (mended.pool.images == first.pool.images).flatten(1).all(1)
    assert same.tolist() == [False, True, True, True, True]


def test_a_table_and_the_pictures_that_it_names_are_watched(tmp_path: Path) -> None:
    file = site(tmp_path / "north.yaml", source="csv", path=str(as_table(tmp_path)))
    first = held(file)
    picture("zebra", 7).save(tmp_path / "scans" / "dog" / "001.png")
    assert not torch.equal(held(file).pool.images, first.pool.images)
    table = pd.read_csv(tmp_path / "rows.csv")
    table.iloc[:4].to_csv(tmp_path / "rows.csv", index=False)
    assert counts(held(file), "train") == [{"cat": 3, "dog": 1}]


def test_a_damaged_picture_that_was_mended_is_no_longer_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures", {"cat": 3, "dog": 2})
    (root / "cat" / "000.png").write_bytes(b"no picture")
    file = site(tmp_path / "north.yaml", source="image_folder", path="pictures")
    with pytest.raises(SiteError, match="1 of 5 pictures cannot be read"):
        held(file)
    picture("cat", 0).save(root / "cat" / "000.png")
    assert counts(held(file), "train") == [{"cat": 3, "dog": 2}]


def test_a_federation_of_sites_in_one_process_is_of_their_files_as_they_are(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures", {"cat": 3, "dog": 2})
    file = site(tmp_path / "north.yaml", source="image_folder", path="pictures")
    asked = ["data.name=sites", "data.num_clients=1", f"data.sites=[{file}]", "data.channels=3", "data.classes=union"]
    experiment = load("digits", [*NOTHING, *asked, f"data.image_size={SIDE}", "data.client_test=0"])
    before = federation(experiment)
    picture("zebra", 7).save(root / "cat" / "000.png")
    after = federation(experiment)
    assert after.mean != before.mean and after.num_train.tolist() == before.num_train.tolist() == [5]


def test_links_in_a_circle_are_followed_once(tmp_path: Path) -> None:
    folder(tmp_path / "a" / "b", {"cat": 1})
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a", target_is_directory=True)
    seen = Watched.now([tmp_path / "a", tmp_path / "nowhere"])
    assert seen.unchanged
    os.utime(tmp_path / "a" / "b" / "cat" / "000.png", ns=(1, 1))
    assert not seen.unchanged
    again = Watched.now([tmp_path / "a", tmp_path / "nowhere"])
    (tmp_path / "nowhere").touch()
    assert not again.unchanged
