"""Whether a node has the server's data, where all have the same: what it declares is held against them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from umbel.core.names import shortened
from umbel.data.declared import declared
from umbel.data.federation import Federation
from umbel.server.greeting import Greeting

_REMEDY = "Here every node has the server's data; sites with data of their own take part under data.name=sites."


def same_data(data: Federation) -> Callable[[Greeting], str]:
    """Return what says of a greeting why its node has other data than the server; "" where it has not, or does not say.

    Args:
        data: The server's.
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
