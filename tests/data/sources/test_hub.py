"""Sets in the form of the hub, read from a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from umbel import data
from umbel.data.config import DataConfig


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set as the hub would serve it: parquet files with encoded pictures."""
    import datasets

    folder = tmp_path_factory.mktemp("hub")
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["shoe", "hat"]),
            "coarse": datasets.ClassLabel(names=["thing"]),
            "writer": datasets.Value("string"),
            "number": datasets.Value("int64"),
        }
    )
    datasets.disable_progress_bars()
    for split, count in (("train", 12), ("test", 4)):
        rows = {
            "picture": [Image.new("L", (6, 6), number) for number in range(count)],
            "kind": [number % 2 for number in range(count)],
            "coarse": [0] * count,
            "writer": [f"writer {number % 3}" for number in range(count)],
            "number": [10 * (number % 4) for number in range(count)],
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    datasets.enable_progress_bars()
    return folder


def hub_config(folder: Path, **options: object) -> DataConfig:
    given = {"label_column": "kind", "cache_dir": str(folder / "cache")} | options
    return DataConfig(name=f"hub:{folder}", options=given)


def test_hub_from_a_folder(hub_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    config = hub_config(hub_folder, natural_id_column="writer", domain_column="writer")
    data.check(config)
    loaded = data.load(config, 0)
    assert loaded.train.images[:, 0, 0, 0].tolist() == list(range(12)) and loaded.in_channels == 1
    assert loaded.class_names == ("shoe", "hat") and loaded.test.labels.tolist() == [0, 1, 0, 1]
    assert loaded.natural_ids is not None and loaded.natural_ids.tolist() == [0, 1, 2] * 4
    assert loaded.domain_names == ("writer 0", "writer 1", "writer 2")
    assert capfd.readouterr() == ("", "") and datasets.is_progress_bar_enabled()
    plain = data.load(hub_config(hub_folder, label_column="number", image_size=4, in_channels=3), 0)
    assert plain.train.images.shape == (12, 3, 4, 4) and plain.class_names == ("0", "10", "20", "30")
    assert plain.train.labels.tolist() == [0, 1, 2, 3] * 3


def test_hub_without_a_test_split(hub_folder: Path) -> None:
    loaded = data.load(hub_config(hub_folder, test_split="", natural_id_column="writer"), 0)
    assert (len(loaded.train), len(loaded.test)) == (10, 2)
    assert loaded.natural_ids is not None
    assert loaded.natural_ids.tolist() == (loaded.train.images[:, 0, 0, 0].long() % 3).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": ""}, r"expected one column of type ClassLabel, found \['kind', 'coarse'\]"),
        (
            {"image_column": "photo"},
            r"has no column 'photo' \(data\.options\.image_column\); it has picture, kind",
        ),
        ({"image_column": "kind"}, r"column 'kind' holds no images"),
        ({"domain_column": "site"}, r"has no column 'site'"),
        ({"test_split": "validation"}, r"Set data\.options\.test_split"),
        ({"train_split": "all"}, r"Check data\.options\.train_split=all"),
    ],
)
def test_hub_errors_name_the_option(hub_folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(data.DataError, match=message):
        data.load(hub_config(hub_folder, **options), 0)


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(data.MissingDataError, match=r"hub:owner/name cannot be fetched .*\n    hf download"):
        data.load(DataConfig(name="hub:owner/name"), 0)
