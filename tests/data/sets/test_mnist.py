"""MNIST from IDX files, and sequences of tasks of it."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.sets.idx_files import write_mnist
from umbel import data
from umbel.data.config import DataConfig
from umbel.data.federation import Federation
from umbel.data.sets import mnist, registry
from umbel.data.sources import hub, npm

pytestmark = pytest.mark.usefixtures("own_cache")


def test_mnist_from_a_folder_or_the_environment(
    mnist_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = data.load(DataConfig(name="mnist", path=str(mnist_folder)), 0)
    assert loaded.name == "mnist" and loaded.class_names == tuple("0123456789")
    assert loaded.train.images.shape == (200, 1, 28, 28) and loaded.test.labels.tolist() == [*range(10)] * 4
    expected = np.random.default_rng(0).integers(0, 256, (200, 28, 28), dtype=np.uint8)
    assert np.array_equal(loaded.train.images[:, 0].numpy(), expected)
    # UMBEL_DATA itself may have Fashion-MNIST, whose files have the same names.
    monkeypatch.setenv("UMBEL_DATA", str(mnist_folder))
    with pytest.raises(data.MissingDataError):
        data.check(DataConfig(name="mnist"))
    shutil.copytree(mnist_folder, tmp_path / "all" / "mnist")
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path / "all"))
    assert torch.equal(data.load(DataConfig(name="mnist"), 5).train.images, loaded.train.images)


def test_mnist_out_of_its_package(own_cache: Path) -> None:
    write_mnist(own_cache / "npm" / mnist.PACKAGE.spec / "data")
    assert len(data.load(DataConfig(name="mnist"), 0).train) == 200
    registry.fetch(DataConfig(name="mnist"), lambda line: pytest.fail(line))  # there is nothing to fetch


def test_missing_mnist_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (None, str(tmp_path)):
        with pytest.raises(data.MissingDataError, match=r"\n    umbel data fetch mnist\n.*data\.path") as caught:
            data.check(DataConfig(name="mnist", path=path))
        assert "data.options.hub=true" in str(caught.value)
    monkeypatch.setattr(hub, "read", lambda source, *_, **named: (source, named["name"]))
    config = DataConfig(name="mnist", options={"hub": True})
    data.check(config)
    assert mnist.load(config, 0) == ("ylecun/mnist", "mnist")
    asked: list[object] = []
    monkeypatch.setattr(npm, "fetch", lambda packages, say: asked.extend(packages))
    registry.fetch(DataConfig(name="mnist"), print)
    assert asked == [mnist.PACKAGE]
    assert len(base64.b64decode(mnist.PACKAGE.integrity.removeprefix("sha512-"), validate=True)) == 64


def test_damaged_mnist_is_named(mnist_folder: Path) -> None:
    damaged = mnist_folder / "train-images-idx3-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(data.DamagedDataError, match="Fetch it again") as caught:
        data.load(DataConfig(name="mnist", path=str(mnist_folder)), 0)
    assert str(damaged) in str(caught.value)


def test_mnist_in_a_sequence_of_permuted_tasks(mnist_folder: Path) -> None:
    config = DataConfig(
        name="mnist", path=str(mnist_folder), partition="permuted_tasks", num_tasks=3, num_clients=4, client_test=0.25
    )
    made = Federation.build(config, 0)
    train = made.client(1).train
    assert train.tasks is not None and made.num_tasks == 3 and len(made.server.test) == 3 * 40
    plain = made.pool.take(made.client_indices(1)[0]).images
    for task in range(3):
        assert torch.equal(train.images[train.tasks == task], data.permute_pixels(plain, task, 0))


def test_mnist_in_a_sequence_of_split_tasks_and_long_tailed(mnist_folder: Path) -> None:
    given = {"name": "mnist", "path": str(mnist_folder), "num_clients": 2, "server_validation": 0.0}
    made = Federation.build(DataConfig(partition="split_tasks", num_tasks=5, **given), 0)  # type: ignore[arg-type]
    for part in (made.client(0).train, made.server.test):
        assert part.tasks is not None and torch.equal(part.tasks, part.labels // 2)
    tail = Federation.build(DataConfig(partition="long_tail", imbalance=10.0, **given), 0)  # type: ignore[arg-type]
    sizes = torch.bincount(tail.pool.labels[tail.partition.indices], minlength=10)
    assert int(sizes.max()) == 20 and int(sizes.min()) == 2
