"""How Ray is started on this machine: with our own handlers of signals, and nothing that nobody here asks."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

# Methods of Ray's node that start a dashboard (also where none is asked for, for telemetry alone), what asks a cloud
# for more machines, and what reads logs for a driver that prints none.
_EXTRAS = ("start_api_server", "start_monitor", "start_log_monitor")


@contextlib.contextmanager
def without_extras() -> Iterator[None]:
    """Start Ray without processes that serve others than us, and take their share of the start and of memory.

    A version of Ray that has other names for them starts them.
    """
    from ray._private.node import Node

    kind: Any = Node
    before = {name: getattr(kind, name) for name in _EXTRAS if hasattr(kind, name)}
    try:
        if len(before) == len(_EXTRAS):
            for name in _EXTRAS:
                setattr(kind, name, lambda *_, **__: None)
        yield
    finally:
        for name, method in before.items():
            setattr(kind, name, method)


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Keep our handlers: Ray's would end the process at a SIGTERM with a dump in place of a checkpoint.

    They hold while Ray starts, too. What it starts is deaf to the end of the terminal, which is for us to answer.
    """
    from ray._private import utils

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    set_handler = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    with contextlib.suppress(ValueError):  # not the main thread: signals are not ours to answer
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        for number, handler in before.items():
            if handler is not None:
                with contextlib.suppress(ValueError):
                    signal.signal(number, handler)
