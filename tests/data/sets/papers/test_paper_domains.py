"""The papers' sets of several domains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.data.sets.papers.hub_form import labelled, load, shade, write
from umbel import data
from umbel.data.config import DataConfig
from umbel.data.sets.papers.digits4 import as_digits
from umbel.data.types import DataSet, Examples

torch.set_num_threads(1)


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
    loaded = load("pacs", tmp_path, image_size=8)
    assert loaded.domain_names == DOMAINS and loaded.class_names == ("dog", "elephant") and loaded.name == "pacs"
    for examples, count in ((loaded.train, 8), (loaded.test, 2)):
        assert examples.domains is not None
        assert torch.bincount(examples.labels + 2 * examples.domains).tolist() == [count] * 8
    assert loaded.natural_ids is loaded.train.domains
    assert loaded.train.domains is not None
    assert torch.equal(loaded.train.images[:, 0, 0, 0].long() // 60, loaded.train.domains)
    again = load("pacs", tmp_path, image_size=8)
    assert torch.equal(again.test.images, loaded.test.images)
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
    loaded = load("office_caltech", tmp_path)
    assert loaded.domain_names == ("amazon", "dslr") and (len(loaded.train), len(loaded.test)) == (16, 4)
    with pytest.raises(data.DataError, match=r"expected pictures of two classes or more as <domain>/<class>"):
        (tmp_path / "empty" / "a" / "b").mkdir(parents=True)
        load("office_caltech", tmp_path / "empty")


def test_digits4_joins_sets_as_domains(tmp_path: Path) -> None:
    digits = [str(number) for number in range(10)]
    for name in ("mnist", "svhn", "usps", "mnist_m"):
        labelled(tmp_path / name, "image", "label", [f"{digit}-x" for digit in digits] if name == "usps" else digits)
    loaded = load("digits4", tmp_path, image_size=8)
    assert loaded.domain_names == ("mnist", "svhn", "usps", "mnist_m") and loaded.class_names == tuple(digits)
    assert loaded.train.domains is not None and torch.bincount(loaded.train.domains).tolist() == [40] * 4
    assert loaded.train.images.shape == (160, 3, 8, 8) and len(loaded.test) == 40
    assert "svhn: non-commercial use" in loaded.licence
    two = load("digits4", tmp_path, domains="usps,mnist", image_size=8)
    assert two.domain_names == ("usps", "mnist") and len(two.train) == 80
    with pytest.raises(data.DataError, match=r"data\.options\.domains must be some of mnist,svhn"):
        load("digits4", tmp_path, domains="mnist,mnist")
    with pytest.raises(data.MissingDataError, match=r"data\.name=synth_digits"):
        load("digits4", None, domains="synth_digits")
    labelled(tmp_path / "svhn", "image", "label", ["a", "b"])
    with pytest.raises(data.DataError, match=r"svhn: expected the ten digits as classes, found a, b"):
        load("digits4", tmp_path)


def test_digits_are_told_by_their_names() -> None:
    names = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10")
    examples = Examples(torch.zeros(2, 1, 2, 2), torch.tensor([0, 9]))
    renamed = as_digits("svhn", DataSet("svhn", examples, examples, names, (), (0.0,), (1.0,), ""))
    assert renamed.train.labels.tolist() == [1, 0] and renamed.class_names[:2] == ("0", "1")
    worded = DataSet("x", examples, examples, (*names[:-1], "cat"), (), (0.0,), (1.0,), "")
    with pytest.raises(data.DataError, match="ten digits as classes"):
        as_digits("x", worded)
