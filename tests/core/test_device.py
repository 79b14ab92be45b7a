"""What of a machine is there for this process."""

from __future__ import annotations

import os

import numpy as np
import psutil
import pytest

from umbel.core import device


@pytest.mark.parametrize(
    ("limit", "affinity", "number"),
    [
        ("max 100000", {0, 1, 2}, 3),
        ("200000 100000", {0, 1, 2}, 2),
        ("50000 100000", {0, 1, 2}, 1),
        (None, {5}, 1),
        ("nonsense", {0, 7}, 2),
    ],
)
def test_as_many_cpus_as_a_process_may_use(limit, affinity, number, tmp_path, monkeypatch):
    monkeypatch.setattr(device, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: affinity)
    if limit:
        (tmp_path / "cpu.max").write_text(limit + "\n")
    assert device.num_cpus() == number


@pytest.mark.skipif(device._TRIM is None, reason="the C library keeps it")
def test_holes_between_what_is_in_use_are_given_back():
    """Blocks below glibc's limit, of which each second one is freed: as a large model's tensors come and go."""
    process, size = psutil.Process(), 1 << 20
    device.keep_memory()
    blocks = [np.ones(size, np.uint8) for _ in range(64)]
    del blocks[::2]
    before = process.memory_info().rss
    device.give_back_memory()
    assert before - process.memory_info().rss > 16 * size
    assert all(block.all() for block in blocks)
