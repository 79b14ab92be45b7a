"""What a site holds out by groups: near to the share, however few there are, and the same in whatever order."""

from __future__ import annotations

import random

import pytest
import torch

from umbel.data.config import DataConfig
from umbel.data.errors import DataError
from umbel.data.holdout import TEST, TRAIN, VALIDATION
from umbel.data.sites.holdout import OPEN, Claims, decided


def roles_of(rows, test=0.0, validation=0.0, seed=0, given=(), roles=None):
    """What each of the rows, (client, group), is for."""
    owners = torch.tensor([owner for owner, _ in rows])
    asked = torch.full((len(rows),), OPEN, dtype=torch.int8) if roles is None else torch.tensor(roles).to(torch.int8)
    claims = Claims(owners, asked, frozenset(given), [group for _, group in rows])
    config = DataConfig(client_test=test, client_validation=validation)
    return decided(claims, range(10, 10 + int(owners.max()) + 1), config, seed).tolist()


def by_group(rows, roles):
    """The one role of each group."""
    sets = {}
    for (_, group), role in zip(rows, roles, strict=True):
        sets.setdefault(group, set()).add(role)
    assert all(len(each) == 1 for each in sets.values())
    return {group: role for group, (role,) in sets.items()}


def drawn(rows, **how):
    """What each group is for."""
    return by_group(rows, roles_of(rows, **how))


def rows_of(**sizes):
    return [(0, group) for group, size in sizes.items() for _ in range(size)]


@pytest.mark.parametrize("seed", range(20))
def test_of_few_groups_one_is_held_out_and_one_stays(seed):
    two = roles_of(rows_of(a=5, b=5), test=0.2, seed=seed)
    assert sorted(two) == [TRAIN] * 5 + [TEST] * 5
    most = roles_of(rows_of(a=5, b=5), test=0.9, seed=seed)
    assert sorted(most) == sorted(two)
    three = drawn(rows_of(a=4, b=4, c=4), test=0.2, validation=0.1, seed=seed)
    assert sorted(three.values()) == [TRAIN, VALIDATION, TEST]
    assert roles_of(rows_of(a=7), test=0.2, validation=0.1, seed=seed) == [TRAIN] * 7
    assert set(roles_of(rows_of(a=4, b=4, c=4), seed=seed)) == {TRAIN}


def test_the_seed_draws_which():
    rows = rows_of(a=5, b=5)
    assert {drawn(rows, test=0.2, seed=seed)["a"] for seed in range(20)} == {TRAIN, TEST}


@pytest.mark.parametrize("seed", range(5))
def test_the_share_is_that_of_examples(seed):
    equal = roles_of(rows_of(**{f"p{n}": 3 for n in range(20)}), test=0.2, validation=0.1, seed=seed)
    assert (equal.count(TEST), equal.count(VALIDATION)) == (12, 6)  # 4 and 2 of 20 groups
    # The large one alone would be more than four times the share of 20.
    large = drawn(rows_of(a=90, b=5, c=5), test=0.2, seed=seed)
    assert large == {"a": TRAIN, "b": TEST, "c": TEST}
    # None brings 2 of 20 nearer, so it is the smallest.
    assert drawn(rows_of(a=9, b=6, c=5), test=0.1, seed=seed) == {
        "a": TRAIN,
        "b": TRAIN,
        "c": TEST,
    }


def test_the_order_of_rows_changes_nothing():
    rows = [(n % 2, f"p{n // 3}") for n in range(60)]
    expected = drawn(rows, test=0.3, validation=0.2, seed=3)
    shuffled = rows.copy()
    random.Random(0).shuffle(shuffled)
    assert shuffled != rows
    assert drawn(shuffled, test=0.3, validation=0.2, seed=3) == expected
    assert set(expected.values()) == {TRAIN, VALIDATION, TEST}


@pytest.mark.parametrize("seed", range(10))
def test_each_client_holds_out_its_share_and_keeps_a_group(seed):
    own = [(client, f"{client}/{n}") for client in range(2) for n in range(10)]
    roles = roles_of(own, test=0.2, seed=seed)
    assert roles[:10].count(TEST) == roles[10:].count(TEST) == 2
    # Clients 1 and 2 have a group each, which client 0 has too: all three can still train.
    both = [(0, "a"), (0, "b"), (0, "c"), (1, "a"), (2, "b")]
    assert drawn(both, test=0.4, seed=seed) == {"a": TRAIN, "b": TRAIN, "c": TEST}


def test_a_split_that_the_site_says_itself_stays():
    rows = rows_of(a=3, b=3, c=3, d=3)
    roles = [TRAIN] * 9 + [TEST] * 3
    made = drawn(rows, test=0.5, validation=0.3, given=["train", "test"], roles=roles)
    assert made["d"] == TEST
    assert sorted(made[group] for group in "abc") == [TRAIN, TRAIN, VALIDATION]
    with pytest.raises(DataError, match="1 of 2 groups are in two of its splits"):
        roles_of(rows_of(a=2, b=2), given=["train", "test"], roles=[TRAIN, TEST, TRAIN, TRAIN])
