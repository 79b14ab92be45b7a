"""The papers' sets of texts, and of image-text pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.sets.papers.hub_form import load, shade, write
from umbel import data
from umbel.data.config import DataConfig
from umbel.data.sources.hub_columns import Pairing

torch.set_num_threads(1)


def test_ag_news_is_texts_without_images(tmp_path: Path) -> None:
    import datasets

    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["World", "Sports"])}
    rows = {"text": ["Börse steigt", "", "a goal", "two goals"], "label": [0, 0, 1, 1]}
    others = {"text": ["regen", "a draw"], "label": [0, 1]}
    loaded = load("ag_news", write(tmp_path, features, train=rows, test=others))
    assert loaded.train.images.shape == (4, 0) and loaded.mean == () and loaded.train.texts is not None
    assert list(loaded.train.texts) == rows["text"] and loaded.train.labels.tolist() == rows["label"]
    with pytest.raises(data.DataError, match=r"Set data\.encoder"):
        data.Federation.build(DataConfig(name="ag_news", path=str(tmp_path)), 0)


def test_the_same_text_is_never_on_two_sides(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b", "c", "d"])})
    texts = [f"News number {number % 30}." for number in range(60)]
    rows = {"text": texts, "label": [number % 4 for number in range(60)]}
    folder = tmp_path / "news"
    folder.mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train-0.parquet")
    Dataset.from_dict({"text": texts[:6], "label": [0] * 6}, features=features).to_parquet(folder / "test-0.parquet")
    loaded = data.load(DataConfig(name="ag_news", path=str(folder)), 0)
    assert loaded.train.texts is not None and loaded.test.texts is not None and loaded.train.concepts is not None
    assert not set(loaded.train.texts) & set(loaded.test.texts)
    assert len(loaded.test) == 6 and len(loaded.train) == 48 and len(loaded.train.concepts.unique()) == 24


# --- image-text pairs -----------------------------------------------------------------------------


def test_pairing_takes_a_caption_once() -> None:
    pairing = Pairing(every=False)
    first = pairing.take([["A dog.", "two"], ["a  DOG.", "three"], ["two"]], [5, 6, 7])
    # The second image's first caption is taken already, so that it gets its second.
    assert (first.rows, first.captions) == ([0, 1, 2], ["A dog.", "three", "two"])
    later = pairing.take([["three", None, "two"], "four", []], [8, 9, 10])
    assert (later.rows, later.captions, later.images) == ([1], ["four"], [3])
    every = Pairing(every=True).take(["b", "c", "a"], [1, 2, 1])
    assert (every.rows, every.captions, every.images) == ([0, 0, 1], ["b", "a", "c"], [0, 0, 1])
    alone = Pairing(every=False).take(["b", "c", "b"])
    assert (alone.rows, alone.images) == ([0, 1], [0, 1])


def coco(folder: Path) -> Path:
    import datasets

    features = {
        "image": datasets.Image(),
        "filename": datasets.Value("string"),
        "cocoid": datasets.Value("int64"),
        "caption": datasets.Value("string"),
    }

    def rows(images: range) -> dict[str, list[Any]]:
        pairs = [(image, number) for image in images for number in range(3)]
        return {
            "image": [shade(image) for image, _ in pairs],
            "filename": [f"{image}.jpg" for image, _ in pairs],
            "cocoid": [100 + image for image, _ in pairs],
            "caption": ["the same" if number == 2 else f"picture {image} {number}" for image, number in pairs],
        }

    return write(folder, features, train=rows(range(6)), test=rows(range(6, 9)))


@pytest.mark.parametrize(("captions", "train", "test"), [("first", 6, 3), ("all", 12, 7)])
def test_coco_captions(captions: str, train: int, test: int, tmp_path: Path) -> None:
    loaded = load("coco_captions", coco(tmp_path), captions=captions)
    assert (len(loaded.train), len(loaded.test)) == (train, test)
    sides = []
    for examples in (loaded.train, loaded.test):
        assert examples.texts is not None and examples.concepts is not None
        texts = list(examples.texts)
        assert len(set(texts)) == len(texts)
        # A picture's shade is its number, which stands in its caption; one picture is one concept.
        for index, text in enumerate(texts):
            if text != "the same":
                assert text.split()[1] == str(int(examples.images[index, 0, 0, 0]))
        assert len(examples.concepts.unique()) == len(examples.images[:, 0, 0, 0].unique())
        sides.append(set(texts))
    assert not sides[0] & sides[1] and loaded.class_names == ("picture",)
    assert ("the same" in sides[1]) == (captions == "all")  # the test set takes first


@pytest.mark.parametrize("captions", ["first", "all"])
def test_flickr30k_is_split_by_image(captions: str, tmp_path: Path) -> None:
    import datasets

    features = {"image": datasets.Image(), "caption": [datasets.Value("string")], "img_id": datasets.Value("string")}
    rows = {
        "image": [shade(image) for image in range(20)],
        "caption": [[f"{image} {number}" for number in range(5)] for image in range(20)],
        "img_id": [str(image) for image in range(20)],
    }
    loaded = load("flickr30k", write(tmp_path, features, test=rows), captions=captions)
    each = 5 if captions == "all" else 1
    assert (len(loaded.train), len(loaded.test)) == (16 * each, 4 * each)
    again = load("flickr30k", tmp_path, captions=captions)
    assert loaded.test.concepts is not None and again.test.concepts is not None
    assert torch.equal(loaded.test.concepts, again.test.concepts)
    options = {"captions": captions}
    config = DataConfig(name="flickr30k", path=str(tmp_path), partition="iid", num_clients=2, options=options)
    federation = data.Federation.build(config, 0)
    one, other = federation.client(0), federation.client(1)
    assert one.train.concepts is not None and other.test.concepts is not None and one.train.texts is not None
    # The captions of a picture begin with its number, be they with two clients.
    assert not set(one.train.concepts.tolist()) & set(other.test.concepts.tolist())
    pictures = one.train.images[:, 0, 0, 0].tolist()
    assert [int(text.split()[0]) for text in one.train.texts] == pictures


def test_captions_in_rows_are_held_out_by_image(tmp_path: Path) -> None:
    folder = coco(tmp_path)
    config = DataConfig(
        name=f"hub:{folder}",
        options={"caption_column": "caption", "image_id_column": "cocoid", "captions": "all", "test_split": ""},
    )
    loaded = data.load(config, 0)
    assert len(loaded.test.images[:, 0, 0, 0].unique()) == 1 and len(loaded.train.images[:, 0, 0, 0].unique()) == 5
