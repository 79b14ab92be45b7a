"""Partial sums that wait on disk: the same bits, and somebody is told, once."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.test_engines import SMALL
from tests.helpers import bits
from umbel import run
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
