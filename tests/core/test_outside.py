"""Code from outside of the project: whatever goes wrong in it is one refusal that says what and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from umbel.core.outside import find, guarded
from umbel.core.refusal import Refusal

KEY = "strategy.name"
MUTE = "class Mute(Exception):\n    def __str__(self):\n        return 1 / 0\nraise Mute\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder that is on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def refused(path: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        find(path, "strategy", KEY)
    assert caught.value.key == KEY and caught.value.remedy.endswith((".", "?", ":"))
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ("import sys\nsys.exit(0)\n", "it ends the process", 2),
        ("class X(:\n    pass\n", "SyntaxError: invalid syntax", 1),
        ("a = 1\nb = a / 0\n", "ZeroDivisionError: division by zero", 2),
        ("import json\n\njson.loads('{')\n", "JSONDecodeError", 3),
        ("class Stop(BaseException):\n    pass\nraise Stop('now')\n", "Stop: now", 3),
        (
            "class Mute(Exception):\n    def __str__(self):\n        return 1 / 0\nraise Mute\n",
            "Mute: its text raises ZeroDivisionError",
            4,
        ),
        ("raise ValueError('a' * 1_000_000)\n", f"ValueError: {'a' * 500} ... (", 1),
        ("raise ValueError('two\\nlines')\n", "ValueError: two lines", 1),
        ("raise KeyError\n", "KeyError", 1),
    ],
)
def test_whatever_a_module_does_while_it_is_imported(text: str, reason: str, line: int, folder: Path) -> None:
    (folder / "odd_module.py").write_text(text, encoding="utf-8")
    error = refused("odd_module:X")
    assert f"Cannot import strategy 'odd_module:X' (key {KEY}): {reason}" in str(error)
    assert f"({folder / 'odd_module.py'}, line {line})" in str(error)
    assert len(str(error)) < 1000


def test_what_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "lacking.py").write_text("import no_such_package\n", encoding="utf-8")
    assert "module 'lacking' needs 'no_such_package', which is not installed. Install it." in str(refused("lacking:X"))
    (folder / "short.py").write_text("class Clipped:\n    pass\n", encoding="utf-8")
    assert "has no 'Clipper'. Did you mean 'Clipped'?" in str(refused("short:Clipper"))
    assert find("short:Clipped", "strategy", KEY).__name__ == "Clipped"
    assert "there is no module 'nowhere'. It must be installed" in str(refused("nowhere.at.all:X"))
    assert "no import path" in str(refused("..short:Clipped"))
    monkeypatch.undo()  # the path, and the current folder
    monkeypatch.chdir(folder)
    (folder / "beside.py").write_text("X = 1\n", encoding="utf-8")
    assert 'It lies in this folder, where nobody looks: export PYTHONPATH="$PWD".' in str(refused("beside:X"))


def test_refusals_and_ctrl_c_pass_as_they_are() -> None:
    own = Refusal("model.size is 3.", key="model.size", remedy="Say 4.")
    with pytest.raises(Refusal) as caught, guarded("It cannot be made", KEY):
        raise own
    assert caught.value is own
    with pytest.raises(KeyboardInterrupt), guarded("It cannot be made", KEY):
        raise KeyboardInterrupt
    with pytest.raises(Refusal) as caught, guarded("It cannot be made", KEY, "Use another."):
        raise OSError("full")
    assert str(caught.value).startswith("It cannot be made: OSError: full (") and caught.value.remedy == "Use another."
    assert isinstance(caught.value.__cause__, OSError)
