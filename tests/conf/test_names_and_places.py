"""Names of experiments, and paths: what folders are called, and what stays where it is from another folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import small_run
from umbel import run
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core.names import file_stem

TEXT = "data: {name: digits, num_clients: 2, max_train: 100, max_test: 30}\nmodel: {name: linear}\nrun: {rounds: 1}\n"


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("my experiment", "my-experiment"),
        ("exp (1)", "exp-1"),
        ("exp+aug,v2", "exp-aug-v2"),
        ("../../x", "x"),
        ("..", "unnamed"),
        (".hidden", "hidden"),
        ("-rf", "rf"),
        ("été_1.5", "été_1.5"),
        ("\N{SUNFLOWER}", "unnamed"),
        ("a\nb\0c", "a-b-c"),
        ("x" * 500, "x" * 48),
    ],
)
def test_names_as_the_beginning_of_a_folders(name, stem):
    assert file_stem(name) == stem


@pytest.mark.parametrize("stem", ["my experiment", "exp (1)", "exp+aug,v2", "\N{SUNFLOWER} été", "'", "-x"])
def test_an_experiment_of_any_name_runs(stem, tmp_path):
    path = tmp_path / f"{stem}.yaml"
    path.write_text(TEXT + "description: \N{SUNFLOWER}\n", encoding="utf-8")
    result = run(str(path), f"run.results={tmp_path / 'out'}")
    assert result.path.parent == tmp_path / "out" and result.path.name.startswith(f"{file_stem(stem)}-fedavg-s0-")
    assert result.summary["num_failures"] == 0 and result.summary["experiment"] == stem
    assert load("config", (), (result.path / "config.yaml").read_text(encoding="utf-8")).name == stem


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/b"])
def test_a_name_is_no_path(name, tmp_path):
    path = tmp_path / "in" / "own.yaml"
    path.parent.mkdir()
    path.write_text(f"name: {name}\n{TEXT}")
    with pytest.raises(ExperimentError, match="should be a name, and no path") as caught:
        run(str(path), f"run.results={tmp_path / 'in' / 'results'}")
    assert (
        caught.value.key == "name"
        and list(tmp_path.iterdir()) == [path.parent]
        and list(path.parent.iterdir()) == [path]
    )


def test_a_file_whose_name_is_not_utf_8(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xe9t\xe9.yaml"
    Path(os.fsdecode(path)).write_text(TEXT)
    assert load(os.fsdecode(path)).name == "?t?"
    with pytest.raises(ExperimentError, match="no Unicode text"):
        load("x", [f"data.path={os.fsdecode(path)}"], TEXT)


def test_a_relative_path_is_resolved_where_the_experiment_is_composed(tmp_path, monkeypatch):
    pictures, elsewhere = tmp_path / "pics #1", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for label, level in (("bright", 200), ("dark", 20)):
        (pictures / label).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(np.full((8, 8, 3), level + number, np.uint8)).save(pictures / label / f"{number}.png")
    (tmp_path / "own.yaml").write_text(
        "data: {name: image_folder, path: 'pics #1', num_clients: 2, options: {image_size: 8}}\nmodel: {name: linear}\n"
    )
    monkeypatch.chdir(tmp_path)
    given = load("own.yaml")
    assert given.data.path == str(pictures)
    assert load("own.yaml", ["data.path=./pics #1"]).data.path == str(pictures)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("own.yaml", ["data.path=~/pics #1"]).data.path == str(pictures)
    done = run("own.yaml", "run.rounds=1", "client.device=cpu", "run.results=out")
    monkeypatch.chdir(elsewhere)
    again = run(str(done.path / "config.yaml"), f"run.results={tmp_path / 'again'}")
    assert again.summary["weights_sha256"] == done.summary["weights_sha256"]


def test_a_refused_place_for_results_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("a" * 300, "a/" * 3000, "~nobody-of-this-name/x", "a\0b"):
        with pytest.raises(ExperimentError, match=r"run\.results|An override"):
            small_run(Path(place))
    assert not list(tmp_path.iterdir())


@pytest.mark.exhaustive  # real processes; inline above has all but the messages
@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")  # Ray and a federation leave open files to the garbage collector
@pytest.mark.usefixtures("cluster", "federation")
@pytest.mark.parametrize("engine", ["ray", "grpc"])
def test_odd_names_travel_to_other_processes(engine, tmp_path):
    path = tmp_path / "my exp+aug,v2 (1) \N{SUNFLOWER}\x7f.yaml"
    path.write_text(TEXT + 'description: "\N{SUNFLOWER} \\"quoted\\" \\\\ #1 ${USER} \\x7f"\n', encoding="utf-8")
    place = tmp_path / "a b \N{SUNFLOWER}"
    result = run(str(path), f"run.results={place}", f"engine.name={engine}", "engine.workers=2")
    assert result.summary["num_failures"] == 0 and result.summary["experiment"] == path.stem
    assert result.summary["weights_sha256"] == run(str(path), f"run.results={tmp_path}").summary["weights_sha256"]
