"""What sites hold, as a federation: first listed, then with its pictures.

Class names are those of the experiment, as far as the sites' files say them; their numbers are in the order of the
alphabet until all agree (`umbel.data.sites.agreed`).

Shapes: N rows, K clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from umbel.core.refusal import Refusal
from umbel.data.config import DataConfig
from umbel.data.errors import DataError
from umbel.data.federation import Federation
from umbel.data.holdout import TEST, TRAIN, VALIDATION
from umbel.data.partition import Partition
from umbel.data.pictures import Form, mode_of
from umbel.data.shuffled import drawn_clients
from umbel.data.sites import sources
from umbel.data.sites.description import MOST_CLASSES, SPLITS, USUAL_SPLITS, SiteData, check, check_class
from umbel.data.sites.errors import SITE_DATA, named
from umbel.data.sites.holdout import OPEN, Claims, decided
from umbel.data.sites.rows import Rows
from umbel.data.sites.watched import Watched
from umbel.data.types import Examples

ROLES: Mapping[str, int] = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
_SHOWN = 5


@dataclass(frozen=True)
class Site:
    """One site's rows that take part.

    Attributes:
        name: What it is called.
        rows: All of its rows.
        form: What its pictures are made to be.
        kept: [N] row numbers, ascending.
        classes: [N] the experiment's name of the class of each.
        owners: [N] int64, the site's client of each, from 0.
        num_clients: Its clients.
        roles: [N] int8, what each is for; -1 where it does not say.
        given: The splits that it says itself.
        notices: What was left out and why, a sentence each; no file is named.
        file: What its data file is called in messages.
        watched: The files that all this was read from.
    """

    name: str
    rows: Rows
    form: Form
    kept: Sequence[int]
    classes: Sequence[str]
    owners: Tensor
    num_clients: int
    roles: Tensor
    given: frozenset[str]
    notices: tuple[str, ...]
    file: str
    watched: tuple[Watched, ...]


Opened = tuple[Tensor, tuple[str, ...], tuple[str, ...]]


class Listing:
    """What the sites of this process hold.

    Args:
        bare: As a federation without pictures: images [N, 0].
        read: Returns the pictures, [N, C, S, S] uint8, and what is to be said of them, to all and at the site.
        private: What was left out, where files are named: for the site alone.
        watched: The files that all this was read from; none where others have read them.

    Attributes:
        bare: As given.
        private: As given; once pictures have been read, also what they were like.
    """

    def __init__(
        self,
        bare: Federation,
        read: Callable[[], Opened],
        private: Sequence[str] = (),
        watched: Sequence[Watched] = (),
    ) -> None:
        self.bare = bare
        self.private = tuple(private)
        self._read = read
        self._watched = watched

    @property
    def current(self) -> bool:
        """Whether the files are still what was listed."""
        return all(each.unchanged for each in self._watched)

    @cached_property
    def whole(self) -> Federation:
        """With the pictures.

        Raises:
            DataError: A picture cannot be read; the message names it.
        """
        images, notices, private = self._read()
        self.private += private
        meta = {**self.bare.meta, "notices": [*self.bare.notices, *notices]}
        return replace(self.bare, pool=replace(self.bare.pool, images=images), meta=meta)


def read_site(site: SiteData, form: Form, seed: int, file: str = SITE_DATA) -> Site:
    """List a site's rows, and decide which take part.

    Args:
        site: What its file says.
        form: What the experiment wants pictures to be.
        seed: The seed of the data.
        file: What that file is called in messages.

    Raises:
        SiteError: Something in it cannot be, or cannot be read; the message names the site.
    """
    try:
        check(site)
        made = site_of(site, replace(form, white=site.white, white_key="white"), seed, file)
        _check_classes(made.classes)
        return made
    except (Refusal, OSError) as error:
        raise named(site.name, error, file) from error


def site_of(site: SiteData, form: Form, seed: int, file: str = SITE_DATA) -> Site:
    """List a site's rows, and decide which take part; arguments as of `read_site`.

    Raises:
        DataError: Something in it cannot be.
        OSError: Something of it cannot be read.
    """
    before = Watched.now(sources.places(site))
    rows = sources.rows(site, seed)
    watched = (before, Watched.now(rows.files))
    notices: list[str] = []
    classes = [site.classes.get(label, label) for label in rows.labels]
    splits = _splits(site, rows)
    clients, owners = _clients(site, rows)
    # A row is left out for the first of these reasons that holds, and counted there.
    reasons: dict[str, int] = {}
    kept = []
    for row, (name, split, owner) in enumerate(zip(classes, splits, owners, strict=True)):
        reason = ""
        if name is None:
            reason = f"of its class {rows.labels[row]!r}"
        elif split is None:
            reason = f"of its split {(rows.splits or ())[row]!r}"
        elif owner < 0:
            reason = "of none of its clients"
        if reason:
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            kept.append(row)
    notices += [f"site {site.name}: left out {count:,} examples {what}." for what, count in reasons.items()]
    for name in sorted(site.classes.keys() - set(rows.labels)):
        notices.append(f"site {site.name}: its file maps the class {name!r}, of which it has no example.")
    if not kept:
        raise DataError("no example is left.", key="classes", remedy="Leave fewer out.")
    roles = torch.tensor([ROLES.get(str(splits[row]), OPEN) for row in kept], dtype=torch.int8)
    return Site(
        name=site.name,
        rows=rows,
        form=form,
        kept=kept,
        classes=[str(classes[row]) for row in kept],
        owners=torch.tensor([owners[row] for row in kept], dtype=torch.int64),
        num_clients=len(clients) or 1,
        roles=roles,
        given=frozenset(str(splits[row]) for row in kept) & set(SPLITS),
        notices=tuple(notices),
        file=file,
        watched=watched,
    )


def _check_classes(classes: Sequence[str]) -> None:
    """Refuse what the server would refuse of classes, here, where somebody can do something about it."""
    distinct = sorted(set(classes))
    if len(distinct) > MOST_CLASSES:
        raise DataError(
            f"it has {len(distinct):,} classes, and {MOST_CLASSES:,} are the most that there can be.",
            key="columns.label",
            remedy="Is this the column of the labels?",
        )
    for name in distinct:
        try:
            check_class(name, "classes")
        except DataError as error:
            raise DataError(
                error.reason,
                key=error.key,
                remedy=f"{error.remedy} Or say in classes what it is to the experiment; null leaves it out.",
            ) from error


def _splits(site: SiteData, rows: Rows) -> list[str | None]:
    """Return the split of each row by our names; "" where the site does not say, None where it leaves one out."""
    if rows.splits is None:
        return [""] * len(rows.labels)
    known = {name: site.splits.get(name, USUAL_SPLITS.get(name.lower(), "")) for name in set(rows.splits)}
    if strange := sorted(name for name, split in known.items() if split == ""):
        raise DataError(
            f"expected the splits train, validation and test, found {', '.join(map(repr, strange[:_SHOWN]))}.",
            key="splits",
            remedy=f"Say what it is, splits: {{{strange[0]}: test}}, or leave it out with null.",
        )
    return [known[name] for name in rows.splits]


def _clients(site: SiteData, rows: Rows) -> tuple[tuple[str, ...], list[int]]:
    """Return the names of a site's clients, and the client of each row; -1 where it is of none of them."""
    if rows.clients is None:
        return (), [0] * len(rows.labels)
    names = tuple(site.clients) or tuple(sorted(set(rows.clients)))
    if lacking := sorted(set(names) - set(rows.clients)):
        there = ", ".join(map(repr, sorted(set(rows.clients))[:_SHOWN]))
        raise DataError(
            f"it has no example of its client {lacking[0]!r}; it has those of {there}.",
            key="clients",
            remedy="Name the values that there are.",
        )
    place = {name: number for number, name in enumerate(names)}
    return names, [place.get(name, -1) for name in rows.clients]


def gather(
    sites: Sequence[tuple[Site, Sequence[int]]], config: DataConfig, seed: int, watched: Iterable[Watched] = ()
) -> Listing:
    """Return what sites hold together.

    Args:
        sites: Each with the numbers of its clients, ascending.
        config: The section `data`.
        seed: The seed of the data.
        watched: What else they were read from.

    Raises:
        DataError: A site has more or fewer clients than numbers.
    """
    for site, numbers in sites:
        if len(numbers) != site.num_clients:
            what = f"it has {site.num_clients} {'client' if site.num_clients == 1 else 'clients'}, and should have"
            error = DataError(
                f"{what} {len(numbers)}.",
                remedy="Say which client an example belongs to (columns.client, or a layout with the level client), "
                "and name as many (clients).",
            )
            raise named(site.name, error, site.file, f"{what} {len(numbers)}")
    known = [site.name for site, _ in sites]
    if len(set(known)) < len(known):
        raise DataError(f"Two sites have one name: {', '.join(known)}.", key="data.sites", remedy="Set name in each.")
    names = sorted({name for site, _ in sites for name in site.classes})
    place = {name: label for label, name in enumerate(names)}
    labels = torch.tensor([place[name] for site, _ in sites for name in site.classes], dtype=torch.int64)
    owners = torch.cat([torch.tensor(numbers, dtype=torch.int64)[site.owners] for site, numbers in sites])
    roles = torch.cat([_roles(site, numbers, config, seed) for site, numbers in sites])
    offsets = torch.zeros(config.num_clients + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(owners, minlength=config.num_clients), 0, out=offsets[1:])
    partition = Partition(owners.argsort(stable=True), offsets)
    form = Form(config.image_size, mode_of(config.channels))
    meta = {
        "name": config.name,
        "class_names": names,
        "domain_names": [],
        "mean": [],
        "std": [],
        "picture_shape": [config.channels, config.image_size],
        "licence": "as stated by each site",
        "attribution": "",
        "notices": [notice for site, _ in sites for notice in site.notices],
        "seed": seed,
        "partition": config.partition,
        "num_tasks": 1,
        "repeats": 1,
        "task_of_class": [0] * len(names),
        "vocabulary": 0,
        "client_validation": config.client_validation,
        "client_test": config.client_test,
        "shuffled": drawn_clients(config.num_shuffled, config.num_clients, seed),
        "sites": known,
        "clients_of_sites": [list(numbers) for _, numbers in sites],
    }
    nothing = torch.arange(0)
    empty = Examples(torch.zeros(0, len(form.mode), form.size, form.size, dtype=torch.uint8), nothing)
    bare = Federation(Examples(torch.zeros(len(labels), 0), labels), empty, partition, nothing, nothing, meta, roles)
    private = [f"site {site.name}: {notice}" for site, _ in sites for notice in site.rows.notices]
    return Listing(
        bare,
        lambda: _read([site for site, _ in sites]),
        private,
        [*watched, *(each for site, _ in sites for each in site.watched)],
    )


def _roles(site: Site, numbers: Sequence[int], config: DataConfig, seed: int) -> Tensor:
    groups = None if site.rows.groups is None else [site.rows.groups[row] for row in site.kept]
    try:
        return decided(Claims(site.owners, site.roles, site.given, groups), numbers, config, seed)
    except DataError as error:
        raise named(site.name, error, site.file) from error


def _read(sites: Sequence[Site]) -> Opened:
    """Read all pictures of sites, and say what was changed, and at the site what they were like."""
    images, notices, private = [], [], []
    for site in sites:
        try:
            read = site.rows.read(site.kept, site.form)
        except (Refusal, OSError) as error:
            raise named(site.name, error, site.file) from error
        images.append(read.images)
        if read.sizes:
            least, most = (f"{width} x {height}" for width, height in read.sizes)
            private.append(f"site {site.name}: pictures have {least} to {most} pixels.")
        if read.num_converted:
            now, was = ("grey", "in colour") if len(site.form.mode) == 1 else ("in colour", "grey")
            notices.append(
                f"site {site.name}: {read.num_converted:,} of {len(site.kept):,} pictures are {was} and were made "
                f"{now}, as data.channels={len(site.form.mode)} asks."
            )
        if read.num_paged:
            notices.append(f"site {site.name}: of {read.num_paged:,} pictures with several pages the first is read.")
    return torch.cat(images), tuple(notices), tuple(private)
