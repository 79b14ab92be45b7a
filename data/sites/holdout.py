"""What each example of a site is for: as the site says, or held out by the experiment's fractions.

Shapes: N examples of the site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from umbel.core.rng import generator
from umbel.data.config import DataConfig
from umbel.data.errors import DataError
from umbel.data.holdout import TEST, TRAIN, VALIDATION, held_out
from umbel.data.split import share

OPEN = -1  # the role of an example that the fractions decide


@dataclass(frozen=True)
class Claims:
    """What a site says of its examples.

    Attributes:
        owners: [N] int64, the site's client of each, from 0.
        roles: [N] int8, what each is for; `OPEN` where it does not say.
        given: The splits that it says itself.
        groups: [N] which belong together in one split, or None.
    """

    owners: Tensor
    roles: Tensor
    given: frozenset[str]
    groups: Sequence[str] | None


def decided(claims: Claims, numbers: Sequence[int], config: DataConfig, seed: int) -> Tensor:
    """Return what each example of a site is for, [N] int8.

    A split that the site says itself is as it says; of the others each client holds the experiment's fraction out of
    what is left, by the seed, whole groups where there are such.

    Args:
        claims: What the site says.
        numbers: Its clients, in the federation.
        config: The section `data`.
        seed: The seed of the data.

    Raises:
        DataError: The site has a group in two of its own splits.
    """
    validation = 0.0 if "validation" in claims.given else config.client_validation
    test = 0.0 if "test" in claims.given else config.client_test
    free = (claims.roles == OPEN) | (claims.roles == TRAIN)
    if claims.groups is not None:
        return _by_groups(claims, claims.groups, free, {TEST: test, VALIDATION: validation}, seed)
    roles = claims.roles.clone()
    for owner, number in enumerate(numbers):
        rows = (free & (claims.owners == owner)).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator(seed, client=number, purpose="client split"))]
        num_validation, num_test = (int(count) for count in held_out(torch.tensor([len(rows)]), validation, test))
        roles[rows] = TRAIN
        roles[rows[:num_validation]] = VALIDATION
        roles[rows[num_validation : num_validation + num_test]] = TEST
    return roles


def _by_groups(claims: Claims, groups: Sequence[str], free: Tensor, fractions: dict[int, float], seed: int) -> Tensor:
    """Return roles [N] in which a group has one, whichever clients it belongs to.

    Client after client, groups are held out in an order that seed and names draw, each that brings what the client
    holds out nearer to its fraction; where none does, its smallest. Every client keeps a group to train on.

    Args:
        claims: What the site says.
        groups: [N] names.
        free: [N] bool, what may be held out.
        fractions: For each role, the test before the validation, the fraction of a client's examples.
        seed: The seed of the data.
    """
    sizes: dict[int, dict[str, int]] = {}  # client -> group -> examples
    for owner, group, is_free in zip(claims.owners.tolist(), groups, free.tolist(), strict=True):
        if is_free:
            own = sizes.setdefault(owner, {})
            own[group] = own.get(group, 0) + 1
    clients_of: dict[str, list[int]] = {}
    for owner in sorted(sizes):
        for group in sizes[owner]:
            clients_of.setdefault(group, []).append(owner)
    num_kept = {owner: len(own) for owner, own in sizes.items()}
    role_of: dict[str, int] = {}

    def take(group: str, role: int) -> None:
        role_of[group] = role
        for owner in clients_of[group]:
            num_kept[owner] -= 1

    for role, fraction in fractions.items():
        for _, own in sorted(sizes.items()) if fraction else ():
            goal = fraction * sum(own.values())
            held = sum(size for group, size in own.items() if role_of.get(group) == role)
            order = sorted(own.keys() - role_of.keys(), key=lambda group: (share(f"{seed}/{group}"), group))
            for group in order:
                if held + own[group] / 2 < goal and _spared(clients_of[group], num_kept):
                    take(group, role)
                    held += own[group]
            spared = [group for group in order if _spared(clients_of[group], num_kept)]
            if not held and spared:
                take(min(spared, key=own.__getitem__), role)
    drawn = [role_of.get(group, TRAIN) for group in groups]
    roles = torch.where(free, torch.tensor(drawn, dtype=torch.int8), claims.roles)
    _require_apart(groups, roles)
    return roles


def _spared(clients: Sequence[int], num_kept: dict[int, int]) -> bool:
    """Say whether each of a group's clients has another one to train on."""
    return all(num_kept[client] > 1 for client in clients)


def _require_apart(groups: Sequence[str], roles: Tensor) -> None:
    """Refuse groups that a site has in two of its own splits; none is named, since it may be a patient."""
    by_group: dict[str, set[int]] = {}
    for group, role in zip(groups, roles.tolist(), strict=True):
        by_group.setdefault(group, set()).add(role)
    if twice := sum(len(each) > 1 for each in by_group.values()):
        raise DataError(
            f"{twice:,} of {len(by_group):,} groups are in two of its splits.",
            key="columns.group",
            remedy="Put each group into one split, or leave columns.split out.",
        )
