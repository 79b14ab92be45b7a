"""Which versions of Flower are known, and how their nodes speak to a SuperLink.

What Flower does not promise to keep is met behind a few doors (docs/architecture.md); each asks here first, so that a
Flower that nobody has tried is refused by name and not by a trace of something that it has no more.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata
from typing import Literal

from umbel.core.refusal import Refusal

Fleet = Literal["grpc", "http"]

# Tried with each: the tests for the first, `make newest` for the others.
FLEETS: dict[str, Fleet] = {"1.39": "grpc", "1.40": "http", "1.41": "http", "1.42": "http"}
SPOKEN: dict[Fleet, str] = {"grpc": "gRPC", "http": "HTTP"}


@cache
def fleet() -> Fleet:
    """Return what nodes speak under the Flower that is installed.

    Raises:
        Refusal: Nobody has tried this version.
    """
    return fleet_of(metadata.version("flwr"))


def fleet_of(version: str) -> Fleet:
    """Return what nodes speak under a version of Flower.

    Args:
        version: Such as `1.39.0`.

    Raises:
        Refusal: Nobody has tried this version.
    """
    match = re.match(r"\d+\.\d+", version)
    series = match[0] if match else version
    if series not in FLEETS:
        raise Refusal(
            f"Flower {version} is installed, of which umbel knows nothing; it knows {', '.join(FLEETS)}.",
            remedy="Install one that it knows: pip install 'flwr[simulation]>=1.39,<1.40'",
        )
    return FLEETS[series]
