"""The papers' sets by name: what is said of them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.sets.papers.hub_form import load
from umbel import data
from umbel.data.config import DataConfig
from umbel.data.sets import registry

SINGLES = ("cifar10", "cifar100", "tiny_imagenet", "pacs", "office_home", "coco_captions", "flickr30k", "ag_news")
NAMES = (*SINGLES, "office_caltech", "digits4", "inaturalist", "imagenet_lt")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_described(name: str) -> None:
    line = registry.describe(name)
    assert line and "\n" not in line
    options = registry.options(name)
    assert "limit" in options and ("image_size" in options) == (name != "ag_news")


@pytest.mark.parametrize("name", SINGLES)
def test_a_folder_that_is_not_there_names_the_command(name: str, tmp_path: Path) -> None:
    message = (
        r"no folder data\.path=.*nowhere\. Fetch the set with\n    hf download --repo-type dataset \S+/\S+ --local"
    )
    with pytest.raises(data.MissingDataError, match=message):
        data.check(DataConfig(name=name, path=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("name", ["cifar10", "flickr30k", "ag_news"])
def test_without_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(data.MissingDataError, match=r"\n    hf download .*\nand set data\.path=FOLDER\."):
        load(name, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": -1}, r"data\.options\.limit must be"),
        ({"captions": "some"}, r"data\.options\.captions must be first or all, found 'some'"),
        ({"image_size": 0.5}, r"data\.options\.image_size must be"),
        ({"in_channels": 2}, r"data\.options\.in_channels must be"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(data.DataError, match=message):
        data.check(DataConfig(name="coco_captions", options=options))
