"""Reports and pictures: one file, nothing loaded, everything escaped."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from umbel import run
from umbel.conf.errors import ExperimentError
from umbel.core.files import read_json
from umbel.simulations.commands.main import main
from umbel.simulations.plots import heat
from umbel.simulations.plots import runs as plots
from umbel.simulations.report.page import report

TINY = ("model.name=cnn", "run.rounds=2", "data.num_clients=4", "data.max_train=200", "client.epochs=1")
NASTY = "<script>alert('x')</script> & <b>bold</b>"


def umbel(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    return run("digits", *TINY, f'description="{NASTY}"', f"run.results={results}").path


def test_a_report_is_one_file_that_loads_nothing(folder: Path) -> None:
    result = umbel("report", folder)
    assert result.exit_code == 0, result.output
    path = Path(result.stdout.splitlines()[-1])
    assert path == folder / "report.html"
    page = path.read_text()
    assert "http:" not in page
    assert "https:" not in page
    sources = re.findall(r"(?:src|href)=\"([^\"]{0,22})", page)
    assert len(sources) >= 3
    assert {source for source in sources if not source.startswith("#")} == {"data:image/png;base64,"}
    assert "<script" not in page
    assert "url(" not in page.replace("url(#", "")  # the last are parts of the page


def test_a_report_says_what_reproduces_the_run(folder: Path) -> None:
    page = report([folder]).read_text()
    summary = read_json(folder / "summary.json")
    assert summary["weights_sha256"] in page
    assert summary["config_hash"] in page
    assert f"umbel run {folder / 'config.yaml'}" in page
    for heading in ("Metrics", "Test accuracy by class", "Time by stage", "Bytes", "Failures", "Environment"):
        assert heading in page
    assert f"{100 * summary['metrics']['test/accuracy']:.2f} %" in page


def test_the_command_of_a_report_gives_the_same_weights(folder: Path, tmp_path: Path) -> None:
    result = umbel("run", folder / "config.yaml", f"run.results={tmp_path}")
    assert result.exit_code == 0, result.output
    again = read_json(Path(result.stdout.splitlines()[-1]) / "summary.json")
    assert again["weights_sha256"] == read_json(folder / "summary.json")["weights_sha256"]


def test_what_people_wrote_is_escaped(folder: Path) -> None:
    page = report([folder]).read_text()
    assert NASTY not in page
    assert "&lt;script&gt;alert" in page


def test_several_runs_make_one_report(folder: Path, tmp_path: Path) -> None:
    target = report([folder, folder], tmp_path / "both.html")
    assert target == tmp_path / "both.html"
    assert target.read_text().count("<article>") == 2


def test_failures_are_listed(folder: Path, tmp_path: Path) -> None:
    with (folder / "progress.jsonl").open("a") as file:
        file.write('{"event": "failure", "round": 1, "phase": "train", "client": 3, "node": 9, "reason": "<late>"}\n')
    page = report([folder], tmp_path / "r.html").read_text()
    assert "&lt;late&gt;" in page


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="neither a run"):
        report([tmp_path])
    (tmp_path / "config.yaml").write_text("description: unfinished\n")
    with pytest.raises(ExperimentError, match="umbel resume"):
        report([tmp_path])
    assert umbel("report", tmp_path).exit_code == 2


@pytest.mark.parametrize(("num_clients", "num_classes"), [(1, 2), (12, 10), (100, 3), (2000, 120)])
def test_heat_maps_of_any_size(num_clients: int, num_classes: int) -> None:
    counts = np.arange(num_clients * num_classes).reshape(num_clients, num_classes) % 1000
    names = [f"name {number}" for number in range(num_classes)]
    for log in (True, False, None):
        content = plots.png(heat.heat_map(counts, names, "title", log))
        assert content.startswith(b"\x89PNG")
    axes = heat.heat_map(counts, names, "title").axes[0]
    assert axes.get_xlabel() == "class"
    assert axes.get_ylabel().startswith("client")


def test_a_curve_shows_mean_and_deviation_over_seeds() -> None:
    figure = plots.curves({"a": [{1: 0.2, 2: 0.4}, {1: 0.4, 2: 0.8, 3: 1.0}]}, "title", "accuracy")
    line = figure.axes[0].lines[0]
    # The mean over both seeds, for rounds that both have.
    np.testing.assert_array_equal(np.asarray(line.get_xdata()), [1, 2])
    np.testing.assert_allclose(np.asarray(line.get_ydata()), [0.3, 0.6])
    assert len(figure.axes[0].collections) == 1


def test_pictures_of_nothing_can_be_drawn() -> None:
    for figure in (
        plots.curves({"a": []}, "t", "y"),
        plots.clients({"a": [float("nan")]}, "t", "y"),
        heat.heat_map(np.zeros((2, 2), dtype=np.int64), ["a", "b"], "t"),
    ):
        assert plots.png(figure).startswith(b"\x89PNG")
