"""What a site holds by its data file, whatever it is read from: classes, clients, splits, and what is left out."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.data.sites.makers import NOTHING, SIDE, counts, folder, held, picture, site
from umbel.conf.federation import OwnSite, federation, listed
from umbel.conf.load import load
from umbel.conf.own_data import read_site
from umbel.core.refusal import Refusal
from umbel.data.holdout import TEST, TRAIN, VALIDATION
from umbel.data.sites.errors import SiteError
from umbel.data.sites.sums import Sums

COUNTS = {"cat": 6, "dog": 4, "zebra": 2}


def as_parquet(root: Path) -> Path:
    rows: dict[str, list[Any]] = {"image": [], "label": []}
    for name, count in COUNTS.items():
        for number in range(count):
            content = io.BytesIO()
            picture(name, number).save(content, "PNG")
            rows["image"].append({"bytes": content.getvalue(), "path": None})
            rows["label"].append(name)
    (root / "table").mkdir()
    pq.write_table(pa.table(rows), root / "table" / "train-0.parquet")
    return root / "table"


def as_arrow(root: Path) -> Path:
    table = pq.read_table(as_parquet(root) / "train-0.parquet")
    with pa.OSFile(str(root / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return root / "rows.arrow"


def as_csv(root: Path) -> Path:
    folder(root / "scans", COUNTS)
    rows = [(f"scans/{name}/{n:03d}.png", name) for name, count in COUNTS.items() for n in range(count)]
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(root / "rows.csv", index=False)
    return root / "rows.csv"


@pytest.mark.parametrize(
    ("source", "make"),
    [
        ("image_folder", lambda root: folder(root / "pictures", COUNTS)),
        ("parquet", as_parquet),
        ("arrow", as_arrow),
        ("csv", as_csv),
    ],
)
def test_every_source_gives_the_same_pictures(source: str, make: Any, tmp_path: Path) -> None:
    made = held(site(tmp_path / "north.yaml", source=source, path=str(make(tmp_path))))
    assert counts(made, "train") == [COUNTS]
    expected = [np.asarray(picture(name, n)) for name, count in COUNTS.items() for n in range(count)]
    assert torch.equal(made.pool.images, torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))
    assert [made.class_names[label] for label in made.pool.labels[:7].tolist()] == ["cat"] * 6 + ["dog"]


def test_idx_files_have_splits_and_numbers_for_names(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("t10k", 2)):
        pixels = np.arange(count * SIDE * SIDE, dtype=np.uint8)
        header = bytes([0, 0, 8, 3]) + struct.pack(">3I", count, SIDE, SIDE)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
        labels = bytes([0, 0, 8, 1]) + struct.pack(">I", count) + bytes([1, 0, 1, 1, 0][:count])
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    file = site(tmp_path / "north.yaml", source="idx", path=".", classes={"0": "cat", "1": "dog"})
    made = held(file, "data.channels=1")
    assert counts(made, "train", "test") == [{"cat": 2, "dog": 3}, {"cat": 1, "dog": 1}]
    assert made.pool.images.shape == (7, 1, SIDE, SIDE)
    assert made.pool.images.flatten()[:70].tolist() == list(range(70))


def test_any_set_or_function_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_arrays.py").write_text(
        "import torch\nfrom umbel.data import DataSet, Examples\n\n\n"
        "def load(config, seed):\n"
        "    images = torch.arange(6 * 3 * 64, dtype=torch.uint8).view(6, 3, 8, 8)\n"
        "    labels = torch.tensor([0, 1, 0, 1, 0, 1])\n"
        "    parts = Examples(images[:4], labels[:4]), Examples(images[4:], labels[4:])\n"
        "    return DataSet('own', *parts, ('cat', 'dog'), (), (.5,) * 3, (.25,) * 3, '')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = held(site(tmp_path / "north.yaml", source="own_arrays:load"))
    assert counts(made, "train", "test") == [{"cat": 2, "dog": 2}, {"cat": 1, "dog": 1}]
    digits = held(site(tmp_path / "south.yaml", source="digits"), "data.channels=1")
    assert sum(sum(each.values()) for each in counts(digits, "train", "test")) == 1797
    with pytest.raises(SiteError, match=r"site west: .*expected pictures as uint8"):
        held(site(tmp_path / "west.yaml", source="synthetic", options={"num_examples": 40, "num_test": 20}))


def test_levels_of_folders_say_client_and_split(tmp_path: Path) -> None:
    tree = {"east/train/cat": 3, "east/test/dog": 1, "west/val/cat": 2, "west/train/dog": 4, "south/train/dog": 9}
    folder(tmp_path / "pictures", tree)
    content = {"source": "image_folder", "path": "pictures", "layout": "client/split/class"}
    everyone = held(site(tmp_path / "all.yaml", **content), clients=3)
    assert counts(everyone, "train") == [{"cat": 3}, {"dog": 9}, {"dog": 4}]  # in the order of the alphabet
    two = held(site(tmp_path / "two.yaml", **content, clients=["west", "east"]), clients=2)
    assert counts(two, "train", "validation", "test") == [{"dog": 4}, {"cat": 2}, {}, {"cat": 3}, {}, {"dog": 1}]
    assert two.notices == ("site two: left out 9 examples of none of its clients.",)


def test_folders_of_splits_are_found(tmp_path: Path) -> None:
    folder(tmp_path / "pictures", {"Training/cat": 3, "val/cat": 1, "val/dog": 2, "Training/dog": 1})
    made = held(site(tmp_path / "north.yaml", source="image_folder", path="pictures"))
    assert counts(made, "train", "validation", "test") == [{"cat": 3, "dog": 1}, {"cat": 1, "dog": 2}, {}]


def test_a_split_of_another_name_is_asked_for(tmp_path: Path) -> None:
    folder(tmp_path / "pictures", {"fold1/cat": 3, "fold1/dog": 2, "fold2/cat": 1, "old/dog": 5})
    content = {"source": "image_folder", "path": "pictures", "layout": "split/class"}
    with pytest.raises(SiteError, match="site north: expected the splits train, validation and test, found 'fold1'"):
        held(site(tmp_path / "north.yaml", **content))
    told = {"fold1": "train", "fold2": "test", "old": None}
    made = held(site(tmp_path / "north.yaml", **content, splits=told))
    assert counts(made, "train", "test") == [{"cat": 3, "dog": 2}, {"cat": 1}]
    assert made.notices == ("site north: left out 5 examples of its split 'old'.",)


def test_what_is_not_split_is_held_out_by_the_experiment(tmp_path: Path) -> None:
    folder(tmp_path / "pictures", {"cat": 20, "dog": 20})
    file = site(tmp_path / "north.yaml", source="image_folder", path="pictures")
    made = held(file, "data.client_test=0.2", "data.client_validation=0.1")
    train, validation, test = (len(part) for part in made.client_indices(0))
    assert (train, validation, test) == (28, 4, 8)
    other = held(file, "data.client_test=0.2", "data.client_validation=0.1", "data.seed=5")
    assert not torch.equal(made.roles, other.roles)


def test_a_split_of_ones_own_is_not_touched(tmp_path: Path) -> None:
    folder(tmp_path / "pictures", {"train/cat": 10, "train/dog": 10, "test/cat": 3})
    file = site(tmp_path / "north.yaml", source="image_folder", path="pictures")
    made = held(file, "data.client_test=0.5", "data.client_validation=0.1")
    assert [len(part) for part in made.client_indices(0)] == [18, 2, 3]
    assert counts(made, "test") == [{"cat": 3}]


def test_a_group_is_in_one_split(tmp_path: Path) -> None:
    folder(tmp_path, {"cat": 30, "dog": 30})
    rows = [(f"{c}/{n:03d}.png", c, f"p{n // 3}", ("a", "b")[n % 2]) for c in ("cat", "dog") for n in range(30)]
    table = pd.DataFrame(rows, columns=["path", "label", "patient", "ward"])
    table.to_csv(tmp_path / "rows.csv", index=False)
    columns = {"group": "patient", "client": "ward"}
    file = site(tmp_path / "north.yaml", source="csv", path="rows.csv", columns=columns)
    made = held(file, "data.client_test=0.4", "data.client_validation=0.3", clients=2)
    assert made.roles is not None
    by_patient = {
        patient: set(made.roles[list(rows)].tolist()) for patient, rows in table.groupby("patient").groups.items()
    }
    assert all(len(roles) == 1 for roles in by_patient.values())
    assert set.union(*by_patient.values()) == {TRAIN, VALIDATION, TEST}
    table["fold"] = ["train", "test"] * 30
    table.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(SiteError, match="10 of 10 groups are in two of its splits") as refused:
        held(
            site(tmp_path / "north.yaml", source="csv", path="rows.csv", columns={"group": "patient", "split": "fold"})
        )
    assert "p1" not in str(refused.value)


def test_classes_are_mapped_merged_and_left_out_with_their_count(tmp_path: Path) -> None:
    folder(tmp_path / "pictures", {"ant": 5, "cat": 3, "dog": 2, "zebra": 1})
    mapping = {"ant": None, "cat": "pet", "dog": "pet", "tiger": "cat"}
    made = held(site(tmp_path / "north.yaml", source="image_folder", path="pictures", classes=mapping))
    assert counts(made, "train") == [{"pet": 5, "zebra": 1}]
    assert made.notices == (
        "site north: left out 5 examples of its class 'ant'.",
        "site north: its file maps the class 'tiger', of which it has no example.",
    )


def test_names_from_a_mac_are_those_of_the_experiment(tmp_path: Path) -> None:
    apart, whole = "de\u0301ja\u0300", "d\u00e9j\u00e0"
    (tmp_path / "pictures" / apart).mkdir(parents=True)
    folder(tmp_path / "pictures", {"cat": 1})
    picture("dog", 0).save(tmp_path / "pictures" / apart / "0.png")
    file = site(tmp_path / "north.yaml", source="image_folder", path="pictures")
    assert set(held(file, f"data.classes=[cat, {whole}]").class_names) == {"cat", whole}


def test_labels_are_in_the_order_of_the_experiment(tmp_path: Path) -> None:
    folder(tmp_path / "north", {"cat": 3, "dog": 2})
    folder(tmp_path / "south", {"dog": 2, "zebra": 4})
    files = [site(tmp_path / f"{name}.yaml", source="image_folder", path=name) for name in ("north", "south")]
    asked = ["data.name=sites", "data.num_clients=2", f"data.sites=[{files[0]}, {files[1]}]", "data.channels=3"]
    asked += [f"data.image_size={SIDE}", "data.client_test=0", "data.classes=[zebra, dog, cat]"]
    made = federation(load("digits", [*NOTHING, *asked]))
    assert made.class_names == ("zebra", "dog", "cat")
    assert made.client(0).train.labels.tolist() == [2, 2, 2, 1, 1]
    assert made.client(1).train.labels.tolist() == [1, 1, 0, 0, 0, 0]
    assert made.num_train.tolist() == [5, 6]
    both = Sums.of(made, [0, 1]).statistics()
    assert (made.mean, made.std) == both
    shared = federation(load("digits", [*NOTHING, *asked[:-1], "data.classes=union"]))
    assert shared.class_names == ("cat", "dog", "zebra")


def test_pictures_of_other_channels_are_converted_and_counted(tmp_path: Path) -> None:
    folder(tmp_path / "pictures", {"cat": 3}, "L")
    folder(tmp_path / "pictures", {"dog": 2}, "RGB")
    file = site(tmp_path / "north.yaml", source="image_folder", path="pictures")
    made = held(file)
    assert made.notices == ("site north: 3 of 5 pictures are grey and were made in colour, as data.channels=3 asks.",)
    assert held(file, "data.channels=1").notices == (
        "site north: 2 of 5 pictures are in colour and were made grey, as data.channels=1 asks.",
    )


def test_unreadable_pictures_are_counted_and_others_hear_no_name(tmp_path: Path) -> None:
    root = folder(tmp_path / "pictures", {"cat": 3, "dog": 2})
    (root / "cat" / "mrs-smith.png").write_bytes(b"no picture")
    file = site(tmp_path / "north.yaml", source="image_folder", path="pictures")
    with pytest.raises(SiteError, match=r"site north: 1 of 6 pictures cannot be read: .*mrs-smith\.png") as refused:
        held(file)
    assert refused.value.public == "site north: some of it cannot be read."


def test_a_site_has_as_many_clients_as_it_is_asked_for(tmp_path: Path) -> None:
    folder(tmp_path / "pictures", {"cat": 3, "dog": 2})
    file = site(tmp_path / "north.yaml", source="image_folder", path="pictures")
    asked = ["data.name=sites", "data.num_clients=4", "data.classes=union", "data.channels=3", "engine.name=grpc"]
    experiment = load("digits", [*NOTHING, *asked, f"data.image_size={SIDE}"])
    with pytest.raises(SiteError, match="site north: it has 1 client, and should have 2") as refused:
        listed(experiment, OwnSite(str(file), (1, 2)))
    assert refused.value.public == "site north: it has 1 client, and should have 2."
    own = listed(experiment, OwnSite(str(file), (2,))).bare
    assert own.num_train.tolist() == [0, 0, 4, 0]


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"source": "image_folder"}, "path"),
        ({"source": "image_folder", "path": "nowhere"}, "path"),
        ({"source": "image_folder", "path": ".", "layout": "split/client"}, "layout"),
        ({"source": "csv", "path": ".", "layout": "class"}, "layout"),
        ({"source": "image_folder", "path": ".", "columns": {"labels": "x"}}, "columns.labels"),
        ({"source": "image_folder", "path": ".", "clients": ["a"]}, "clients"),
        ({"source": "image_folder", "path": ".", "splits": {"a": "b"}}, "splits.a"),
        ({"source": "image_folder", "path": ".", "classes": {"a": ""}}, "classes.a"),
        ({"source": "digits", "columns": {"client": "ward"}}, "columns.client"),
        ({"source": "sites"}, "source"),
        ({"source": "image_folder", "path": ".", "options": {"a": 1}}, "options"),
        ({"source": "image_folder", "path": ".", "name": "../up"}, "name"),
    ],
)
def test_what_a_file_cannot_say_is_refused_with_its_key(content: dict[str, Any], key: str, tmp_path: Path) -> None:
    file = site(tmp_path / "north.yaml", **content)
    with pytest.raises(SiteError) as refused:
        held(file)
    assert refused.value.key == key
    assert f"(key {key} of {file})." in str(refused.value)
    assert str(tmp_path) not in refused.value.public and f"(key {key} of its site-data)." in refused.value.public


def test_a_misspelt_key_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"north.yaml: Unknown key 'mapping'"):
        read_site(site(tmp_path / "north.yaml", source="image_folder", path=".", mapping={}))
    with pytest.raises(Refusal, match=r"north.yaml: source has no default"):
        read_site(site(tmp_path / "north.yaml", path="."))
    with pytest.raises(Refusal, match=r"nowhere.yaml cannot be read"):
        read_site(tmp_path / "nowhere.yaml")


def test_a_transparent_picture_is_as_a_viewer_shows_it(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0)).save(tmp_path / "pictures" / "cat" / "0.png")
    made = held(site(tmp_path / "north.yaml", source="image_folder", path="pictures"))
    assert set(made.pool.images.flatten().tolist()) == {255}
