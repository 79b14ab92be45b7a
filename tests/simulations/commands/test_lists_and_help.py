"""What `umbel list` and `--help` show."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import click
import pytest

from tests.places import ROOT
from tests.simulations.commands.command_line import umbel
from umbel.simulations.commands import catalogue
from umbel.simulations.commands.main import KINDS, main
from umbel.strategies.registry import find


@pytest.mark.parametrize("kind", KINDS)
def test_list_has_every_name_with_a_line(kind: str) -> None:
    result = umbel("list", kind)
    assert result.exit_code == 0, result.output
    entries = catalogue.entries(kind)
    assert entries
    for entry in entries:
        assert entry.name in result.stdout
        assert entry.line
    plain = json.loads(umbel("list", kind, "--json").stdout)
    assert [entry["name"] for entry in plain] == [entry.name for entry in entries]


def test_list_of_a_part() -> None:
    every, some = umbel("list", "models"), umbel("list", "models", "cvt_t")
    assert "strides" not in every.stdout  # sizes of sixty models are too much at once
    assert "cvt_tiny32" in some.stdout and "strides=null" in some.stdout and "cvt_13" not in some.stdout
    assert [entry["name"] for entry in json.loads(umbel("list", "models", "cvt_t", "--json").stdout)] == ["cvt_tiny32"]
    nothing = umbel("list", "models", "cvt_tini32")
    assert nothing.exit_code == 2
    assert "Did you mean" in nothing.stderr and "cvt_tiny32" in nothing.stderr


def test_options_are_explained() -> None:
    options = {
        f"{entry.name}.{option.name}": option for entry in catalogue.entries("strategies") for option in entry.options
    }
    assert options["fedprox.mu"].default == 0.01
    assert "proximal" in options["fedprox.mu"].doc
    keys = {option.name: option for entry in catalogue.entries("keys") for option in entry.options}
    for key in ("data.num_clients", "engine.workers", "run.results", "run.seed", "model.name", "strategy.name"):
        assert keys[key].doc, key
    undocumented = [name for name, option in keys.items() if not option.doc]
    assert undocumented == []


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(command, click.Group):
        below = [_commands(child, (*path, name)) for name, child in command.commands.items()]
        return [path, *(one for some in below for one in some)]
    return [path]


@pytest.mark.parametrize("path", _commands(main), ids=lambda path: " ".join(path) or "umbel")
def test_help_teaches_by_example(path: tuple[str, ...]) -> None:
    result = umbel(*path, "--help")
    assert result.exit_code == 0
    command = " ".join(["umbel", *path])
    assert re.search(rf"^ +{command} ?.*$", result.stdout, re.MULTILINE)
    assert "\\b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 90


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys, umbel, umbel.simulations.commands.main;"
        "print([name for name in ('torch', 'flwr', 'numpy', 'rich', 'ray', 'pandas') if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_options_that_a_strategy_inherits_are_explained() -> None:
    """In the words of the class that has them, unless it has its own."""
    told = catalogue.attributes(find("fedrep").config_class)
    assert told["server_lr"] == catalogue.attributes(find("fedavg").config_class)["server_lr"] != ""
    assert told["weighting"] != catalogue.attributes(find("fedavg").config_class)["weighting"]
    assert told["head_epochs"]
