"""What of a machine is there for this process."""

from __future__ import annotations

import os

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
