"""The benchmarks: each script is in their list and can be asked, and what they compute beside timing is right."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import pytest

from tests.places import BENCHMARKS

SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Import a script, as it is where it stands."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(BENCHMARKS) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_the_list_names_every_script() -> None:
    listed = re.findall(r"`python benchmarks/(\w+)\.py", (BENCHMARKS / "README.md").read_text(encoding="utf-8"))
    assert sorted(set(listed)) == SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_it_can_be_asked(
    name: str, script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        script(name).main()
    assert ended.value.code == 0 and "usage: " in capsys.readouterr().out


def test_exponents_are_those_of_a_power(script: Callable[[str], ModuleType]) -> None:
    exponents = script("scaling").exponents
    assert exponents([10, 100, 1000], [3 * 10**1.1, 3 * 100**1.1, 3 * 1000**1.1]) == "1.10, 1.10"
    assert exponents([1, 10, 100], [1.0, 1.0, 10.0]) == "0.50, 1.00"


def _hold(ready: object, go: object) -> None:
    files = [Path(os.devnull).open() for _ in range(40)]  # noqa: SIM115 - they are to stay open
    ready.set()  # type: ignore[attr-defined]
    go.wait()  # type: ignore[attr-defined]
    assert files


def test_growth_counts_what_started_processes_hold(script: Callable[[str], ModuleType]) -> None:
    look, context = script("growth").look, get_context("fork")
    before = look()
    ready, go = context.Event(), context.Event()
    child = context.Process(target=_hold, args=(ready, go))
    child.start()
    try:
        assert ready.wait(30)
        now = look()
    finally:
        go.set()
        child.join()
    assert now["files"] >= before["files"] + 40 and now["threads"] >= before["threads"] + 1
