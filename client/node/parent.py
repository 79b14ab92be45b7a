"""A process that ends with the one that started it, also when that is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time

_PDEATHSIG = 1  # prctl(2): PR_SET_PDEATHSIG


def signalled(number: signal.Signals) -> bool:
    """Ask Linux to send this process a signal when its parent ends; return whether there is Linux to ask."""
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is None:
        return False
    prctl(_PDEATHSIG, number)
    return True


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """End this process when its parent ends.

    Args:
        number: By which signal; by default whatever it is doing then.
    """
    if signalled(number):
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()
