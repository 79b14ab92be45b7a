"""The benchmarks: each script is in their list and can be asked, and what they compute beside timing is right."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
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


def test_growth_counts_what_started_processes_hold(script: Callable[[str], ModuleType]) -> None:
    look = script("growth").look
    before = look()
    holds = "import os; files = [open(os.devnull) for _ in range(40)]; print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        now = look()
        child.communicate(b"\n")
    assert now["files"] >= before["files"] + 40 and now["threads"] >= before["threads"] + 1
