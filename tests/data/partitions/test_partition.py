"""Partitions: what each promises, checked on label arrays; no images."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from umbel.core.names import UnknownNameError
from umbel.data import partition
from umbel.data.config import DataConfig
from umbel.data.errors import PartitionError
from umbel.data.partition import Partition, build, class_tasks, long_tail_counts, names

torch.set_num_threads(1)

N, C, D = 3000, 10, 5
LABELS = torch.arange(N) % C
DOMAINS = torch.arange(N) // C % D
PEOPLE = torch.arange(N) // 50  # 60 people with 50 examples each
EVERYTHING = {
    "iid",
    "dirichlet",
    "quantity_skew",
    "natural_id",
    "domain",
    "split_tasks",
    "permuted_tasks",
    "domain_label",
}


def cut(seed: int = 0, **settings: object) -> Partition:
    config = DataConfig(num_clients=settings.pop("num_clients", 10), **settings)  # type: ignore[arg-type]
    return build(config, LABELS, DOMAINS, PEOPLE, seed)


def skew(clients: Partition, labels: Tensor = LABELS) -> float:
    """Mean distance in total variation between a client's classes and the pool's."""
    counts = clients.counts(labels, C).double()
    mine = counts / counts.sum(1, keepdim=True).clamp_min(1)
    pool = torch.bincount(labels, minlength=C).double() / len(labels)
    return float((mine - pool).abs().sum(1).mean() / 2)


@pytest.mark.parametrize("name", names())
def test_every_partition_is_disjoint_and_deterministic(name: str) -> None:
    clients = cut(partition=name)
    assert clients.num_clients == 10
    assert len(clients.indices.unique()) == len(clients.indices), "an example belongs to two clients"
    assert int(clients.indices.min()) >= 0 and int(clients.indices.max()) < N
    assert int(clients.sizes.min()) >= 1
    assert clients.offsets[0] == 0 and int(clients.offsets[-1]) == len(clients.indices)
    assert torch.equal(torch.cat([clients.client(k) for k in range(10)]), clients.indices)
    assert clients.counts(LABELS, C).sum() == len(clients.indices)

    again, other = cut(partition=name), cut(partition=name, seed=1)
    assert torch.equal(again.indices, clients.indices) and torch.equal(again.offsets, clients.offsets)
    assert not torch.equal(other.indices, clients.indices)


@pytest.mark.parametrize("name", sorted(EVERYTHING))
def test_covers_the_whole_pool(name: str) -> None:
    assert torch.equal(cut(partition=name).indices.sort().values, torch.arange(N))


def test_counts_are_those_of_a_loop() -> None:
    clients = cut(partition="dirichlet", alpha=0.3)
    loop = torch.stack([torch.bincount(LABELS[clients.client(k)], minlength=C) for k in range(10)])
    assert torch.equal(clients.counts(LABELS, C), loop)


def test_client_out_of_range() -> None:
    with pytest.raises(IndexError, match=r"Client 10 asked for, but clients are numbered 0\.\.9"):
        cut().client(10)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for name in names():
        cut(partition=name)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_dirichlet_skew_falls_as_alpha_grows() -> None:
    for name in ("dirichlet", "long_tail", "domain_label"):
        skews = [skew(cut(partition=name, alpha=alpha)) for alpha in (0.1, 1.0, 100.0)]
        assert skews[0] > skews[1] + 0.1 and skews[1] > skews[2] + 0.1, (name, skews)
    assert skew(cut(partition="iid")) < 0.1


def test_dirichlet_marginal_has_its_closed_form() -> None:
    """E of a client's squared share of a class is (alpha + 1) / (K (K alpha + 1))."""
    alpha, clients = 0.5, 20
    shares = [
        cut(partition="dirichlet", alpha=alpha, num_clients=clients, min_examples=0, seed=seed)
        .counts(LABELS, C)
        .double()
        / (N / C)
        for seed in range(10)
    ]
    expected = (alpha + 1) / (clients * (clients * alpha + 1))
    assert float(torch.stack(shares).square().mean()) == pytest.approx(expected, rel=0.15)


def test_shards_have_few_classes_and_equal_sizes() -> None:
    clients = cut(partition="shards", num_clients=50, shards_per_client=2)
    assert clients.sizes.tolist() == [60] * 50
    assert int((clients.counts(LABELS, C) > 0).sum(1).max()) <= 2
    # 7 clients x 2 shards of 214: the rest, 4 examples, is left out.
    assert cut(partition="shards", num_clients=7).sizes.tolist() == [428] * 7


@pytest.mark.parametrize("classes", [1, 3])
def test_pathological_gives_exactly_so_many_classes(classes: int) -> None:
    clients = cut(partition="pathological", num_clients=20, classes_per_client=classes)
    assert (clients.counts(LABELS, C) > 0).sum(1).tolist() == [classes] * 20
    assert len(clients.indices) == N  # 20 clients use all 10 classes


def test_quantity_skew_is_in_sizes_not_in_classes() -> None:
    spread = [
        float(cut(partition="quantity_skew", alpha=alpha, min_examples=5).sizes.double().std())
        for alpha in (0.2, 2.0, 200.0)
    ]
    assert spread[0] > spread[1] > spread[2]
    clients = cut(partition="quantity_skew", alpha=0.2, min_examples=17, num_clients=100)
    assert int(clients.sizes.min()) >= 17 and int(clients.sizes.sum()) == N
    largest = int(clients.sizes.argmax())
    assert float(clients.counts(LABELS, C)[largest].double().std()) < 0.6 * int(clients.sizes[largest]) / C


def test_natural_ids_stay_whole() -> None:
    one_each = cut(partition="natural_id", num_clients=60)
    for client in range(60):
        assert set(PEOPLE[one_each.client(client)].tolist()) == {client}
    grouped = cut(partition="natural_id", num_clients=7)
    people = [set(PEOPLE[grouped.client(client)].tolist()) for client in range(7)]
    assert sum(map(len, people)) == 60 and {len(group) for group in people} == {8, 9}


def test_domains() -> None:
    assert [set(DOMAINS[cut(partition="domain", num_clients=5).client(k)].tolist()) for k in range(5)] == [
        {0}, {1}, {2}, {3}, {4}
    ]  # fmt: skip
    for name in ("domain", "domain_label"):
        more = cut(partition=name, num_clients=12)
        for client in range(12):
            assert set(DOMAINS[more.client(client)].tolist()) == {client % 5}
    fewer = cut(partition="domain", num_clients=2)
    assert [set(DOMAINS[fewer.client(k)].tolist()) for k in range(2)] == [{0, 2, 4}, {1, 3}]


def test_long_tail_counts_are_those_of_cifar_lt() -> None:
    assert long_tail_counts(5000, 100, 10) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(long_tail_counts(5000, 100, 10)) == 12406
    assert sum(long_tail_counts(500, 100, 100)) == 10847
    assert sum(long_tail_counts(5000, 50, 10)) == 13996
    assert long_tail_counts(300, 1, 4) == [300] * 4
    assert long_tail_counts(7, 10, 1) == [7]


def test_long_tail_has_the_profile() -> None:
    clients = cut(partition="long_tail", imbalance=20, alpha=1.0)
    assert clients.counts(LABELS, C).sum(0).tolist() == long_tail_counts(N // C, 20, C)
    # Without imbalance everything stays.
    assert len(cut(partition="long_tail", imbalance=1, alpha=1.0).indices) == N
    # A class that has less than its share keeps all.
    labels = torch.cat([torch.zeros(100), torch.ones(10), torch.full((40,), 2)]).long()
    config = DataConfig(partition="long_tail", imbalance=4, alpha=10, num_clients=2)
    assert build(config, labels, None, None, 0).counts(labels, 3).sum(0).tolist() == [100, 10, 25]


def test_split_tasks() -> None:
    assert class_tasks(10, 5).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert class_tasks(10, 3).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    clients = cut(partition="split_tasks", num_tasks=3, num_clients=7)
    assert clients.tasks is not None
    assert torch.equal(clients.tasks, class_tasks(10, 3)[LABELS[clients.indices]])
    per_task = torch.bincount(clients.owners() * 3 + clients.tasks, minlength=21).view(7, 3)
    expected = torch.tensor([1200, 900, 900]) / 7
    assert bool(((per_task - expected).abs() < 1).all())
    assert int(clients.sizes.max() - clients.sizes.min()) <= 1


def test_permuted_tasks_repeat_every_example() -> None:
    clients = cut(partition="permuted_tasks", num_tasks=4)
    assert clients.repeats == 4 and clients.tasks is None and clients.sizes.tolist() == [300] * 10
    assert cut(partition="iid").repeats == 1


def test_top_up_takes_from_the_largest_and_no_more_than_needed() -> None:
    config = DataConfig(partition="dirichlet", alpha=0.05, num_clients=300, min_examples=3)
    plain = build(replace(config, min_examples=0), LABELS, None, None, 0)
    filled = build(replace(config, top_up=True), LABELS, None, None, 0)
    assert int(plain.sizes.min()) == 0 and int(filled.sizes.min()) == 3
    assert torch.equal(filled.indices.sort().values, torch.arange(N))
    poor = plain.sizes < 3
    assert bool((filled.sizes[poor] == 3).all())
    givers = filled.sizes < plain.sizes
    # The largest are cut down to one level, give or take one.
    level = filled.sizes[givers]
    assert int(level.max() - level.min()) <= 1 and int(filled.sizes.max()) == int(level.max())


def test_top_up_is_refused_where_it_would_break_a_promise() -> None:
    with pytest.raises(PartitionError, match=r"data\.top_up=true works with data\.partition=dirichlet or long_tail"):
        cut(partition="domain_label", top_up=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"partition": "iid", "num_clients": 1000, "min_examples": 4},
            r"data\.num_clients=1000 with data\.min_examples=4 needs at least 4000 examples, but the "
            r"training pool has 3000\. Lower data\.num_clients or data\.min_examples, or raise "
            r"data\.max_train\.",
        ),
        (
            {"partition": "dirichlet", "alpha": 0.05, "num_clients": 300},
            r"data\.partition=dirichlet left \d+ of 300 clients with fewer than data\.min_examples=1 "
            r"examples after 10 draws \(the smallest has 0\)\. Lower data\.num_clients or "
            r"data\.min_examples, raise "
            r"data\.alpha, or set data\.top_up=true\.",
        ),
        (
            {"partition": "shards", "num_clients": 100, "shards_per_client": 40},
            r"asks for 4000 shards out of 3000",
        ),
        ({"partition": "shards", "num_clients": 1000, "min_examples": 3}, r"left 1000 of 1000 clients"),
        ({"partition": "pathological", "classes_per_client": 11}, r"is more than the 10 classes"),
        (
            {"partition": "pathological", "num_clients": 2999},
            r"gives class \d to \d+ clients, and it has 300 examples\. Lower data\.num_clients or",
        ),
        ({"partition": "natural_id", "num_clients": 61}, r"more than the 60 natural ids"),
        ({"partition": "domain_label", "num_clients": 4}, r"fewer than the 5 domains"),
        ({"partition": "split_tasks", "num_tasks": 11}, r"data\.num_tasks=11 is more than the 10 classes"),
        (
            {"partition": "split_tasks", "num_tasks": 10, "num_clients": 301},
            r"Task 0 has 300 examples, fewer than",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_key(settings: dict[str, object], message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        cut(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["natural_id", "domain", "domain_label"])
def test_partitions_that_need_more_than_labels_say_so(name: str) -> None:
    with pytest.raises(PartitionError, match=rf"data\.partition={name} needs a data set with .*digits has none"):
        build(DataConfig(partition=name), LABELS, None, None, 0)


@pytest.mark.parametrize("name", names())
def test_a_partition_reads_the_keys_that_it_states_and_no_other(name: str) -> None:
    usual = {"partition": name, "imbalance": 2.0}  # without an imbalance a long tail is flat
    others = {"alpha": 5.0, "classes_per_client": 3, "shards_per_client": 3, "imbalance": 9.0, "num_tasks": 2}
    before = cut(**usual)
    read = {key for key, value in others.items() if not same(before, cut(**usual | {key: value}))}
    try:
        partition.check(DataConfig(partition=name, top_up=True))
        read.add("top_up")
    except PartitionError as error:
        assert error.key == "data.top_up" and error.remedy == "Set data.top_up=false."
    assert read == set(partition.keys(name)) and len(partition.keys(name)) == len(read)


def same(one: Partition, other: Partition) -> bool:
    if one.repeats != other.repeats or not torch.equal(one.offsets, other.offsets):
        return False
    tasks = (torch.zeros(0) if each.tasks is None else each.tasks for each in (one, other))
    return torch.equal(one.indices, other.indices) and torch.equal(*tasks)


def test_what_sets_tasks_apart() -> None:
    apart = {name: partition.tasks(name) for name in names() if partition.tasks(name) != "none"}
    assert apart == {"split_tasks": "classes", "permuted_tasks": "pixels"}
    assert all("num_tasks" in partition.keys(name) for name in apart)
    for ask in (partition.keys, partition.tasks):
        with pytest.raises(UnknownNameError, match=r"data\.partition.*'dirichlet'") as caught:
            ask("dirichle")
        assert caught.value.key == "data.partition"


def test_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown partition 'dirichle' \(key data\.partition\).*'dirichlet'"):
        cut(partition="dirichle")
    assert all(partition.describe(name) for name in names())


def test_pool_smaller_than_its_classes() -> None:
    """Classes that the pool lacks are no trouble."""
    labels = torch.tensor([0, 4, 4, 0, 4, 0, 4, 4])
    for name in ("iid", "dirichlet", "long_tail", "pathological", "shards"):
        config = DataConfig(partition=name, num_clients=2, alpha=50, classes_per_client=1)
        clients = build(config, labels, None, None, 0, num_classes=6)
        assert clients.counts(labels, 6).shape == (2, 6)


@pytest.mark.parametrize("name", names())
def test_a_thousand_clients_in_seconds(name: str) -> None:
    labels = torch.arange(60_000) % C
    config = DataConfig(partition=name, num_clients=1000)
    started = time.perf_counter()
    clients = build(config, labels, torch.arange(60_000) // C % D, torch.arange(60_000) // 60, 0)
    seconds = time.perf_counter() - started
    print(f"{name}: 60,000 examples over 1,000 clients in {seconds:.2f} s")
    assert clients.num_clients == 1000
    assert seconds < 10
