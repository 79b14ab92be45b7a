"""What a tree of processes uses, and how quiet the machine is meanwhile; seen from outside."""

from __future__ import annotations

import contextlib
import time

import psutil

from umbel.simulations.bench.processes import LEAST_SECONDS, Processes


def cpu_seconds(processes: Processes) -> float:
    """Return the processor time of all, with that of their children that have ended."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def busy_seconds() -> float:
    """Return the processor time of the whole machine since it started, with what its host took from it."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def others_cores() -> float:
    """Return how many cores somebody else keeps busy now, by a look of half a second in which nothing of ours runs."""
    before, start = busy_seconds(), time.monotonic()
    time.sleep(LEAST_SECONDS)
    return max(busy_seconds() - before, 0.0) / (time.monotonic() - start)
