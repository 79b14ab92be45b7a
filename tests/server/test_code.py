"""Hashes of code: comments and lines are none of it, and what a module needs is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from umbel.server.sources import Modules, hash_of

CODE = """
'''A module.'''
import math

class Shape:
    sides = 4

    def turned(self):
        return self.sides


def area(r, *, scale={scale}):
    return [math.pi * r**2 * scale for _ in range(2)] if r in {{"a", "b", "c", 1}} else None
"""


def of(folder: Path, text: str) -> str:
    file = folder / "module_of_a_test.py"
    before = file.stat().st_mtime_ns if file.exists() else 0
    file.write_text(text)
    assert file.stat().st_mtime_ns != before
    return hash_of([file])


def test_comments_and_lines_are_no_code(tmp_path: Path) -> None:
    plain = of(tmp_path, CODE.format(scale=1))
    commented = CODE.format(scale=1).replace("    return [", "\n    # here\n    return [")
    assert of(tmp_path, "# why\n\n" + commented) == plain
    assert of(tmp_path, CODE.format(scale=1).replace("r**2 * scale", "(r ** 2) * scale")) == plain


@pytest.mark.parametrize(
    "change",
    [
        ("scale=1", "scale=1.0"),
        ("r**2", "r**3"),
        ("math.pi", "math.e"),
        ('"b"', '"d"'),
        ("area", "volume"),
        ("*, ", ""),
    ],
)
def test_what_it_does_is(tmp_path: Path, change: tuple[str, str]) -> None:
    plain = CODE.format(scale=1)
    assert of(tmp_path, plain) != of(tmp_path, plain.replace(*change))


def test_pythons_cache_is_not_asked_for_what_was_just_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes by whole seconds and sizes."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    plain = CODE.format(scale=1)
    assert of(tmp_path, plain) != of(tmp_path, plain.replace("r**2", "r**3"))


def test_a_hash_is_the_same_in_every_process(tmp_path: Path) -> None:
    """Sets have another order in each."""
    (tmp_path / "m.py").write_text(CODE.format(scale=1))
    imports = "from pathlib import Path; from umbel.server.sources import hash_of"
    script = f"{imports}; print(hash_of([Path(r'{tmp_path}/m.py')]))"
    found = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in "123"
    }
    assert found == {hash_of([tmp_path / "m.py"]) + "\n"}


def test_what_is_no_code_counts_by_its_bytes(tmp_path: Path) -> None:
    assert of(tmp_path, "def f(:\n") != of(tmp_path, "def g(:\n")


def test_what_a_module_needs_is_found_wherever_it_is_imported(tmp_path: Path) -> None:
    files = {
        "__init__": "",
        "a": "from pack.room import b as other, c\nfrom pack import (\n    d,  # pack.no\n    e as f,\n)\n",
        "room/__init__": "", "room/b": "import os, pack.g as g\n", "room/c": "def f():\n    from pack.h import x\n",
        "d": "from package import z\n", "e": "import pack.missing\n", "g": "from pack import a\n", "h": "", "no": "",
    }  # fmt: skip
    for name, text in files.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    found = Modules("pack", tmp_path).needed(["pack.a"])
    assert set(found) == {f"pack.{name}" for name in ("a", "room", "room.b", "room.c", "d", "e", "g", "h")}
    assert found["pack.room"] == tmp_path / "room" / "__init__.py"
