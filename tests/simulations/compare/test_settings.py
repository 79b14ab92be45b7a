"""What comparisons in several settings are asked for: by file and command line, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.simulations.compare.matrices import TINY, umbel, written
from umbel import compare, compare_settings
from umbel.conf.errors import ExperimentError
from umbel.conf.sweep import Setting
from umbel.core.refusal import Refusal
from umbel.simulations.compare.settings import folder_of, wanted


def test_the_command_line_comes_before_the_file_and_says_so(tmp_path: Path) -> None:
    path = str(written(tmp_path))
    of_file = wanted(path)
    assert (of_file.strategies, of_file.seeds, of_file.budget) == ("fedavg,fedprox(mu=1.0)", "1", "rounds")
    assert [each.label for each in of_file.settings] == ["data.alpha=0.5", "data.alpha=5"] and not of_file.notices
    mine = wanted(path, (), "scaffold", "2", "steps", ["client.lr=0.1,0.2"])
    assert (mine.strategies, mine.seeds, mine.budget) == ("scaffold", "2", "steps")
    assert [each.label for each in mine.settings] == ["client.lr=0.1", "client.lr=0.2"]
    for option in ("--strategies scaffold", "--seeds 2", "--sweep"):
        assert any(option in notice for notice in mine.notices), option
    assert not any("--budget" in notice for notice in mine.notices)  # the file says none


def test_overrides_fix_keys_of_the_sweep(tmp_path: Path) -> None:
    two = "sweep: {data.alpha: [0.5, 5], client.lr: [0.1, 0.2]}"
    path = str(written(tmp_path, TINY.replace("sweep: {data.alpha: [0.5, 5]}", two)))
    half = wanted(path, ["data.alpha=1"])
    assert [each.overrides for each in half.settings] == [("client.lr=0.1",), ("client.lr=0.2",)]
    assert "data.alpha=1" in half.notices[0]
    one = wanted(path, ["data.alpha=1", "client.lr=3"])
    assert one.settings == () and "one setting" in one.notices[0]
    named = "sweep: [{name: a, data.alpha: 1, client.lr: 1}, {name: b, data.alpha: 2, client.lr: 1}]"
    path = str(written(tmp_path, TINY.replace("sweep: {data.alpha: [0.5, 5]}", named)))
    with pytest.raises(ExperimentError, match="is what the settings"):
        wanted(path, ["client.lr=3"])
    with pytest.raises(ExperimentError, match="contradict"):
        wanted(path, ["client.lr=3"], sweep=["client.lr=1,2"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sweep", "data.alpa=1,2"], "data.alpha"),
        (["--sweep", "data.alpha=1,-3"], "Setting data.alpha=-3"),
        (["--sweep", "client.lr=0.1,0.10"], "give the same runs"),
        (["--sweep", "engine.name=inline,ray"], "give the same runs"),
        (["--sweep", "data.num_clients=2,4000"], "data.num_clients"),
        (["--sweep", "run.seed=1,2"], "--seeds"),
        (["data.alpha=1", "--sweep", "data.alpha=1,2"], "contradict"),
        (["run.rounds=x"], "run.rounds"),
        (["--only-report", "--fresh"], "--only-report runs nothing, and --fresh"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_starts(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = umbel("compare", written(tmp_path), *arguments, "--output", tmp_path / "m")
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert not (tmp_path / "m").exists()


def test_one_run_and_umbel_compare_from_python_take_one_setting(tmp_path: Path) -> None:
    path = written(tmp_path)
    alone = umbel("run", path, f"run.results={tmp_path / 'r'}")
    assert alone.exit_code == 2 and "umbel compare" in alone.stderr and not (tmp_path / "r").exists()
    with pytest.raises(ExperimentError, match="compare_settings"):
        compare(str(path), strategies="fedavg")
    with pytest.raises(Refusal, match="one setting"):
        compare_settings(str(path), "data.alpha=1")
    nobody = umbel("compare", "digits")
    assert nobody.exit_code == 2 and "--strategies" in nobody.stderr


def test_how_many_at_once_is_refused_where_it_was_said(tmp_path: Path) -> None:
    path = written(tmp_path, TINY.replace("seeds: 1}", "seeds: 1, at_once: 4}"))
    where = ("--budget", "seconds", "--output", tmp_path / "m")
    of_file = umbel("compare", path, *where)
    assert of_file.exit_code == 2 and "compare.at_once 4: the budget is seconds" in of_file.stderr
    assert "Take it out of the file, or say --at-once 1." in of_file.stderr
    of_line = umbel("compare", path, *where, "--at-once", "3")
    assert of_line.exit_code == 2 and "--at-once 3: the budget" in of_line.stderr and "Leave it out" in of_line.stderr
    report = umbel("compare", path, *where, "--only-report")  # which runs nothing
    assert report.exit_code == 2 and "Nothing of this comparison" in report.stderr and "seconds" not in report.stderr
    for call in (compare, compare_settings):
        own = ["data.alpha=1"] if call is compare else []
        with pytest.raises(Refusal, match="--at-once takes a number from 1, or auto; found '0'"):
            call(str(path), *own, output=tmp_path / "m", at_once=0)
    assert not (tmp_path / "m").exists()


def test_folders_are_told_apart() -> None:
    labels = ["data.alpha=0.1,model.name=cnn", "iid", "a/b", "a b", "table.md", "..", "x" * 300]
    names = [folder_of(Setting(label, ("k.v=1",))) for label in labels]
    assert names[:2] == labels[:2] and len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w=,+-][\w.=,+-]{0,140}", name) for name in names) and "table.md" not in names
    assert folder_of(Setting("a/b", ("k.v=1",))) != folder_of(Setting("a/b", ("k.v=2",)))
