"""Partial sums that wait on disk: the same bits, and somebody is told, once."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests.end_to_end.test_engines import SMALL
from tests.helpers import bits
from umbel import run
from umbel.core.once import Once
from umbel.server import rounds
from umbel.server.listener import Listener


class Told(Listener):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        self.texts.append(text)


def test_waiting_on_disk_changes_no_bit_and_is_told_once(tmp_path: Path) -> None:
    """Six clients leave two sums, of four and of two, in each of two rounds."""
    little, plenty = Told(), Told()
    on_disk = run("digits", *SMALL, f"run.results={tmp_path}", "engine.memory_bytes=0", listener=little)
    in_memory = run("digits", *SMALL, f"run.results={tmp_path}", listener=plenty)
    assert bits(on_disk) == bits(in_memory)
    assert [text for text in little.texts if "engine.memory_bytes=0" in text and "on disk" in text] == little.texts
    assert len(little.texts) == 1 and not plenty.texts


@pytest.mark.parametrize(("large", "times"), [(0, 2), (1 << 30, 0)])
def test_what_a_step_on_a_large_model_leaves_free_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int, times: int
) -> None:
    """After each of two rounds, when nobody has the combined change any more."""
    given: list[bool] = []

    def give() -> None:
        gc.collect()
        given.append(any(isinstance(each, Once) and len(each) for each in gc.get_objects()))

    monkeypatch.setattr(rounds, "_LARGE", large)
    monkeypatch.setattr(rounds, "give_back_memory", give)
    run("digits", *SMALL, f"run.results={tmp_path}")
    assert given == [False] * times
