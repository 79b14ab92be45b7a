"""Whether a node has the data that it should have, by what it declares of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from umbel.core.names import shortened
from umbel.data.declared import declared
from umbel.data.federation import Federation
from umbel.data.sites.agreement import Agreement
from umbel.server.greeting import Greeting

_REMEDY = "Here every node has the server's data; sites with data of their own take part under data.name=sites."
_AGREED = "The run goes by what all sites agreed on before its first round; for other data start a new one."
Check = Callable[[Greeting], str]


def same_data(data: Federation) -> Check:
    """Return what says of a greeting why its node has other data than the server; "" where it has not, or does not say.

    Args:
        data: The server's, which all have.
    """
    ours, sizes = declared(data), data.num_train.tolist()

    def check(greeting: Greeting) -> str:
        theirs = greeting.said.get("classes")
        if isinstance(theirs, Mapping) and theirs.get("sha256") != ours["sha256"]:
            return f"{_classes(theirs, ours)} {_REMEDY}"
        for client, count in (greeting.examples or {}).items():
            if client < len(sizes) and count != sizes[client]:
                return (
                    f"its client {client} has {count:,} training examples, and {sizes[client]:,} by the server's data. "
                    f"{_REMEDY}"
                )
        return ""

    return check


def _classes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Say where the classes of a node are others than the server's."""
    names = theirs.get("names")
    names = [shortened(str(name)) for name in names] if isinstance(names, list) else []
    for label, (one, other) in enumerate(zip(names, ours["names"], strict=False)):
        if one != other:
            return f"its class {label} is {one!r}, and the server's is {other!r}."
    return f"it has {len(names)} classes, and the server {len(ours['names'])}, or others further on."


def agreed_data(agreement: Agreement) -> Check:
    """Return what says of a greeting why its node's own data are not those that all agreed on; "" where they are.

    A node is greeted again when it comes back, and when a run is resumed: meanwhile pictures may have been added at
    its site, or another site's data have taken their place.

    Args:
        agreement: What all sites agreed on.
    """

    def check(greeting: Greeting) -> str:
        classes, sites = greeting.said.get("classes"), greeting.said.get("sites")
        if not isinstance(classes, Mapping) or not isinstance(sites, Mapping):
            return (
                "it does not say what its clients have: umbel data check-site says there what is wrong with its data."
            )
        for client in sorted(greeting.clients & agreement.sites.keys()):
            before, now = agreement.sites[client], sites.get(str(client))
            if now != before:
                return f"its client {client} is of the site {shortened(str(now))}, and was of {before}. {_AGREED}"
            own = classes.get(str(client))
            if text := _changed(agreement.classes, agreement.counts[client]["train"], own):
                return f"its client {client} (site {before}) {text}. {_AGREED}"
        return ""

    return check


def _changed(classes: tuple[str, ...], before: Mapping[str, int], now: object) -> str:
    """Say of which class there are more or fewer examples than there were; "" where all are as they were."""
    counts = now if isinstance(now, Mapping) else {}
    for name in classes:
        if counts.get(name, 0) != before.get(name, 0):
            count = shortened(str(counts.get(name, 0)))
            return f"had {before.get(name, 0)} examples of {name!r} to train on, and has {count}"
    return ""
