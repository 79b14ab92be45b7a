"""What a set says of itself reaches whoever starts a run, looks at the data, or fetches them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from umbel import run
from umbel.conf.load import load as load_experiment
from umbel.data.federation import Federation
from umbel.simulations.commands.main import main

NOTICE = "left out 1 hidden files or folders: .ipynb_checkpoints."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes that differ, and a hidden folder."""
    for shade, name in enumerate(("dark", "light", ".ipynb_checkpoints")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("L", (8, 8), 30 + 180 * shade % 255).save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


def overrides(folder: Path) -> list[str]:
    return ["data.name=image_folder", f"data.path={folder}", "data.num_clients=2", "data.options={image_size: 8}"]


def test_a_run_tells_its_listener_and_keeps_it(folder: Path, tmp_path: Path) -> None:
    small = ("model.name=linear", "run.rounds=1", f"run.results={tmp_path}/results")
    result = run("digits", *overrides(folder), *small)
    events = [json.loads(line) for line in (Path(result.path) / "progress.jsonl").read_text().splitlines()]
    (notice,) = [event["text"] for event in events if event["event"] == "notice"]
    assert notice == f"{folder}: {NOTICE}"
    assert result.summary["metrics"]["test/accuracy"] == 1.0


def test_a_federation_keeps_it_over_shared_arrays(folder: Path) -> None:
    federation = Federation.build(load_experiment("digits", overrides(folder)).data, 0)
    copied = Federation.from_arrays(federation.arrays(), json.loads(json.dumps(federation.meta)))
    assert copied.notices == (f"{folder}: {NOTICE}",)


@pytest.mark.parametrize("command", ["fetch", "show"])
def test_commands_about_data_print_it(folder: Path, tmp_path: Path, command: str) -> None:
    asked = {
        "fetch": ["data", "fetch", "image_folder", f"data.path={folder}"],
        "show": ["data", "show", "digits", *overrides(folder), "--output", str(tmp_path / "a.png")],
    }[command]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    assert NOTICE in result.output
