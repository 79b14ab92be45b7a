"""`umbel ls` and `umbel diff`, over runs that are done, stopped, under way, ended early and damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.helpers import small_run
from umbel.server.lock import exclusive
from umbel.simulations.commands.main import main
from umbel.simulations.runs.difference import difference
from umbel.simulations.runs.overview import find


def umbel(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    small_run(root, "run.name=done")
    small_run(root / "compared", "run.name=prox", "strategy.name=fedprox", "strategy.mu=0.5", "run.seed=3")
    small_run(root, "run.name=ended", "run.rounds=9", "run.budget=steps=1")
    stopped = small_run(root, "run.name=stopped").path
    for name in ("summary.json", "metrics.parquet"):
        (stopped / name).unlink()
    shutil.copytree(root / "done", root / "damaged")
    (root / "damaged" / "summary.json").write_text("{")
    (root / "nothing").mkdir()
    return root


def test_each_run_with_its_state(results: Path) -> None:
    found = {seen.path.name: seen for seen in find(results)}
    states = {name: seen.state for name, seen in found.items()}
    assert states == {"done": "done", "prox": "done", "ended": "ended", "stopped": "stopped", "damaged": "damaged"}
    prox, stopped = found["prox"], found["stopped"]
    assert (prox.strategy, prox.seed, prox.round, prox.rounds) == ("fedprox", 3, 2, 2)
    assert (stopped.strategy, stopped.round, stopped.rounds) == ("fedavg", 2, 2)
    assert stopped.result == found["done"].result and "test accuracy" in stopped.result
    assert "summary.json" in found["damaged"].flaw
    with exclusive(results / "stopped"):
        assert next(seen for seen in find(results) if seen.path.name == "stopped").state == "running"


def test_the_newest_comes_first_and_a_run_itself_can_be_named(results: Path) -> None:
    found = find(results)
    assert [seen.began for seen in found] == sorted((seen.began for seen in found), reverse=True)
    (one,) = find(results / "done")
    assert one.state == "done" and one.plain(results / "done")["run"] == str(results / "done")


def test_ls_prints_a_table_or_json(results: Path) -> None:
    shown = umbel("ls", results)
    assert shown.exit_code == 0, shown.output
    for word in ("compared/prox", "fedprox", "2/2", "stopped", "damaged", "1/1"):
        assert word in shown.output
    rows = [json.loads(line) for line in umbel("ls", results, "--json").stdout.splitlines()]
    assert {row["run"] for row in rows} == {"done", "compared/prox", "ended", "stopped", "damaged"}
    empty = umbel("ls", results / "nothing")
    assert empty.exit_code == 0 and "no runs" in empty.output


def test_what_is_no_folder_is_refused(results: Path) -> None:
    for words in (("ls", results / "gone"), ("diff", results / "done", results / "nothing"), ("diff", "x", "y")):
        done = umbel(*words)
        assert done.exit_code == 2 and done.stderr.strip() and "Traceback" not in done.stderr


def test_two_runs_differ_in_what_was_asked_and_what_came_of_it(results: Path) -> None:
    found = difference(results / "done", results / "compared" / "prox")
    assert found.configuration["strategy.name"] == ("fedavg", "fedprox")
    assert found.configuration["strategy.mu"] == (None, 0.5) and found.configuration["run.seed"] == (0, 3)
    assert not {"run.name", "run.results", "data.name"} & found.configuration.keys()
    assert found.environment["sources.umbel.strategies.fedprox"][0] is None
    assert "versions.torch" not in found.environment
    assert "test/accuracy" in found.metrics and found.same_bits is False
    same = difference(results / "done", results / "done")
    assert not (same.configuration or same.environment or same.metrics) and same.same_bits
    assert difference(results / "done", results / "stopped").same_bits is None


def test_diff_prints_it(results: Path) -> None:
    shown = umbel("diff", results / "done", results / "compared" / "prox")
    assert shown.exit_code == 0, shown.output
    for word in ("strategy.mu", "–", "0.5", "test/accuracy", "other weights"):
        assert word in shown.output
    same = umbel("diff", results / "done", results / "done")
    assert "Configuration: the same." in same.output and "the same weights" in same.output
    assert json.loads(umbel("diff", results / "done", results / "done", "--json").stdout)["same_bits"] is True
