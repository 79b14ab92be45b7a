"""A run that was submitted from another machine: its results are where the server keeps runs, and nowhere else."""

from __future__ import annotations

import pytest

from umbel.conf.load import load
from umbel.core.refusal import Refusal
from umbel.server.flower.submitted import at_home


def test_results_are_where_the_server_keeps_runs(tmp_path):
    experiment, folder = at_home(load("digits", ["run.results=/elsewhere"]), "", tmp_path)
    assert experiment.run.results == str(tmp_path) and folder == ""


def test_a_run_goes_on_in_its_own_folder_without_an_old_wish_to_stop(tmp_path):
    (tmp_path / "first").mkdir()
    for name in ("config.yaml", "stop"):
        (tmp_path / "first" / name).touch()
    _, folder = at_home(load("digits"), "first", tmp_path)
    assert folder == str(tmp_path / "first") and not (tmp_path / "first" / "stop").exists()


@pytest.mark.parametrize("run", ["..", ".", "../other", "a/b", "/etc", "there is none", "first/"])
def test_a_run_that_is_none_of_the_servers_is_refused(tmp_path, run):
    results = tmp_path / "results"
    for folder in (tmp_path, tmp_path / "other", results / "first", results / "a" / "b", results):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").touch()
    with pytest.raises(Refusal, match="has no run"):
        at_home(load("digits"), run, results)
