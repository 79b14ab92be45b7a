"""`umbel new`: skeletons whose own tests pass and whose command runs; the templates themselves; what is refused."""

from __future__ import annotations

import inspect
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulations.commands.command_line import umbel
from umbel.simulations.commands import templates
from umbel.simulations.commands.new import KINDS, TEMPLATES, class_name

NAMES = {"strategy": "own_fedavg", "model": "small_net", "data": "my_pictures"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in NAMES.values():
        monkeypatch.setitem(sys.modules, name, sys)  # so that whatever is imported is forgotten afterwards
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def own_tests(file: Path) -> dict[str, Callable[..., None]]:
    return {name: each for name, each in runpy.run_path(str(file)).items() if name.startswith("test_")}


def run_all(tests: dict[str, Callable[..., None]], tmp_path: Path) -> None:
    """Call test functions with what they ask for, an empty folder at most."""
    assert len(tests) >= 2
    for name, test in tests.items():
        (place := tmp_path / name).mkdir()
        test(**dict.fromkeys(inspect.signature(test).parameters, place))


@pytest.mark.slow  # three or four runs of a round
@pytest.mark.parametrize("kind", KINDS)
def test_its_own_test_passes_and_the_command_that_it_says_runs(kind: str, folder: Path) -> None:
    name = NAMES[kind]
    done = umbel("new", kind, name)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [f"{name}.py", f"test_{name}.py"]
    for file in done.stdout.splitlines():
        text = (folder / file).read_text(encoding="utf-8")
        assert "templates" not in text and "New" not in text
        assert name in text or file == f"{name}.py"
    assert f"python -m pytest test_{name}.py" in done.stderr
    run_all(own_tests(folder / f"test_{name}.py"), folder)
    (command,) = [line.split() for line in done.stderr.splitlines() if line.startswith("  umbel run ")]
    ran = umbel(*shlex.split(shlex.join(command[1:])), "run.results=results", "run.name=own", "data.max_train=100")
    assert ran.exit_code == 0, ran.output
    assert f"{name}:" in (folder / "results/own/config.yaml").read_text(encoding="utf-8")


def test_each_kind_has_a_template_and_its_test() -> None:
    files = {path.name for path in Path(templates.__path__[0]).glob("*.py")}
    assert Path(templates.__path__[0]) == TEMPLATES
    assert files == {"__init__.py", *(f"{before}{kind}.py" for kind in KINDS for before in ("", "test_"))}


@pytest.mark.parametrize("there", ["small_net.py", "test_small_net.py"])
def test_nothing_is_overwritten(there: str, folder: Path) -> None:
    (folder / there).write_text("mine", encoding="utf-8")
    done = umbel("new", "model", "small_net")
    assert done.exit_code == 2 and f"{there} is there already" in done.stderr
    assert [path.name for path in folder.iterdir()] == [there]
    assert (folder / there).read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["my-net", "1net", "class", "a b", "a.b", "../net", "_net", "", "__main__"])
def test_what_is_no_name_of_a_module(name: str, folder: Path) -> None:
    done = umbel("new", "model", name)
    assert done.exit_code == 2
    assert "cannot be the name of a Python module" in done.stderr and "Use letters" in done.stderr
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["torch", "umbel", "json", "sys"])
def test_a_name_that_python_knows(name: str, folder: Path) -> None:
    done = umbel("new", "data", name)
    assert done.exit_code == 2 and f"There is a module called {name!r} already" in done.stderr
    assert not list(folder.iterdir())


def test_names_of_classes() -> None:
    assert [class_name(name) for name in ("small_net", "x", "myNet", "net_2")] == ["SmallNet", "X", "MyNet", "Net2"]
