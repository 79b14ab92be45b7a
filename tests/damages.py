"""How files of a run's folder are damaged in tests."""

from __future__ import annotations

from pathlib import Path


def flip(file: Path, place: int = -1) -> None:
    """Flip the lowest bit of a byte."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    """Keep the first half."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def empty(file: Path) -> None:
    """Keep nothing of it."""
    file.write_bytes(b"")


def lose(file: Path) -> None:
    """Delete it."""
    file.unlink()


def foreign(file: Path) -> None:
    """Put something else in its place."""
    file.write_bytes(b"\xff\xfe[1, 2")


def replaced(file: Path, old: str, new: str) -> None:
    """Put one text in the place of another that is there."""
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
