"""Libraries whose threads draw from Python's global generator while clients run get a generator of their own.

Flower's do, for the jitter of their heartbeats, in the process of a stock SuperNode's ClientApp: whichever client is at
work then would be taken for the one that drew (`umbel.client.shared`).
"""

from __future__ import annotations

import random
import sys


def set_apart(package: str) -> None:
    """Let the modules of a package that have `random` draw from a generator of their own.

    Args:
        package: Its name; its modules that are loaded later are as they come.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == package and vars(module).get("random") is random:
            vars(module)["random"] = random.Random()  # noqa: S311 - jitter
