"""What a site's data are, in lines for whoever sits there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from umbel.data.federation import Federation
from umbel.data.sites.description import SPLITS
from umbel.data.sites.listing import ROLES, Site

_MOST = 50  # classes or clients that are shown


def described(site: Site) -> Iterator[str]:
    """Yield what is there, before the experiment holds anything out."""
    who = "1 client" if site.num_clients == 1 else f"{site.num_clients} clients"
    yield f"site {site.name}: {who}, {len(site.kept):,} of {len(site.rows.labels):,} examples take part"
    counts = Counter(site.classes)
    for name, count in sorted(counts.items())[:_MOST]:
        yield f"  class {name}: {count:,}"
    if len(counts) > _MOST:
        yield f"  and {len(counts) - _MOST} classes more"
    for split in SPLITS:
        number = int((site.roles == ROLES[split]).sum())
        yield f"  split {split}: {f'{number:,} examples, its own' if split in site.given else 'none of its own'}"
    for notice in site.notices:
        yield f"Note: {notice}"


def by_client(held: Federation, clients: Sequence[int], known: bool) -> Iterator[str]:
    """Yield each client's examples by split, as the experiment would have them.

    Args:
        held: What the site holds.
        clients: Its clients.
        known: Whether these are their numbers in the federation.
    """
    channels, side = held.picture_shape
    yield f"as the experiment has them, {side} x {side} pixels, {'grey' if channels == 1 else 'colour'}:"
    for place, client in enumerate(clients[:_MOST]):
        train, validation, test = (len(part) for part in held.client_indices(client))
        who = f"client {place} of this site" + (f" (client {client} of the federation)" if known else "")
        yield f"  {who}: {train:,} to train, {validation:,} to validate, {test:,} to test with"
    if len(clients) > _MOST:
        yield f"  and {len(clients) - _MOST} clients more"
    if not known:
        yield (
            "Clients are counted from 0 here. By the numbers that the federation gives them it draws which examples "
            "each holds out, where no column says groups: how many stays, of which class may differ."
        )
