"""What is there to stay is not gone through by the garbage collector again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def settled() -> Iterator[None]:
    """Leave all objects that are there now out of the collector's rounds within.

    Python's collector goes through all of them now and then, which for what is known of 100,000 clients takes as long
    as a round's own work. What is garbage among them, or becomes so, in cycles, is found afterwards. Where others have
    done the same before, nothing is done.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
