"""What a node says of itself when a run's server greets it; its key's signature is added by whoever has the key."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from umbel.models.card import version


def greeting(clients: Sequence[int], config_hash: str, declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to a greeting.

    Args:
        clients: The clients that the node holds.
        config_hash: Hash of the experiment that it composed.
        declared: What it says of their data.
    """
    return {
        "partitions": list(clients),
        "config_hash": config_hash,
        **declared,
        "version": version(),
        "time": time.time(),
    }
