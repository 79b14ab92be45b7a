"""What server and clients hold: splits that are disjoint, tasks, arrays that are shared."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from umbel import data
from umbel.data.config import DataConfig

torch.set_num_threads(1)


def synthetic(**settings: object) -> DataConfig:
    options = {"num_examples": 600, "num_test": 50, "image_size": 8, "num_domains": 2, "num_classes": 5}
    return DataConfig(name="synthetic", options=options, **settings)  # type: ignore[arg-type]


def parts(federation: data.Federation) -> dict[str, set[int]]:
    held = {"server": set(federation.validation_index.tolist())}
    for client in range(federation.num_clients):
        names = ("train", "validation", "test")
        for name, index in zip(names, federation.client_indices(client), strict=True):
            held[f"{client} {name}"] = set(index.tolist())
    return held


@pytest.mark.parametrize("name", ["iid", "dirichlet", "split_tasks", "permuted_tasks", "domain_label"])
def test_all_parts_are_disjoint_and_cover_the_training_set(name: str) -> None:
    config = synthetic(partition=name, client_validation=0.1, client_test=0.25, num_clients=7)
    federation = data.Federation.build(config, 0)
    held = parts(federation)
    for (one, left), (other, right) in combinations(held.items(), 2):
        assert not left & right, f"{one} and {other} share examples"
    assert set().union(*held.values()) == set(range(600))
    assert len(held["server"]) == 60
    times = 5 if name == "permuted_tasks" else 1
    # Stratified by class and domain.
    assert torch.bincount(federation.server.validation.labels).tolist() == [12 * times] * 5
    assert len(federation.server.test) == 50 * times
    for client in range(7):
        whole = federation.client(client)
        assert len(whole.train) == int(federation.num_train[client])
    labels = torch.cat([federation.client(client).train.labels for client in range(federation.num_clients)])
    counted = torch.bincount(labels, minlength=federation.num_classes)
    assert torch.equal(federation.num_train_per_class * federation.partition.repeats, counted)


def test_client_data_are_the_examples_of_its_indices() -> None:
    federation = data.Federation.build(DataConfig(), 3)
    client = federation.client(2)
    train, _, test = federation.client_indices(2)
    assert torch.equal(client.train.images, federation.pool.images[train])
    assert torch.equal(client.test.labels, federation.pool.labels[test])
    assert len(client.validation) == 0 and client.train.images.dtype == torch.uint8
    with pytest.raises(IndexError, match=r"Client 10 asked for"):
        federation.client(10)


def test_federation_follows_its_seed() -> None:
    def fingerprint(seed: int, own: int | None = None) -> list[Tensor]:
        federation = data.Federation.build(DataConfig(partition="dirichlet", seed=own), seed)
        return [federation.validation_index, *federation.client_indices(4)]

    first = fingerprint(0)
    assert all(map(torch.equal, first, fingerprint(0)))
    assert not any(torch.equal(one, two) for one, two in zip(first, fingerprint(1), strict=True) if len(one))
    assert all(map(torch.equal, first, fingerprint(1, own=0)))  # data.seed goes before run.seed


def test_clients_with_few_examples_keep_one_to_train_on() -> None:
    config = synthetic(num_clients=540, client_test=0.5, client_validation=0.4)
    federation = data.Federation.build(config, 0)
    assert federation.num_train.tolist() == [1] * 540
    config = synthetic(num_clients=180, client_test=0.5, client_validation=0.4)
    sizes = [tuple(map(len, data.Federation.build(config, 0).client_indices(k))) for k in range(3)]
    assert sizes == [(1, 0, 2)] * 3


def test_max_train_and_max_test() -> None:
    federation = data.Federation.build(DataConfig(max_train=200, max_test=30, num_clients=4), 0)
    assert len(federation.pool) == 200 and len(federation.server.test) == 30
    assert int(federation.num_train.sum()) < 200


def test_split_tasks_reach_clients_and_server() -> None:
    federation = data.Federation.build(synthetic(partition="split_tasks", num_tasks=2, num_clients=3), 0)
    tasks = torch.tensor([0, 0, 0, 1, 1])
    for examples in (federation.client(1).train, federation.server.test, federation.server.validation):
        assert examples.tasks is not None and torch.equal(examples.tasks, tasks[examples.labels])
        assert set(examples.tasks.tolist()) == {0, 1}
    assert federation.num_tasks == 2


def test_permuted_tasks_show_each_example_in_every_task() -> None:
    federation = data.Federation.build(synthetic(partition="permuted_tasks", num_tasks=3, num_clients=3), 5)
    train = federation.client(0).train
    assert train.tasks is not None and train.domains is not None
    count = len(train) // 3
    assert train.tasks.tolist() == [0] * count + [1] * count + [2] * count
    plain = federation.pool.take(federation.client_indices(0)[0])
    for task in range(3):
        chosen = train.take(train.tasks == task)
        assert torch.equal(chosen.images, data.permute_pixels(plain.images, task, 5))
        assert torch.equal(chosen.labels, plain.labels)
    assert len(federation.server.test) == 150


@pytest.mark.parametrize("name", ["dirichlet", "split_tasks", "permuted_tasks"])
def test_federation_over_read_only_arrays(name: str) -> None:
    built = data.Federation.build(synthetic(partition=name, num_clients=5), 0)
    arrays = built.arrays()
    for array in arrays.values():
        array.setflags(write=False)  # as Ray hands them out
    meta = json.loads(json.dumps(built.meta))
    copied = data.Federation.from_arrays(arrays, meta)
    assert np.shares_memory(copied.pool.images.numpy(), arrays["pool_images"])
    for one, two in ((built.client(3), copied.client(3)), (built.server, copied.server)):
        assert torch.equal(one.test.images, two.test.images) and torch.equal(one.test.labels, two.test.labels)
        for left, right in ((one.test.tasks, two.test.tasks), (one.test.domains, two.test.domains)):
            assert (left is None) == (right is None)
            assert left is None or right is None or torch.equal(left, right)
    assert copied.num_train.tolist() == built.num_train.tolist()
    assert (copied.mean, copied.class_names, copied.image_size) == (built.mean, built.class_names, 8)
    assert (copied.num_classes, copied.in_channels, copied.domain_names) == (5, 1, ("domain 0", "domain 1"))


def test_a_hundred_thousand_clients() -> None:
    options = {"num_examples": 400_000, "num_test": 10, "image_size": 2}
    config = DataConfig(name="synthetic", options=options, num_clients=100_000, partition="iid")
    federation = data.Federation.build(config, 0)
    assert federation.num_train.shape == (100_000,) and int(federation.num_train.min()) >= 1
    assert len(federation.client(99_999).train) == int(federation.num_train[99_999])
