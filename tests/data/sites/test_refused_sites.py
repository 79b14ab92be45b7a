"""What is wrong at a site is said there with site, file and key, and to others without a file's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.data.sites.makers import SIDE, counts, folder, held, site
from umbel.data.errors import DataError
from umbel.data.pictures import Form, read
from umbel.data.sites.description import MOST_CLASSES
from umbel.data.sites.errors import SiteError
from umbel.simulations.commands.main import main

BAD_NAMES = {"a tab": "wild\tcat", "an escape": "\x1b[31mcat", "without width": "cat\u200b", "long": "c" * 201}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_what_is_no_name_of_a_class_is_refused_at_the_site(name: str, tmp_path: Path) -> None:
    folder(tmp_path / "pictures", {"dog": 2})
    (tmp_path / "pictures" / "dog").rename(tmp_path / "pictures" / name)
    folder(tmp_path / "pictures", {"cat": 2})
    content = {"source": "image_folder", "path": "pictures"}
    file = site(tmp_path / "north.yaml", **content)
    with pytest.raises(SiteError) as refused:
        held(file)
    assert str(refused.value).startswith(f"site north: classes: {name[:60]!r} is no name of a class (key classes of ")
    assert str(refused.value).isprintable()
    assert refused.value.public == "site north: its data are refused (key classes of its site-data)."
    done = CliRunner().invoke(main, ["data", "check-site", str(file)])
    assert done.exit_code == 2 and "site north" in done.output and repr(name[:60]) in done.output
    assert counts(held(site(file, **content, classes={name: "dog"})), "train") == [{"cat": 2, "dog": 2}]
    assert counts(held(site(file, **content, classes={name: None})), "train") == [{"cat": 2}]


@pytest.mark.slow  # a table of 100,001 rows
def test_a_column_of_what_are_no_classes_is_refused_at_the_site(tmp_path: Path) -> None:
    labels = [str(number) for number in range(MOST_CLASSES + 1)]
    pq.write_table(pa.table({"image": [b""] * len(labels), "label": labels}), tmp_path / "rows.parquet")
    with pytest.raises(SiteError, match=r"site north: it has 100,001 classes, and 100,000 are the most") as refused:
        held(site(tmp_path / "north.yaml", source="parquet", path="rows.parquet"))
    assert refused.value.key == "columns.label"


def test_pictures_whose_white_nobody_says_name_the_key_of_the_sites_file(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        scan = Image.fromarray(np.full((SIDE, SIDE), 300, dtype=np.int32))
        scan.save(tmp_path / "pictures" / name / "scan.tif")
    content = {"source": "image_folder", "path": "pictures"}
    file = site(tmp_path / "north.yaml", **content)
    with pytest.raises(SiteError) as refused:
        held(file)
    text = str(refused.value)
    assert "scan.tif: it has values of more than 8 bits from 300 to 300" in text
    assert f"(key white of {file})." in text and "or set white to the value of white" in text
    assert "data." not in text and refused.value.key == "white"
    assert held(site(file, **content, white=600)).pool.images.unique().tolist() == [128]
    # Without a site's file it is the experiment's key.
    with pytest.raises(DataError, match=r"set data\.options\.white to the value of white"):
        read([tmp_path / "pictures" / "cat" / "scan.tif"], Form(SIDE, "L"))


def test_a_key_of_a_set_is_that_of_the_sites_file(tmp_path: Path) -> None:
    file = site(tmp_path / "north.yaml", source="digits", options={"colour": 1})
    with pytest.raises(SiteError) as refused:
        held(file)
    assert refused.value.key == "options.colour"
    assert f"(key options.colour of {file})." in str(refused.value)
    assert "(In a site's file data.options.colour is options.colour.)" in str(refused.value)


@pytest.mark.parametrize(
    ("missing", "public"),
    [(True, "site north: its data are not there."), (False, "site north: some of it cannot be read.")],
    ids=["gone", "unreadable"],
)
def test_a_picture_that_the_system_does_not_open_names_the_site(missing: bool, public: str, tmp_path: Path) -> None:
    if not missing:
        (tmp_path / "mrs-smith.png").mkdir()
    rows = {"image": [{"bytes": None, "path": "mrs-smith.png"}] * 2, "label": ["cat", "dog"]}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows["image"], kind), "label": rows["label"]})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(SiteError, match=r"site north: .*mrs-smith\.png: ") as refused:
        held(site(tmp_path / "north.yaml", source="parquet", path="rows.parquet"))
    assert refused.value.public == public


def test_a_folder_that_the_system_does_not_list_names_the_site(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"site north: .*File name too long") as refused:
        held(site(tmp_path / "north.yaml", source="image_folder", path="n" * 300))
    assert refused.value.public == "site north: some of it cannot be read."
