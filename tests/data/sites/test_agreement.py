"""What sites agree on: as if their pictures lay in one place, and nothing that cannot be is taken from anybody."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from umbel.data.config import DataConfig
from umbel.data.errors import DataError
from umbel.data.sites.agreement import Agreement, Inventory, alike, choose, conclude, left_out, read_notices
from umbel.data.sites.sums import Sums, of_pictures


def pictures(count: int, channels: int, side: int, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), generator=source, dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [1, 7, 224])
def test_pooled_normalisation_is_the_central_one(channels: int, side: int) -> None:
    """Sites of unequal sizes, one of them with one picture, in any order."""
    sizes = [1, 17, 4, 40] if side < 224 else [1, 5, 2]
    sites = [pictures(size, channels, side, seed) // (1 + seed) for seed, size in enumerate(sizes)]
    whole = torch.cat(sites).numpy().astype(np.float64).swapaxes(0, 1).reshape(channels, -1) / 255
    orders = (range(len(sites)), [2, 0, *range(3, len(sites)), 1])
    results = []
    for order in orders:
        total = of_pictures(sites[order[0]])
        for index in order[1:]:
            total = total + of_pictures(sites[index])
        results.append(total.statistics())
    assert results[0] == results[1]
    mean, std = results[0]
    assert np.allclose(mean, whole.mean(1), rtol=0, atol=1e-12)
    assert np.allclose(std, whole.std(1), rtol=0, atol=1e-12)


def test_a_constant_channel_has_the_deviation_one() -> None:
    mean, std = of_pictures(torch.full((3, 1, 2, 2), 51, dtype=torch.uint8)).statistics()
    assert (mean, std) == ((0.2,), (1.0,))


def test_sums_are_exact_where_floating_numbers_are_not() -> None:
    big = Sums(1 << 60, ((1 << 60) + 1,), ((1 << 60) + 3,))
    assert (big + Sums(1, (1,), (1,))).sums == ((1 << 60) + 2,)
    again = Sums.read({"sums": big.plain()}, 1 << 60, 1)
    assert again == big


GOOD: dict[str, Any] = {"num_pixels": "16", "sums": ["400"], "squares": ["12000"]}


@pytest.mark.parametrize(
    "change",
    [
        {"num_pixels": "17"},
        {"num_pixels": 16},
        {"sums": ["400", "400"]},
        {"sums": ["-400"]},
        {"sums": ["4e2"]},
        {"sums": ["9" * 5000]},
        {"squares": ["102001"]},  # more than 255 times the sum
        {"squares": ["9999"]},  # less than the square of the mean
        {"sums": ["4081"], "squares": ["1040655"]},  # brighter than white
        {"sums": None},
    ],
)
def test_sums_that_no_pictures_have_are_not_taken(change: dict[str, Any]) -> None:
    assert Sums.read({"sums": GOOD}, 16, 1).sums == (400,)
    with pytest.raises(ValueError, match=r"^it |are no sums of 16 pixels"):
        Sums.read({"sums": {**GOOD, **change}}, 16, 1)


def said(**change: Any) -> dict[str, Any]:
    counts = {"train": {"cat": 3}, "validation": {}, "test": {"dog": 1}}
    return {"sites": {"0": "north"}, "counts": {"0": {**counts, **change}}, "notices": []}


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"cat": -1}},
        {"train": {"cat": True}},
        {"train": {"cat": 10**400}},
        {"train": {"cat": "3"}},
        {"train": {"c\nat": 3}},
        {"train": {"c" * 201: 3}},
        {"train": {str(number): 1 for number in range(100_001)}},
        {"train": []},
        {"extra": {}},
    ],
)
def test_counts_that_cannot_be_are_not_taken(change: dict[str, Any]) -> None:
    assert Inventory.read(said(), [0]).counts[0]["test"] == {"dog": 1}
    with pytest.raises(ValueError, match=r"it |no name of a class"):
        Inventory.read(said(**change), [0])


def test_a_node_speaks_of_its_own_clients_alone() -> None:
    with pytest.raises(ValueError, match="clients that it was asked for"):
        Inventory.read(said(), [0, 1])


def test_what_a_terminal_would_obey_is_not_shown() -> None:
    content = said() | {"notices": ["\x1b[2Jgone"], "sites": {"0": "no\x1brth"}}
    inventory = Inventory.read(content, [0])
    assert inventory.notices == ("?[2Jgone",)
    assert inventory.sites[0] == "no?rth"


def holding(site: str, client: int, **train: int) -> Inventory:
    counts = {"train": train, "validation": {}, "test": {}}
    return Inventory({client: site}, {client: counts}, ())


NORTH, SOUTH = holding("north", 0, cat=2, dog=1, zebra=4), holding("south", 1, ant=5, cat=3, dog=1)


def test_a_site_with_another_class_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"site south has class 'ant', which the experiment does not know\.") as refused:
        choose(["cat", "dog", "zebra"], [NORTH, SOUTH])
    assert refused.value.key == "data.classes"
    assert "site-data" in refused.value.remedy
    assert choose(["zebra", "dog", "cat", "ant"], [SOUTH, NORTH]) == ("zebra", "dog", "cat", "ant")


def test_all_sites_are_refused_at_once_and_a_class_that_may_be_meant_is_named() -> None:
    with pytest.raises(DataError) as refused:
        choose(["Zebra", "ox"], [NORTH, SOUTH])
    assert "site north has classes 'cat', 'dog', 'zebra'" in refused.value.reason
    assert "site south has classes 'ant', 'cat', 'dog'" in refused.value.reason
    with pytest.raises(DataError, match=r"\(is 'zebra' its 'Zebra'\?\)"):
        choose(["cat", "dog", "Zebra"], [NORTH])


def test_union_and_intersection_are_in_the_order_of_the_alphabet() -> None:
    assert choose("union", [NORTH, SOUTH]) == ("ant", "cat", "dog", "zebra")
    assert choose("intersection", [NORTH, SOUTH]) == ("cat", "dog")
    assert left_out(("cat", "dog"), [NORTH, SOUTH]) == [
        "site north: left out 4 examples of 'zebra', which is none of the classes that all sites have.",
        "site south: left out 5 examples of 'ant', which is none of the classes that all sites have.",
    ]
    with pytest.raises(DataError, match=r"leaves 1 classes, expected two or more: north has cat.*; south has ant"):
        choose("intersection", [NORTH, SOUTH, holding("west", 2, cat=1)])


def test_names_that_differ_by_capitals_alone_are_said() -> None:
    assert alike(["cat", "Cat ", "dog"]) == [
        "The classes 'cat' and 'Cat ' differ by capitals or blanks alone: are they one?"
    ]


def test_an_agreement_comes_back_as_it_was_written() -> None:
    config = DataConfig(name="sites", num_clients=2, channels=1, image_size=2)
    sums = [of_pictures(pictures(3, 1, 2, 0))]
    agreed = conclude(config, ("cat", "dog"), [SOUTH, NORTH], sums)
    assert agreed.table().tolist() == [[[2, 1], [0, 0], [0, 0]], [[3, 1], [0, 0], [0, 0]]]
    assert (agreed.mean, agreed.std) == sums[0].statistics()
    assert Agreement.read(agreed.plain()) == agreed


def test_a_client_without_anything_to_train_on_is_refused() -> None:
    config = DataConfig(name="sites", num_clients=2, mean=[0.5], std=[0.5])
    with pytest.raises(DataError, match="site south: its client 1 has 0 examples"):
        conclude(config, ("zebra", "ox"), [NORTH, SOUTH], ())
    few = DataConfig(min_examples=10, mean=[0.5], std=[0.5])
    with pytest.raises(DataError, match=r"its client 1 has 9 examples, 9 of them to train on; data.min_examples=10"):
        conclude(few, ("ant", "cat", "dog"), [SOUTH], ())


def test_more_than_a_server_can_count_is_refused_by_name() -> None:
    claims = [holding("north", 0, cat=3), holding("south", 1, cat=10**13)]
    config = DataConfig(name="sites", num_clients=2, mean=[0.5], std=[0.5])
    with pytest.raises(DataError, match="site south: its client 1 says that it has 10,000,000,000,000 examples"):
        conclude(config, ["cat"], claims, [])


def test_notices_beyond_a_hundred_are_counted() -> None:
    assert read_notices({"notices": [str(number) for number in range(100)]})[-1] == "99"
    told = read_notices({"notices": [str(number) for number in range(120)]})
    assert len(told) == 101 and told[-1] == "and 20 notices more."
    with pytest.raises(ValueError, match="no list"):
        read_notices({"notices": "one"})
