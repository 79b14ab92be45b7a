"""Somebody's own strategy, model or data that cannot be: refused before the start on every engine, with the fix."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.simulations.commands.command_line import TINY, umbel

STRATEGY = """
from dataclasses import dataclass
from umbel.strategies.base import Phase, Strategy

@dataclass(frozen=True)
class Config:
    pass

class Own(Strategy):
    config_class = Config
    def initial(self, server): return None
    def every_phase(self): return (Phase("train", self.send_model, None, None, None),)
    def model(self, state): return {}
"""
MODEL = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, image_size=8, in_channels=1):
        super().__init__()
        self.fc = nn.Linear(in_channels * image_size**2, num_classes)
    def forward(self, x):
        return self.fc(x.flatten(1))
"""
FACTORY = "def own(num_classes, image_size=8, in_channels=1):\n    "
# What the file holds, what is asked for, and what the message says.
MISTAKES = {
    "a plain module": (MODEL, "model.name=own_part:Net", "Return umbel.models.wrap(module, head='fc')"),
    "a factory of nothing": (FACTORY + "pass", "model.name=own_part:own", "found NoneType"),
    "a factory that ends the process": (FACTORY + "raise SystemExit(0)", "model.name=own_part:own", "ends the process"),
    "a module in place of a factory": (MODEL + "net = Net(3)", "model.name=own_part:net", "should be a class or a"),
    "a model's file that ends the process": ("exit(0)", "model.name=own_part:Net", "ends the process"),
    "a model's file that raises": ("1 / 0", "model.name=own_part:Net", "ZeroDivisionError: division by zero"),
    "an unknown size": (MODEL, "model.name=own_part:Net model.sizes.width=3", "Unknown size 'width'"),
    "a strategy with a syntax error": ("class Own(:", "strategy.name=own_part:Own", "SyntaxError: invalid syntax"),
    "a strategy's file that ends the process": ("exit(0)", "strategy.name=own_part:Own", "ends the process"),
    "a strategy's file that raises": ("1 / 0", "strategy.name=own_part:Own", "division by zero"),
    "an abstract strategy": (
        STRATEGY.replace("def model", "def weights"),
        "strategy.name=own_part:Own",
        "Own does not say model",
    ),
    "a strategy that raises when it is made": (
        STRATEGY + "    def __init__(self, config): raise RuntimeError('no')",
        "strategy.name=own_part:Own",
        "cannot be made: RuntimeError: no",
    ),
    "a strategy that raises when it is asked": (
        STRATEGY + "    def check(self, setting): return setting.models",
        "strategy.name=own_part:Own",
        "has no attribute 'models'",
    ),
    "a strategy without phases": (
        STRATEGY.replace('(Phase("train", self.send_model, None, None, None),)', "()"),
        "strategy.name=own_part:Own",
        "every_phase() should return a tuple",
    ),
    "a hyper-parameter without a default": (
        STRATEGY.replace("    pass", "    width: int"),
        "strategy.name=own_part:Own",
        "no default for width",
    ),
    "a base that raises when it is made": (
        STRATEGY + "    def __init__(self, config): raise RuntimeError('no')",
        "strategy.name=ggeur data.encoder=pixels model.name=linear strategy.base=own_part:Own",
        "strategy.base=own_part:Own cannot be made: RuntimeError: no",
    ),
    "a data file that ends the process": ("exit(0)", "data.name=own_part:load", "ends the process"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "own_part", sys)  # so that whatever is imported is forgotten afterwards
    monkeypatch.delitem(sys.modules, "own_part")
    return tmp_path


@pytest.mark.parametrize("engine", ["inline", "processes", "ray", "grpc"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_refused_before_anything_starts(mistake: str, engine: str, folder: Path) -> None:
    text, overrides, reason = MISTAKES[mistake]
    (folder / "own_part.py").write_text(text, encoding="utf-8")
    done = umbel("run", "digits", *TINY, f"engine.name={engine}", "run.results=results", *overrides.split())
    assert done.exit_code == 2, (done.output, done.exception)
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ") and reason in line and "own_part" in line
    assert overrides.split()[-1].partition("=")[0] in line
    assert not done.stdout and not (folder / "results").exists()


ODD = """
from torch import nn
from umbel.models import wrap

def own(num_classes, image_size=28, in_channels=3):
    if image_size == 8:
        raise RuntimeError("odd")
    return wrap(nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes)), head="1")
"""


def test_a_factory_that_raises_at_the_sizes_of_the_data_leaves_no_folder(folder: Path) -> None:
    """It is asked with its own defaults before, where it works."""
    (folder / "own_part.py").write_text(ODD, encoding="utf-8")
    done = umbel("run", "digits", *TINY, "run.results=results", "model.name=own_part:own")
    assert done.exit_code == 2, (done.output, done.exception)
    (line,) = done.stderr.splitlines()
    assert "RuntimeError: odd" in line and "own_part.py, line 7" in line
    assert not list((folder / "results").iterdir())
