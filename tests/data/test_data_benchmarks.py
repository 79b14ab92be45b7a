"""The linear probe and the measurement of partitions: their mathematics, and that their command lines work."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from tests.places import BENCHMARKS
from umbel.core.rng import generator
from umbel.data.texts import Texts
from umbel.data.types import DataSet, Examples

torch.set_num_threads(1)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from script("probe", monkeypatch)


@pytest.fixture
def linear_probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from script("linear_probe", monkeypatch)


@pytest.fixture
def pair_retrieval(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from script("pair_retrieval", monkeypatch)


@pytest.fixture
def partitions(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from script("partitions", monkeypatch)


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Import a script as its own folder would."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module(name)
    for module in {path.stem for path in BENCHMARKS.glob("*.py")} - before:
        sys.modules.pop(module, None)


def normal(*shape: int, purpose: str = "") -> Tensor:
    return torch.randn(*shape, generator=generator(3, purpose=purpose), dtype=torch.float64)


def blobs(count: int, features: int, classes: int, purpose: str, spread: float = 1.0) -> Examples:
    """Examples around a centre for each class, in turn; centres are the same for all purposes."""
    labels = torch.arange(count) % classes
    centres = normal(classes, features, purpose="centres")
    return Examples(centres[labels] + spread * normal(count, features, purpose=purpose), labels)


# --- the probe ------------------------------------------------------------------------------------


def test_a_feature_that_hardly_varies_is_not_blown_up(linear_probe: ModuleType) -> None:
    features = normal(50, 4)
    features[:, 1], features[:, 2] = 5.0, 1e-6 * features[:, 2]
    mean, scale = linear_probe.standardiser(features)
    spread = features.std(0, correction=0)
    floor = 0.1 * spread.square().mean().sqrt()
    assert scale[0] == spread[0] and scale[3] == spread[3]
    assert scale[1] == pytest.approx(float(floor)) and scale[2] == pytest.approx(float(floor))
    assert mean[1] == pytest.approx(5.0)
    assert linear_probe.standardiser(torch.full((3, 2), 7.0))[1].tolist() == [1, 1]


def test_the_fit_is_sklearns(linear_probe: ModuleType) -> None:
    """The mean loss plus penalty / 2 |W|^2 is sklearn's with C = 1 / (N * penalty)."""
    train, penalty = blobs(90, 5, 3, "train"), 0.05
    (weights,) = linear_probe.path(train.images, train.labels, 3, [penalty], iterations=500)
    reference = LogisticRegression(C=1 / (90 * penalty), tol=1e-10, max_iter=5000)
    reference.fit(train.images.numpy(), train.labels.numpy())
    np.testing.assert_allclose(weights[:, :-1].numpy(), reference.coef_, atol=1e-4)
    # Biases are known up to a constant.
    ours, theirs = weights[:, -1].numpy(), reference.intercept_
    np.testing.assert_allclose(ours - ours.mean(), theirs - theirs.mean(), atol=1e-4)


def test_fewer_examples_than_features_give_the_same_model(linear_probe: ModuleType) -> None:
    train, validation = blobs(30, 80, 3, "train"), blobs(30, 80, 3, "validation")
    weights, mean, scale, penalty = linear_probe.fit(train, validation, 3, penalties=(0.02,), iterations=500)
    assert weights.shape == (3, 81) and penalty == 0.02
    (plain,) = linear_probe.path((train.images - mean) / scale, train.labels, 3, [0.02], iterations=500)
    torch.testing.assert_close(weights, plain, atol=1e-3, rtol=0)


def test_the_penalty_is_chosen_on_the_validation_part(linear_probe: ModuleType) -> None:
    """Noise only: no penalty is better than the strongest, which gives the commonest class."""
    train = Examples(normal(120, 20), (torch.arange(120) % 4 > 0).long())
    alike = Examples(normal(400, 20, purpose="other"), torch.ones(400).long())
    assert linear_probe.fit(train, alike, 2)[3] == linear_probe.PENALTIES[0]
    # Where the training examples themselves are asked, a weak penalty wins.
    assert linear_probe.fit(train, train, 2)[3] < linear_probe.PENALTIES[0]


def encoded() -> DataSet:
    """Two domains with the same centres; in the second all features have the other sign."""
    parts = {}
    for split, count in (("train", 240), ("test", 80)):
        examples = blobs(count, 6, 4, split, spread=0.1)
        domains = torch.arange(count) // (count // 2)
        images = torch.where(domains[:, None] == 0, examples.images, -examples.images)
        shift = 0 if split == "train" else 1000
        parts[split] = Examples(images, examples.labels, domains=domains, concepts=torch.arange(count) // 4 + shift)
    return DataSet("made", parts["train"], parts["test"], tuple("abcd"), ("plain", "mirrored"), (), (), "")


def test_probe_of_domains(linear_probe: ModuleType) -> None:
    data_set = encoded()
    draws = [linear_probe.draw(data_set.train, 100, seed, "probe train", 2) for seed in range(2)]
    assert [len(index) for index in draws] == [200, 200]
    assert torch.equal(draws[0], linear_probe.draw(data_set.train, 100, 0, "probe train", 2))
    assert not torch.equal(draws[0], draws[1])
    assert len(linear_probe.draw(data_set.train, 0, 0, "probe train", 2)) == 240
    measured = linear_probe.probe(data_set, draws)
    assert measured["rows"] == ["plain", "mirrored", "all of them"] and measured["columns"] == ["plain", "mirrored"]
    assert measured["test"] == [40, 40] and measured["majority"] == [0.25, 0.25] and measured["features"] == 6
    for domain in (0, 1):
        own, across = measured["accuracy"][domain][domain], measured["accuracy"][domain][1 - domain]
        assert len(own) == 2 and min(own) == 1.0 and max(across) < 0.5
    assert all(0 < count < 100 for count in measured["train"][:2])


def test_no_concept_is_fitted_on_and_chosen_with(linear_probe: ModuleType) -> None:
    kept, held = linear_probe.hold_out(encoded().train, 0)
    assert len(held) == 48 and not set(kept.concepts.tolist()) & set(held.concepts.tolist())


def test_ridge_map_is_the_minimum(pair_retrieval: ModuleType) -> None:
    x, y, strength = normal(30, 4, purpose="x"), normal(30, 3, purpose="y"), 0.3
    ridge_map = pair_retrieval.ridge(x, y, strength)
    gradient = x.T @ (x @ ridge_map - y) + strength * 30 * ridge_map
    assert float(gradient.abs().max()) < 1e-9


def test_recalls_by_hand(pair_retrieval: ModuleType) -> None:
    pairs = torch.eye(5)
    assert pair_retrieval.recalls(pairs, pairs, rank=1) == (1.0, 1.0)
    assert pair_retrieval.recalls(pairs.roll(1, 0), pairs, rank=1) == (0.0, 0.0)
    assert pair_retrieval.recalls(torch.ones(5, 5), pairs, rank=4) == (0.0, 0.0)  # all alike: a tie is no find
    # Image 0 is nearest to text 1, image 1 to its own; text 0 finds its image first, text 1 second.
    images = F.normalize(torch.tensor([[0.5, 0.8], [0.1, 1.0]]), dim=1)
    assert pair_retrieval.recalls(images, torch.eye(2), rank=1) == (0.5, 1.0)


def test_candidates_have_no_caption_and_no_concept_twice(pair_retrieval: ModuleType) -> None:
    texts = Texts.of(["a cat", "A cat ", "a dog", "a cow", "a hen"])
    examples = Examples(torch.zeros(5, 2), torch.zeros(5).long(), concepts=torch.tensor([0, 1, 2, 2, 3]), texts=texts)
    for seed in range(6):
        kept = pair_retrieval.one_each(examples, seed).tolist()
        assert len(kept) == 3 and 4 in kept
        assert len({0, 1} & set(kept)) == 1 and len({2, 3} & set(kept)) == 1


def test_retrieval_finds_what_is_linear(pair_retrieval: ModuleType) -> None:
    """Text embeddings that are a linear map of the images' are found; unrelated ones by chance."""

    def half(count: int, purpose: str, matrix: Tensor | None) -> tuple[Examples, Examples]:
        x = normal(count, 8, purpose=purpose)
        y = normal(count, 5, purpose=f"{purpose} texts") if matrix is None else x @ matrix
        texts = Texts.of(f"{purpose} {number}" for number in range(count))
        labels = torch.zeros(count).long()
        return Examples(x, labels, texts=texts), Examples(y, labels, texts=texts)

    scores = {}
    for name, matrix in (("linear", normal(8, 5, purpose="matrix")), ("unrelated", None)):
        (x, y), (x_test, y_test) = half(200, "train", matrix), half(100, "test", matrix)
        sets = [DataSet("made", a, b, ("one",), (), (), (), "") for a, b in ((x, x_test), (y, y_test))]
        scores[name] = pair_retrieval.retrieve(*sets, [torch.arange(200)], candidates=80)
    assert scores["linear"]["to_text"][0] > 0.95 and scores["linear"]["to_image"][0] > 0.95
    assert scores["unrelated"]["to_text"][0] < 0.4
    assert scores["linear"]["candidates"] == 80 and scores["linear"]["chance"] == 0.125


def test_command_line_of_the_probe(
    probe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "cache"))
    options = ["num_examples=300", "num_test=60", "num_domains=2", "image_size=8", "num_classes=3"]
    words = ["probe.py", "--set", "synthetic", "--encoder", "pixels", "--seeds", "2", "--max-train", "50"]
    for option in options:
        words += ["--option", option]
    results = []
    for name in ("one.json", "two.json"):
        monkeypatch.setattr(sys, "argv", [*words, "--json", str(tmp_path / name)])
        assert probe.main() == 0
        results.append(json.loads((tmp_path / name).read_text(encoding="utf-8")))
    first, second = ({key: value for key, value in result.items() if key != "command"} for result in results)
    assert first == second
    assert first["options"]["num_domains"] == 2 and first["probes"][0]["test"] == [30, 30]
    assert "| domain 0 |" in capsys.readouterr().out
    assert "retrieval" not in first


# --- partitions -----------------------------------------------------------------------------------


def test_a_partition_is_measured(partitions: ModuleType) -> None:
    row = partitions.measure("split_tasks", 10, 600)
    assert row["kept"] == 600 and 0 < row["seconds"] < 10 and row["mb"] >= 0
    larger = row | {"clients": 100, "again": row["again"] * 100}
    lines = partitions.table([row, larger, larger | {"scheme": "iid"}]).splitlines()
    assert lines[3].endswith("| 2.00 |") and lines[4].endswith("|  |")  # ten times the clients, a hundred times as long


def test_every_scheme_has_settings_that_work(partitions: ModuleType) -> None:
    for scheme in partitions.names():
        assert partitions.cut(scheme, 20, 1500)["kept"] > 500
