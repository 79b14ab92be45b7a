"""What trains without the fast mode that was asked for: said where it happens, heard by whoever keeps the record."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

# For what one process cannot do, and another perhaps can.
OTHER_BITS = "other processes may train with it, so that another run, or engine, may end with other bits"
log = logging.getLogger("umbel.client")
_heard: ContextVar[list[str] | None] = ContextVar("heard", default=None)


def tell(text: str) -> None:
    """Say what trains without a mode: to whoever listens (`told_to`), or else to the log, once a process."""
    heard = _heard.get()
    if heard is None:
        log_once(text)
    elif text not in heard:
        heard.append(text)


@contextmanager
def told_to(texts: list[str]) -> Iterator[None]:
    """Have what is told meanwhile appended to a list, each text once."""
    token = _heard.set(texts)
    try:
        yield
    finally:
        _heard.reset(token)


@cache
def log_once(text: str) -> None:
    """Log a warning, once a process."""
    log.warning("%s", text)
