"""What sites say of their data, read without trust, and what all agree on.

A site says the names of its classes with their counts, and later sums over its training pictures (`sums.py`).

Shapes: K clients, C classes, I channels.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from umbel.core.refusal import Refusal
from umbel.data.config import DataConfig
from umbel.data.errors import DataError
from umbel.data.federation import Federation
from umbel.data.sites.description import MOST_CLASSES, SPLITS, check_class
from umbel.data.sites.listing import ROLES
from umbel.data.sites.said import line, mapping
from umbel.data.sites.sums import Sums

UNION, INTERSECTION = "union", "intersection"
_MOST = 1 << 50  # pictures of a client
_MOST_TOGETHER = 10**9  # of all clients; the server keeps a number of each
_MOST_NOTICES = 100
_SIMILAR = 0.8  # of names that may be one
Counts = Mapping[str, Mapping[str, int]]  # split -> class -> examples


@dataclass(frozen=True)
class Inventory:
    """What a node says of its clients' data.

    Attributes:
        sites: The site of each client.
        counts: For each client and split the examples of each class.
        notices: What was left out and why, a sentence each.
    """

    sites: Mapping[int, str]
    counts: Mapping[int, Counts]
    notices: tuple[str, ...]

    @classmethod
    def of(cls, held: Federation, clients: Iterable[int]) -> Inventory:
        """Count what a process holds for some clients."""
        site_of = {
            c: site for site, own in zip(held.meta["sites"], held.meta["clients_of_sites"], strict=True) for c in own
        }
        names, num = held.class_names, held.num_classes
        counts: dict[int, Counts] = {}
        for client in clients:
            rows = held.partition.client(client)
            roles = rows.new_zeros(len(rows)) if held.roles is None else held.roles[rows]
            by_split: dict[str, dict[str, int]] = {}
            for split, role in ROLES.items():
                by_class = torch.bincount(held.pool.labels[rows[roles == role]], minlength=num).tolist()
                by_split[split] = {name: count for name, count in zip(names, by_class, strict=True) if count}
            counts[client] = by_split
        return cls({client: site_of[client] for client in counts}, counts, held.notices)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return {
            "sites": {str(client): site for client, site in self.sites.items()},
            "counts": {str(client): {s: dict(c) for s, c in counts.items()} for client, counts in self.counts.items()},
            "notices": list(self.notices),
        }

    @classmethod
    def read(cls, said: Mapping[str, Any], clients: Iterable[int]) -> Inventory:
        """Read what a node says.

        Args:
            said: Its answer.
            clients: Those that it was asked for.

        Raises:
            ValueError: It is of another form, or about other clients.
        """
        wanted = {str(client): client for client in clients}
        sites, counts = mapping(said.get("sites")), mapping(said.get("counts"))
        if sites.keys() != wanted.keys() or counts.keys() != wanted.keys():
            raise ValueError("it does not speak of the clients that it was asked for")
        return cls(
            {wanted[client]: line(site) for client, site in sites.items()},
            {wanted[client]: _counts(own) for client, own in counts.items()},
            read_notices(said),
        )


@dataclass(frozen=True)
class Agreement:
    """What all sites of a run go by.

    Attributes:
        classes: [C] names, in the order of the labels.
        mean: [I] by which pictures are normalised, in units of [0, 1] pixels.
        std: [I] likewise.
        sites: The site of each client.
        counts: For each client and split the examples of each class that is agreed on.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sites: Mapping[int, str]
    counts: Mapping[int, Counts]

    def shared(self) -> dict[str, Any]:
        """Return what every node has to know."""
        return {"classes": list(self.classes), "mean": list(self.mean), "std": list(self.std)}

    def plain(self) -> dict[str, Any]:
        """Return all of it as JSON knows it."""
        return {**self.shared(), **Inventory(self.sites, self.counts, ()).plain()}

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Agreement:
        """Read what `plain` returned.

        Raises:
            KeyError: It is of another form, as ValueError and TypeError also say.
        """
        inventory = Inventory.read(content, map(int, content["sites"]))
        classes, mean, std = (tuple(content[key]) for key in ("classes", "mean", "std"))
        return cls(classes, mean, std, inventory.sites, inventory.counts)

    def table(self) -> Tensor:
        """Return the examples of each client, split and class, [K, 3, C] int64; splits in the order of `SPLITS`."""
        place = {name: label for label, name in enumerate(self.classes)}
        table = torch.zeros(len(self.counts), len(SPLITS), len(self.classes), dtype=torch.int64)
        for client, by_split in self.counts.items():
            for number, split in enumerate(SPLITS):
                for name, count in by_split[split].items():
                    table[client, number, place[name]] = count
        return table


def wants_sums(config: DataConfig) -> bool:
    """Say whether pictures are normalised by what all of them are like; embeddings are not normalised."""
    return not config.mean and not config.encoder


def choose(wanted: list[str] | str, inventories: Sequence[Inventory]) -> tuple[str, ...]:
    """Return the classes that all go by.

    Args:
        wanted: `data.classes`.
        inventories: Of all nodes.

    Raises:
        DataError: A site has a class that the experiment does not know, or fewer than two are left.
    """
    by_site: dict[str, set[str]] = {}
    for inventory in inventories:
        for client, site in inventory.sites.items():
            by_site.setdefault(site, set()).update(*inventory.counts[client].values())
    if not isinstance(wanted, str):
        refuse_unknown(wanted, by_site)
        return tuple(wanted)
    sets = list(by_site.values())
    chosen = sorted(set.union(*sets) if wanted == UNION else set.intersection(*sets))
    if len(chosen) < 2:
        there = "; ".join(f"{site} has {', '.join(sorted(own)[:10])}" for site, own in sorted(by_site.items()))
        raise DataError(
            f"data.classes={wanted} leaves {len(chosen)} classes, expected two or more: {there}.",
            key="data.classes",
            remedy="Name the classes, and let each site's data file map its own to them.",
        )
    return tuple(chosen)


def refuse_unknown(classes: Sequence[str], by_site: Mapping[str, Iterable[str]]) -> None:
    """Refuse sites with classes that the experiment does not know.

    Raises:
        DataError: There are some; the message names sites and classes, and the class that may be meant.
    """
    said, by_letters = [], {name.casefold(): name for name in classes}
    for site, own in sorted(by_site.items()):
        if strange := sorted(set(own) - set(classes)):
            what = f"class {strange[0]!r}" if len(strange) == 1 else f"classes {', '.join(map(repr, strange[:10]))}"
            near = difflib.get_close_matches(strange[0].casefold(), by_letters, 1, _SIMILAR)
            meant = f" (is {strange[0]!r} its {by_letters[near[0]]!r}?)" if near else ""
            said.append(f"site {site} has {what}, which the experiment does not know{meant}")
    if said:
        raise DataError(
            f"{'; '.join(said)}. The experiment has {', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}.",
            key="data.classes",
            remedy="Map it to one of these in the site-data of that site, or leave it out there (null).",
        )


def conclude(
    config: DataConfig, classes: Sequence[str], inventories: Iterable[Inventory], sums: Iterable[Sums]
) -> Agreement:
    """Return what all agree on.

    Args:
        config: The section `data`.
        classes: What `choose` returned.
        inventories: Of all nodes.
        sums: Of all nodes, over the training pictures of these classes; not looked at where the experiment says how
            pictures are normalised.

    Raises:
        DataError: A client has too little; the message names its site.
    """
    chosen, sites, counts = frozenset(classes), dict[int, str](), dict[int, Counts]()
    for inventory in inventories:
        sites |= inventory.sites
        for client, by_split in inventory.counts.items():
            counts[client] = {
                split: {name: count for name, count in own.items() if name in chosen} for split, own in by_split.items()
            }
    for client, by_split in sorted(counts.items()):
        total, train = sum(sum(own.values()) for own in by_split.values()), sum(by_split["train"].values())
        if not train or total < config.min_examples:
            raise DataError(
                f"site {sites[client]}: its client {client} has {total:,} examples, {train:,} of them to train on; "
                f"data.min_examples={config.min_examples}.",
                key="data.min_examples",
                remedy="Lower it, data.client_test or data.client_validation, or leave that client out.",
            )
    sizes = {client: sum(sum(own.values()) for own in by_split.values()) for client, by_split in counts.items()}
    if sum(sizes.values()) > _MOST_TOGETHER:
        largest = max(sizes, key=lambda client: sizes[client])
        raise DataError(
            f"site {sites[largest]}: its client {largest} says that it has {sizes[largest]:,} examples; all "
            f"together may have {_MOST_TOGETHER:,}.",
            key="data.num_clients",
            remedy="Ask that site, or leave it out.",
        )
    mean, std = tuple(config.mean), tuple(config.std)
    if wants_sums(config):
        first, *others = sums
        mean, std = sum(others, first).statistics()
    ordered = dict(sorted(counts.items()))
    return Agreement(tuple(classes), mean, std, {client: sites[client] for client in ordered}, ordered)


def left_out(classes: Sequence[str], inventories: Iterable[Inventory]) -> list[str]:
    """Return a sentence for each class of a site that is none of those that all go by, with its count."""
    lost: dict[tuple[str, str], int] = {}
    for inventory in inventories:
        for client, by_split in inventory.counts.items():
            for own in by_split.values():
                for name in own.keys() - set(classes):
                    key = (inventory.sites[client], name)
                    lost[key] = lost.get(key, 0) + own[name]
    return [
        f"site {site}: left out {count:,} examples of {name!r}, which is none of the classes that all sites have."
        for (site, name), count in sorted(lost.items())
    ]


def alike(classes: Sequence[str]) -> list[str]:
    """Return a sentence for each pair of classes whose names differ by capitals or blanks alone."""
    first: dict[str, str] = {}
    sentences = []
    for name in classes:
        key = "".join(name.casefold().split())
        if key in first:
            sentences.append(
                f"The classes {first[key]!r} and {name!r} differ by capitals or blanks alone: are they one?"
            )
        first.setdefault(key, name)
    return sentences


def read_notices(said: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a node's notices, each a line that a terminal can show.

    Raises:
        ValueError: They are no lines.
    """
    notices = said.get("notices", [])
    if not isinstance(notices, list):
        raise ValueError("its notices are no list of sentences")
    more = (f"and {len(notices) - _MOST_NOTICES:,} notices more.",) if len(notices) > _MOST_NOTICES else ()
    return (*(line(notice, 500) for notice in notices[:_MOST_NOTICES]), *more)


def _counts(said: object) -> dict[str, dict[str, int]]:
    by_split = mapping(said)
    if set(by_split) != set(SPLITS):
        raise ValueError(f"it should count the splits {', '.join(SPLITS)}")
    counts: dict[str, dict[str, int]] = {}
    for split, own in by_split.items():
        classes = mapping(own)
        if len(classes) > MOST_CLASSES:
            raise ValueError(f"it has {len(classes)} classes")
        for name, count in classes.items():
            try:
                check_class(name, "classes")
            except Refusal as error:
                raise ValueError(error.reason) from error
            if type(count) is not int or not 0 < count <= _MOST:
                raise ValueError(f"it counts {str(count)[:40]} examples of a class")
        counts[split] = dict(classes)
    return counts
