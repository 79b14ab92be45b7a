"""Rows of the hub's sets that cannot be examples: each refusal names the first one."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from umbel import data
from umbel.data.config import DataConfig
from umbel.simulations.commands.main import main

LABELS = ["ape", "bee", "cow"]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def encoded(shade: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), shade).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(folder: Path, features: Mapping[str, Any], **splits: Mapping[str, list[Any]]) -> Path:
    """Write a set of pictures whose shade is the row's number, with further columns."""
    for split, rows in splits.items():
        count = len(next(iter(rows.values())))
        columns = {"image": [encoded(row) for row in range(count)]} | dict(rows)
        kinds = datasets.Features({"image": datasets.Image()} | dict(features))
        datasets.Dataset.from_dict(columns, features=kinds).to_parquet(
            folder / "data" / f"{split}-00000-of-00001.parquet"
        )
    return folder


def load(folder: Path, **options: object) -> data.DataSet:
    given = {"label_column": "label", "cache_dir": str(folder / "cache")} | options
    return data.load(DataConfig(name=f"hub:{folder}", options=given), 0)


def refused(folder: Path, **options: object) -> data.DataError:
    with pytest.raises(data.DataError) as caught:
        load(folder, **options)
    return caught.value


def labels(count: int = 9, **changed: Any) -> list[Any]:
    """Return the labels 0, 1, 2, 0, ... with those at `rN` changed."""
    return [changed.get(f"r{row}", row % 3) for row in range(count)]


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "feature", [datasets.Value("int64"), datasets.ClassLabel(names=LABELS), datasets.Value("float32")]
)
def test_a_test_split_without_labels_is_refused(tmp_path: Path, feature: Any) -> None:
    folder = write(tmp_path, {"label": feature}, train={"label": labels()}, test={"label": [-1] * 4})
    error = refused(folder)
    assert "row 0 of test has no label in column 'label', but -1" in error.reason and "(4 of 4 rows)" in error.reason
    assert (
        error.key == "data.options.test_split" and "an empty one holds a fifth of each class of train" in error.remedy
    )
    held = load(folder, test_split="")
    assert len(held.class_names) == 3 and len(held.train) + len(held.test) == 9


@pytest.mark.parametrize(
    ("feature", "values", "said"),
    [
        (datasets.Value("string"), [LABELS[row % 3] if row != 7 else None for row in range(9)], "None"),
        (datasets.Value("string"), [LABELS[row % 3] if row != 7 else "" for row in range(9)], "''"),
        (datasets.Value("int64"), labels(r7=None), "None"),
        (datasets.Value("float64"), labels(r7=float("nan")), "nan"),
        (datasets.ClassLabel(names=LABELS), labels(r7=None), "None"),
        (datasets.ClassLabel(names=LABELS), labels(r7=-1), "-1"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_row_without_a_label_is_named(tmp_path: Path, feature: Any, values: list[Any], said: str, split: str) -> None:
    other = {"train": "test", "test": "train"}[split]
    whole = [LABELS[row % 3] for row in range(9)] if feature.dtype == "string" else labels()
    error = refused(write(tmp_path, {"label": feature}, **{split: {"label": values}, other: {"label": whole}}))
    assert f"row 7 of {split} has no label in column 'label', but {said} (1 of 9 rows)" in error.reason
    assert ".filter(lambda row: row['label'] not in (None, '', -1))" in error.remedy


def test_what_the_remedy_says_mends_the_set(tmp_path: Path) -> None:
    values = [LABELS[row % 3] if row != 7 else None for row in range(9)]
    rows = {"label": [LABELS[row % 3] for row in range(9)]}
    folder = write(tmp_path / "bad", {"label": datasets.Value("string")}, train={"label": values}, test=rows)
    error = refused(folder)
    call = error.remedy.splitlines()[-1].strip().replace("FOLDER", str(tmp_path / "good"))
    (tmp_path / "good").mkdir()
    for split in ("train", "test"):
        now = call.replace("load_dataset(...)", f"load_dataset({str(folder)!r}, cache_dir={str(tmp_path / 'c')!r})")
        eval(now.replace("['train']", f"[{split!r}]").replace("train-0", f"{split}-0"), {"datasets": datasets})
    assert load(tmp_path / "good").train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 8]


def test_minus_one_may_be_a_class_and_it_is_said(tmp_path: Path) -> None:
    rows = {"label": [-1, 1] * 4}
    loaded = load(write(tmp_path, {"label": datasets.Value("int64")}, train=rows, test=rows))
    assert loaded.class_names == ("-1", "1") and loaded.train.labels.tolist() == [0, 1] * 4
    assert loaded.notices == (f"{tmp_path}: the label -1 is a class like the others (4 of 8 rows).",)


@pytest.mark.parametrize(
    ("feature", "values", "fault"),
    [
        (datasets.Value("float32"), [0.5, 1.25, 2.0], "row 0 of train has a number to predict in column 'label' (0.5)"),
        (
            datasets.Value("float32"),
            [1.0, 1.25, 2.0],
            "row 1 of train has a number to predict in column 'label' (1.25)",
        ),
        (datasets.List(datasets.Value("int64")), [[0, 1], [1], [2]], "row 0 of train has several labels at once"),
        ({"a": datasets.Value("int64")}, [{"a": 0}, {"a": 1}, {"a": 2}], "row 0 of train has several labels at once"),
    ],
)
def test_what_is_no_class_is_named(tmp_path: Path, feature: Any, values: list[Any], fault: str) -> None:
    error = refused(write(tmp_path, {"label": feature}, train={"label": values}, test={"label": values}))
    assert fault in error.reason and error.key == "data.options.label_column"
    assert "one class a row" in error.remedy


def test_whole_floating_labels_are_classes(tmp_path: Path) -> None:
    rows = {"label": [0.0, 1.0, 2.0, 1.0]}
    loaded = load(write(tmp_path, {"label": datasets.Value("float64")}, train=rows, test=rows))
    assert loaded.train.labels.tolist() == [0, 1, 2, 1] and loaded.notices == ()


def test_one_class_is_refused(tmp_path: Path) -> None:
    rows = {"label": ["cat"] * 4}
    error = refused(write(tmp_path, {"label": datasets.Value("string")}, train=rows, test=rows))
    assert "expected two classes or more, found one (cat)" in error.reason


def test_a_class_that_is_tested_and_not_trained_is_said(tmp_path: Path) -> None:
    features = {"label": datasets.Value("string")}
    loaded = load(write(tmp_path, features, train={"label": ["a", "b"]}, test={"label": ["a", "c"]}))
    assert loaded.class_names == ("a", "b", "c")
    assert loaded.notices == (
        f"hub:{tmp_path}: 1 of 3 classes have no example in train: c.",
        f"hub:{tmp_path}: 1 of 3 classes have no example in test: b.",
    )


# --- pictures and other columns -------------------------------------------------------------------


def test_a_row_without_a_picture_is_named(tmp_path: Path) -> None:
    pictures = [encoded(row) if row not in (4, 6) else None for row in range(9)]
    write(tmp_path, {"label": datasets.Value("int64")}, test={"label": labels()})
    write(tmp_path, {"label": datasets.Value("int64")}, train={"label": labels(), "image": pictures})
    error = refused(tmp_path)
    assert "row 4 of train has no picture in column 'image' (2 of 9 rows)" in error.reason
    assert error.key == "data.options.image_column" and "row['image'] is not None" in error.remedy


@pytest.mark.parametrize("option", ["domain_column", "natural_id_column"])
@pytest.mark.parametrize("missing", [None, ""])
def test_a_row_without_a_domain_or_a_writer_is_named(tmp_path: Path, option: str, missing: Any) -> None:
    features = {"label": datasets.Value("int64"), "who": datasets.Value("string")}
    rows = {"label": labels(), "who": ["x" if row != 5 else missing for row in range(9)]}
    error = refused(write(tmp_path, features, train=rows, test=rows), **{option: "who"})
    assert "row 5 of train has nothing in column 'who' (1 of 9 rows)" in error.reason
    assert error.key == f"data.options.{option}"


def test_a_row_without_a_text_is_named_and_an_empty_text_is_one(tmp_path: Path) -> None:
    features = {"label": datasets.Value("int64"), "text": datasets.Value("string")}
    rows = {"label": labels(), "text": [f"text {row}" if row != 3 else "" for row in range(9)]}
    whole = write(tmp_path / "whole", features, train=rows, test={"label": [0], "text": ["other"]})
    assert len(load(whole, text_column="text").train) == 9
    rows["text"][3] = None  # type: ignore[call-overload]
    bad = write(tmp_path / "bad", features, train=rows, test={"label": [0], "text": ["other"]})
    assert "row 3 of train has nothing in column 'text'" in refused(bad, text_column="text").reason


def test_pictures_without_a_caption_are_counted(tmp_path: Path) -> None:
    features = {"caption": datasets.Value("string")}
    rows = {"caption": ["one", None, "three", ""]}
    folder = write(tmp_path, features, train=rows, test={"caption": ["five"]})
    loaded = load(folder, caption_column="caption", label_column="")
    assert loaded.train.images[:, 0, 0, 0].tolist() == [0, 2]
    assert loaded.notices == (f"{tmp_path}: left out 2 of 4 rows of train, which have no caption.",)


def test_pictures_of_another_depth_say_what_white_is(tmp_path: Path) -> None:
    deep = io.BytesIO()
    Image.new("I", (4, 4), 1000).save(deep, "TIFF")
    rows = {"label": [0, 1], "image": [{"bytes": deep.getvalue(), "path": None}] * 2}
    folder = write(tmp_path, {"label": datasets.Value("int64")}, train=rows, test=rows)
    error = refused(folder)
    assert error.key == "data.options.white" and "from 1000 to 1000" in error.reason
    assert torch.equal(load(folder, white=2000).train.images, torch.full((2, 1, 4, 4), 128, dtype=torch.uint8))


def test_a_column_that_is_not_decoded_or_has_a_mode_is_read_as_its_files_are(tmp_path: Path) -> None:
    deep = io.BytesIO()
    Image.new("I;16", (4, 4), 25_700).save(deep, "PNG")
    for number, feature in enumerate((datasets.Image(decode=False), datasets.Image(mode="L"))):
        features = {"label": datasets.Value("int64"), "image": feature}
        rows = {"label": [0, 1], "image": [{"bytes": deep.getvalue(), "path": None}] * 2}
        loaded = load(write(tmp_path / str(number), features, train=rows, test=rows))
        assert torch.equal(loaded.train.images, torch.full((2, 1, 4, 4), 100, dtype=torch.uint8))


def test_a_set_is_fetched_by_its_command(tmp_path: Path) -> None:
    rows = {"label": labels()}
    folder = write(tmp_path, {"label": datasets.Value("int64")}, train=rows, test=rows)
    options = ["data.options.label_column=label", f"data.options.cache_dir={tmp_path}/cache"]
    result = CliRunner().invoke(main, ["data", "fetch", f"hub:{folder}", *options])
    assert result.exit_code == 0, result.output
    assert f"hub:{folder}: there." in result.output and "9 training and 9 test examples, 4 x 4, grey" in result.output
