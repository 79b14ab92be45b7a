"""The papers' sets by name: loaders over tiny sets in the form of the hub's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from umbel import data
from umbel.data.config import DataConfig
from umbel.data.sets import registry
from umbel.data.sources import hub
from umbel.data.sources.hub_columns import Pairing

torch.set_num_threads(1)

SINGLES = ("cifar10", "cifar100", "tiny_imagenet", "pacs", "office_home", "coco_captions", "flickr30k", "ag_news")
NAMES = (*SINGLES, "office_caltech", "digits4", "inaturalist", "imagenet_lt")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = before


def shade(number: int, size: int = 8, mode: str = "RGB") -> Image.Image:
    value = number % 256
    return Image.new(mode, (size, size), value if mode == "L" else (value, 255 - value, 0))


def write(folder: Path, features: Mapping[str, Any], **splits: Mapping[str, list[Any]]) -> Path:
    import datasets

    for split, rows in splits.items():
        table = datasets.Dataset.from_dict(dict(rows), features=datasets.Features(dict(features)))
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def labelled(folder: Path, image: str, label: str, classes: list[str], count: int = 0, **also: str) -> Path:
    import datasets

    features = {image: datasets.Image(), label: datasets.ClassLabel(names=classes)}
    features |= {name: datasets.ClassLabel(names=["other"]) for name in also}

    def rows(size: int) -> dict[str, list[Any]]:
        found = {image: [shade(row) for row in range(size)], label: [row % len(classes) for row in range(size)]}
        return found | {name: [0] * size for name in also}

    size = count or 4 * len(classes)
    return write(folder, features, train=rows(size), test=rows(len(classes)))


def load(name: str, folder: Path | None, **options: Any) -> data.DataSet:
    config = DataConfig(name=name, path=None if folder is None else str(folder), options=options)
    return data.load(config, 0)


# --- names ----------------------------------------------------------------------------------------


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


# --- pictures with labels -------------------------------------------------------------------------


def test_cifar10_and_its_long_tail(tmp_path: Path) -> None:
    classes = [f"c{number}" for number in range(10)]
    folder = labelled(tmp_path, "img", "label", classes, count=1000)
    found = load("cifar10", folder)
    assert found.name == "cifar10" and found.class_names == tuple(classes) and found.image_size == 32
    assert (len(found.train), len(found.test)) == (1000, 10) and found.train.images.shape[1] == 3
    assert found.train.images[7, :, 0, 0].tolist() == [7, 248, 0] and "Krizhevsky" in found.attribution
    cut = DataConfig(
        name="cifar10", path=str(folder), partition="long_tail", imbalance=20, alpha=100, num_clients=3, top_up=True,
        server_validation=0.0,
    )  # fmt: skip
    federation = data.Federation.build(cut, 0)
    counts = federation.partition.counts(federation.pool.labels, 10).sum(0)
    # n_c = n_0 * imbalance ** (-c / (C - 1)), 100 down to 5
    assert counts[0] == 100 and counts[-1] == 5 and bool((counts.diff() <= 0).all())
    assert int(counts[3]) == pytest.approx(100 * 20 ** (-3 / 9), abs=1)


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    folder = labelled(tmp_path, "img", "fine_label", [f"fine {number}" for number in range(5)], coarse_label="coarse")
    assert load("cifar100", folder).class_names == tuple(f"fine {number}" for number in range(5))


def test_tiny_imagenet_tests_on_valid(tmp_path: Path) -> None:
    folder = labelled(tmp_path, "image", "label", ["n01", "n02"])
    (folder / "data" / "test-00000-of-00001.parquet").rename(folder / "data" / "valid-00000-of-00001.parquet")
    found = load("tiny_imagenet", folder, image_size=16)
    assert (len(found.train), len(found.test), found.image_size) == (8, 2, 16)


def test_a_renamed_column_is_answered_with_those_there(tmp_path: Path) -> None:
    folder = labelled(tmp_path, "picture", "label", ["a", "b"])
    with pytest.raises(data.DataError, match=r"has no column 'img' \(data\.options\.image_column\); it has picture"):
        load("cifar10", folder)


def test_inaturalist_finds_its_columns(tmp_path: Path) -> None:
    found = load("inaturalist", labelled(tmp_path, "photo", "species", ["ant", "bee"]), in_channels=1)
    assert found.class_names == ("ant", "bee") and found.in_channels == 1 and found.image_size == 64


def test_limit_is_fixed_and_decodes_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = labelled(tmp_path, "img", "label", ["a", "b"], count=40)
    decoded: list[int] = []
    stack = hub.pictures.stack

    def counting(pictures: Any, count: int, size: int, mode: str) -> torch.Tensor:
        decoded.append(count)
        return stack(pictures, count, size, mode)

    monkeypatch.setattr(hub.pictures, "stack", counting)
    found = load("cifar10", folder, limit=10)
    assert decoded == [10, 2] and len(found.train) == 10
    assert torch.equal(found.train.images, load("cifar10", folder, limit=10).train.images)
    # Example n has the shade n and the class n mod 2: labels went along.
    assert torch.equal(found.train.images[:, 0, 0, 0] % 2, found.train.labels.to(torch.uint8))


def test_many_pictures_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_WORTH_CACHING", 30)
    folder = labelled(tmp_path / "set", "img", "label", ["a", "b"], count=300)
    decoded: list[int] = []
    stack = hub.pictures.stack

    def counting(pictures: Any, count: int, size: int, mode: str) -> torch.Tensor:
        decoded.append(count)
        return stack(pictures, count, size, mode)

    monkeypatch.setattr(hub.pictures, "stack", counting)
    first, second = load("cifar10", folder, image_size=4), load("cifar10", folder, image_size=4)
    # 300 in two batches and once; the two of the test set are not worth it.
    assert decoded == [256, 44, 2, 2] and torch.equal(first.train.images, second.train.images)
    assert first.train.images[:, 0, 0, 0].tolist() == [number % 256 for number in range(300)]
    assert load("cifar10", folder, image_size=8).image_size == 8  # another size is another entry
    entry = next((tmp_path / "cache" / "hub").glob("set-*"))
    (entry / "images.npy").write_bytes(b"damaged")
    assert torch.equal(load("cifar10", folder, image_size=4).train.images, first.train.images)
    # Other files in the same folder are another set.
    labelled(folder, "img", "label", ["a", "b"], count=299)
    assert len(load("cifar10", folder, image_size=4).train) == 299


def test_more_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = labelled(tmp_path, "img", "label", ["a", "b"])
    monkeypatch.setattr(hub, "_memory_bytes", lambda: 10_000)
    with pytest.raises(data.DataError, match=r"10 pictures of 32 x 32 pixels need .*Lower data\.options\.image_size"):
        load("cifar10", folder)
    assert len(load("cifar10", folder, image_size=4).train) == 8


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    import datasets

    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    bad = {"img": [{"bytes": b"no picture", "path": "x.png"}] * 4, "label": [0, 1, 0, 1]}
    write(tmp_path, features, train=bad, test=bad)
    with pytest.raises(data.DamagedDataError, match=r"a picture cannot be decoded"):
        load("cifar10", tmp_path)


# --- domains --------------------------------------------------------------------------------------

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")


def pacs(folder: Path) -> Path:
    import datasets

    rows = [(domain, label, number) for domain in range(4) for label in range(2) for number in range(10)]
    features = {
        "image": datasets.Image(),
        "domain": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["dog", "elephant"]),
    }
    table = {
        "image": [shade(60 * domain + number) for domain, _, number in rows],
        "domain": [DOMAINS[domain] for domain, _, _ in rows],
        "label": [label for _, label, _ in rows],
    }
    return write(folder, features, train=table)


@pytest.mark.parametrize("form", ["parquet", "pictures"])
def test_pacs_holds_a_fifth_of_each_class_and_domain_out(form: str, tmp_path: Path) -> None:
    if form == "parquet":
        pacs(tmp_path)
    else:
        for number, domain in enumerate(DOMAINS):
            for label in ("dog", "elephant"):
                (tmp_path / domain / label).mkdir(parents=True)
                for index in range(10):
                    shade(60 * number + index).save(tmp_path / domain / label / f"{index}.png")
    found = load("pacs", tmp_path, image_size=8)
    assert found.domain_names == DOMAINS and found.class_names == ("dog", "elephant") and found.name == "pacs"
    for examples, count in ((found.train, 8), (found.test, 2)):
        assert examples.domains is not None
        assert torch.bincount(examples.labels + 2 * examples.domains).tolist() == [count] * 8
    assert found.natural_ids is found.train.domains
    assert found.train.domains is not None
    assert torch.equal(found.train.images[:, 0, 0, 0].long() // 60, found.train.domains)
    again = load("pacs", tmp_path, image_size=8)
    assert torch.equal(again.test.images, found.test.images)
    federation = data.Federation.build(
        DataConfig(name="pacs", path=str(tmp_path), partition="domain", num_clients=4, options={"image_size": 8}), 0
    )
    assert federation.pool.domains is not None
    held = federation.partition.counts(federation.pool.domains, 4)
    assert (held > 0).sum(1).tolist() == [1] * 4


def test_office_caltech_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(data.MissingDataError, match=r"no copy on the hub is known.*\n    umbel data fetch office_calt"):
        data.check(DataConfig(name="office_caltech"))
    for domain in ("amazon", "dslr"):
        for label in ("bike", "mug"):
            (tmp_path / domain / label).mkdir(parents=True)
            for index in range(5):
                shade(index).save(tmp_path / domain / label / f"{index}.jpg")
    found = load("office_caltech", tmp_path)
    assert found.domain_names == ("amazon", "dslr") and (len(found.train), len(found.test)) == (16, 4)
    with pytest.raises(data.DataError, match=r"expected pictures as <domain>/<class>"):
        (tmp_path / "empty" / "a" / "b").mkdir(parents=True)
        load("office_caltech", tmp_path / "empty")


def test_digits4_joins_sets_as_domains(tmp_path: Path) -> None:
    digits = [str(number) for number in range(10)]
    for name in ("mnist", "svhn", "usps", "mnist_m"):
        labelled(tmp_path / name, "image", "label", [f"{digit}-x" for digit in digits] if name == "usps" else digits)
    found = load("digits4", tmp_path, image_size=8)
    assert found.domain_names == ("mnist", "svhn", "usps", "mnist_m") and found.class_names == tuple(digits)
    assert found.train.domains is not None and torch.bincount(found.train.domains).tolist() == [40] * 4
    assert found.train.images.shape == (160, 3, 8, 8) and len(found.test) == 40
    assert "svhn: non-commercial use" in found.licence
    two = load("digits4", tmp_path, domains="usps,mnist", image_size=8)
    assert two.domain_names == ("usps", "mnist") and len(two.train) == 80
    with pytest.raises(data.DataError, match=r"data\.options\.domains must be some of mnist,svhn"):
        load("digits4", tmp_path, domains="mnist,mnist")
    with pytest.raises(data.MissingDataError, match=r"data\.name=synth_digits"):
        load("digits4", None, domains="synth_digits")
    labelled(tmp_path / "svhn", "image", "label", ["a", "b"])
    with pytest.raises(data.DataError, match=r"svhn: expected the ten digits as classes, found a, b"):
        load("digits4", tmp_path)


# --- texts ----------------------------------------------------------------------------------------


def test_ag_news_is_texts_without_images(tmp_path: Path) -> None:
    import datasets

    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["World", "Sports"])}
    rows = {"text": ["Börse steigt", "", "a goal", "two goals"], "label": [0, 0, 1, 1]}
    others = {"text": ["regen", "a draw"], "label": [0, 1]}
    found = load("ag_news", write(tmp_path, features, train=rows, test=others))
    assert found.train.images.shape == (4, 0) and found.mean == () and found.train.texts is not None
    assert list(found.train.texts) == rows["text"] and found.train.labels.tolist() == rows["label"]
    with pytest.raises(data.DataError, match=r"Set data\.encoder"):
        data.Federation.build(DataConfig(name="ag_news", path=str(tmp_path)), 0)


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
    found = load("coco_captions", coco(tmp_path), captions=captions)
    assert (len(found.train), len(found.test)) == (train, test)
    sides = []
    for examples in (found.train, found.test):
        assert examples.texts is not None and examples.concepts is not None
        texts = list(examples.texts)
        assert len(set(texts)) == len(texts)
        # A picture's shade is its number, which stands in its caption; one picture is one concept.
        for index, text in enumerate(texts):
            if text != "the same":
                assert text.split()[1] == str(int(examples.images[index, 0, 0, 0]))
        assert len(examples.concepts.unique()) == len(examples.images[:, 0, 0, 0].unique())
        sides.append(set(texts))
    assert not sides[0] & sides[1] and found.class_names == ("picture",)
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
    found = load("flickr30k", write(tmp_path, features, test=rows), captions=captions)
    each = 5 if captions == "all" else 1
    assert (len(found.train), len(found.test)) == (16 * each, 4 * each)
    again = load("flickr30k", tmp_path, captions=captions)
    assert found.test.concepts is not None and again.test.concepts is not None
    assert torch.equal(found.test.concepts, again.test.concepts)
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
    found = data.load(config, 0)
    assert len(found.test.images[:, 0, 0, 0].unique()) == 1 and len(found.train.images[:, 0, 0, 0].unique()) == 5


# --- ImageNet-LT ----------------------------------------------------------------------------------


def imagenet(folder: Path) -> Path:
    import io

    import datasets

    def rows(names: list[str]) -> dict[str, list[Any]]:
        encoded = []
        for number, name in enumerate(names):
            buffer = io.BytesIO()
            shade(number).save(buffer, "PNG")
            encoded.append({"bytes": buffer.getvalue(), "path": name})
        return {"image": encoded, "label": [number % 2 for number in range(len(names))]}

    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["tench", "goldfish"])}
    train = [f"n0{number % 2}_{number}_n0{number % 2}.JPEG" for number in range(10)]
    validation = [f"ILSVRC2012_val_{number:08}_n0{number % 2}.JPEG" for number in range(4)]
    return write(folder, features, train=rows(train), validation=rows(validation))


def test_imagenet_lt_takes_what_the_lists_name(tmp_path: Path) -> None:
    folder = imagenet(tmp_path / "imagenet")
    lists = tmp_path / "lists"
    lists.mkdir()
    with pytest.raises(data.MissingDataError, match=r"data\.options\.lists.*\n    hf auth login\n    hf download"):
        load("imagenet_lt", folder, lists=str(lists))
    (lists / "ImageNet_LT_train.txt").write_text(
        "".join(f"train/n0{n % 2}/n0{n % 2}_{n}.JPEG {n % 2}\n" for n in (0, 3, 4))
    )
    found = load("imagenet_lt", folder, lists=str(lists))
    assert found.train.images[:, 0, 0, 0].tolist() == [0, 3, 4] and found.train.labels.tolist() == [0, 1, 0]
    assert len(found.test) == 4
    (lists / "ImageNet_LT_test.txt").write_text("val/ILSVRC2012_val_00000002.JPEG 0\n")
    assert load("imagenet_lt", folder, lists=str(lists)).test.images[:, 0, 0, 0].tolist() == [2]
    (lists / "ImageNet_LT_train.txt").write_text("train/n09/n09_1.JPEG 0\n")
    with pytest.raises(data.DamagedDataError, match=r"names 1 images and 0 of them are in the set"):
        load("imagenet_lt", folder, lists=str(lists))


def test_the_same_text_is_never_on_two_sides(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b", "c", "d"])})
    texts = [f"News number {number % 30}." for number in range(60)]
    rows = {"text": texts, "label": [number % 4 for number in range(60)]}
    folder = tmp_path / "news"
    folder.mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train-0.parquet")
    Dataset.from_dict({"text": texts[:6], "label": [0] * 6}, features=features).to_parquet(folder / "test-0.parquet")
    found = data.load(DataConfig(name="ag_news", path=str(folder)), 0)
    assert found.train.texts is not None and found.test.texts is not None and found.train.concepts is not None
    assert not set(found.train.texts) & set(found.test.texts)
    assert len(found.test) == 6 and len(found.train) == 48 and len(found.train.concepts.unique()) == 24


def test_digits_are_told_by_their_names() -> None:
    from umbel.data.sets.papers.digits4 import _as_digits
    from umbel.data.types import DataSet, Examples

    names = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10")
    examples = Examples(torch.zeros(2, 1, 2, 2), torch.tensor([0, 9]))
    found = _as_digits("svhn", DataSet("svhn", examples, examples, names, (), (0.0,), (1.0,), ""))
    assert found.train.labels.tolist() == [1, 0] and found.class_names[:2] == ("0", "1")
    worded = DataSet("x", examples, examples, (*names[:-1], "cat"), (), (0.0,), (1.0,), "")
    with pytest.raises(data.DataError, match="ten digits as classes"):
        _as_digits("x", worded)
