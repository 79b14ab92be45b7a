"""Comparisons in several settings that are carried out: what runs, in turn or at once, stopped, or failing."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result

from tests.simulations.compare.matrices import TINY, events, hashes, hows, umbel, written
from umbel.core.files import DamagedError, read_json
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare.comparison import read_comparison
from umbel.simulations.compare.go_through import go_through
from umbel.simulations.compare.matrix_tables import markdown, table
from umbel.simulations.compare.read_matrix import read_matrix
from umbel.simulations.compare.settings import prepare_matrix, wanted


class Killed(Watcher):
    """Stops everything in the second round of one of the runs."""

    def __init__(self, which: int) -> None:
        super().__init__()
        self._which, self._index = which, 0

    def member(self, index: int, total: int, label: str, seed: int, how: str) -> None:
        self._index = index if total > 1 else 0  # first rounds are one run of one

    def phase(self, round_: int, phase: str, num_clients: int) -> None:
        if self._index == self._which and round_ == 4:
            raise KeyboardInterrupt


def test_a_file_alone_is_the_whole_matrix(whole: tuple[Path, Result]) -> None:
    folder, result = whole
    output = folder / "m"
    assert result.stdout.splitlines()[-1] == str(output)
    # Two settings of which the first rounds are measured, then four runs, two of which go on from there.
    assert hows(result) == ["new", "new", "resumed", "new", "resumed", "new"]
    told = events(result)
    (plan,) = (event for event in told if event["event"] == "plan")
    assert [row["runs"] for row in plan["settings"]] == [2, 2] and plan["seconds"] is None
    left = [event for event in told if event["event"] == "left"]
    assert [event["runs"] for event in left] == [4, 3, 2, 1, 0] and left[0]["seconds"] > 0 == left[-1]["seconds"]
    for name in ("comparison.json", "table.md", "table.tex", "table.csv", "report.html", "settings.png", "ranks.png"):
        assert (output / name).stat().st_size
    assert (output / "profiles.png").is_file()
    # Each setting is an ordinary comparison.
    for alpha in ("0.5", "5"):
        each = read_comparison(output / f"data.alpha={alpha}")
        assert each.members[0].experiment.data.alpha == float(alpha)
        assert (each.path / "report.html").is_file()
    content = read_json(output / "comparison.json")
    first = read_comparison(output / "data.alpha=0.5")
    mean, _ = first.mean_and_deviation("fedavg", "test_last")
    assert content["settings"][0]["table"]["fedavg"]["mean"] == pytest.approx(mean)
    assert content["main"] == "test_last" and "Of 2 settings" in (output / "table.md").read_text()
    again = read_matrix(output)
    assert markdown(again) == (output / "table.md").read_text() and again.ranking is not None


def test_the_same_command_runs_nothing_twice(whole: tuple[Path, Result]) -> None:
    folder, _ = whole
    before = {path: path.read_bytes() for path in (folder / "m").glob("*/*/progress.jsonl")}
    dry = umbel("compare", folder / "mine.yaml", "--output", folder / "m", "--dry-run", "--json")
    (plan,) = events(dry)
    assert [row["reused"] for row in plan["settings"]] == [2, 2] and plan["seconds"] == 0
    more = umbel("compare", folder / "mine.yaml", "--seeds", "2", "-o", folder / "m", "--dry-run", "--json")
    (plan,) = events(more)
    assert [(row["reused"], row["new"]) for row in plan["settings"]] == [(2, 2)] * 2 and plan["seconds"] > 0
    table_of = umbel("compare", folder / "mine.yaml", "--seeds", "2", "-o", folder / "m", "--dry-run")
    assert "2 settings × 2 strategies × 2 seeds: 8 runs, 4 to go, about" in table_of.stderr.replace("\n", " ")
    assert "takes the place of `compare.seeds`" in table_of.stderr
    again = umbel("compare", folder / "mine.yaml", "--output", folder / "m")
    assert hows(again) == ["reused"] * 4 and again.exit_code == 0
    assert len(before) == 4 and all(path.read_bytes() == content for path, content in before.items())
    other = umbel("compare", folder / "mine.yaml", "data.alpha=1", "--output", folder / "m")
    assert other.exit_code == 2 and "several settings" in other.stderr


def test_what_was_stopped_in_the_middle_goes_on_to_the_same_bits(whole: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = whole
    prepared = prepare_matrix(str(folder / "mine.yaml"), wanted(str(folder / "mine.yaml")), (), tmp_path / "m")
    killed = Killed(2)
    with pytest.raises(KeyboardInterrupt):
        go_through(prepared, killed)
    assert killed.page == tmp_path / "m" / "report.html"
    # What has ended is told of, and what is still to come.
    there = read_matrix(tmp_path / "m")
    assert (there.num_missing, there.num_runs) == (3, 4) and there.ranking is None
    assert [len(cell.missing) for cell in there.cells] == [1, 2]
    text = (tmp_path / "m" / "table.md").read_text()
    assert "with 1 of 4 runs there" in text and "| 1 of 1 so far" not in text and "0 of 1 so far" in text
    assert "data.alpha=0.5: still to come: fedprox(mu=1.0), seed 0" in text
    assert "data.alpha=5: all 2 runs are still to come" in text
    html = (tmp_path / "m" / "report.html").read_text()
    assert "<h2>Still to come</h2>" in html and "2 runs, 1 still to come" in html
    # The command on the page is the one that goes on; where all is there, it makes the same again.
    assert "umbel compare" in html and "--fresh" not in html and "<a href" not in html
    assert "--fresh" in (folder / "m" / "report.html").read_text()
    assert not (tmp_path / "m" / "data.alpha=5" / "report.html").exists()
    again = umbel("compare", folder / "mine.yaml", "--output", tmp_path / "m")
    assert again.exit_code == 0, again.output
    assert hows(again) == ["reused", "resumed", "resumed", "new"]  # no first rounds: they were measured
    assert hashes(read_matrix(tmp_path / "m")) == hashes(read_matrix(folder / "m"))
    changed = tmp_path / "m" / "comparison.json"
    changed.write_text(changed.read_text().replace("data.alpha", "data.alfa"))
    with pytest.raises(DamagedError):
        read_matrix(tmp_path / "m")


def test_several_at_once_come_to_the_same_bits_and_tables(whole: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = whole
    path, output = folder / "mine.yaml", tmp_path / "m"
    arguments = ("compare", path, "--output", output)
    result = umbel(*arguments, "--at-once", "2")
    assert result.exit_code == 0, result.output
    mine, one_by_one = read_matrix(output), read_matrix(folder / "m")
    assert hashes(mine) == hashes(one_by_one)
    assert markdown(mine) == markdown(one_by_one) == (output / "table.md").read_text()
    assert not list(output.glob("*/logs"))  # nobody printed anything
    told = events(result)
    members = [each for each in told if each["event"] == "member"]
    # Lines of a run have its number: those of each, taken alone, are those of an ordinary run.
    assert [each["index"] for each in members] == [1, 3, 1, 2, 3, 4] and all("run" in each for each in members)
    # That of first rounds is the number of the run that they are of.
    begun = [each["round"] for each in told[: told.index(members[2])] if each["event"] == "round" and each["run"] == 3]
    assert begun[:2] == [1, 2]  # and more, where they are over before it is asked to stop
    for run in (2, 4):
        rounds = [each["round"] for each in told[told.index(members[2]) :] if each["event"] == "round"
                  and each["run"] == run]  # fmt: skip
        assert rounds == [1, 2, 3, 4]
    left = [each for each in told if each["event"] == "left"]
    assert [each["runs"] for each in left] == [4, 3, 2, 1, 0] and left[0]["seconds"] > 0 == left[-1]["seconds"]
    (plan,) = (each for each in told if each["event"] == "plan")
    assert plan["at_once"] == 2
    again = umbel(*arguments, "--at-once", "2")
    assert hows(again) == ["reused"] * 4 and again.exit_code == 0


def test_runs_that_fail_stand_in_the_tables_and_the_others_go_on(tmp_path: Path) -> None:
    text = TINY.replace("[fedavg, fedprox(mu=1.0)]", "[fedavg(server_lr=1e30), fedprox]")
    text = text.replace("rounds: 4", "rounds: 2").replace("linear", "cnn").replace("sweep: {data.alpha: [0.5, 5]}", "")
    path = written(tmp_path, text)
    result = umbel("compare", path, "--sweep", "data.alpha=0.5,5", "--output", tmp_path / "m")
    assert result.exit_code == 3, result.output
    failed = [event for event in events(result) if event["event"] == "run_failed"]
    assert [event["strategy"] for event in failed] == ["fedavg(server_lr=1e30)"] * 2
    assert "2 of 4 runs failed" in result.stderr
    found = read_matrix(tmp_path / "m")
    _, rows = table(found)
    assert [row[1] for row in rows[:2]] == ["failed 1 of 1"] * 2 and rows[-1][1:] == ["2.00", "1.00"]
    text = (tmp_path / "m" / "table.md").read_text()
    assert text.count("fedavg(server_lr=1e30), seed 0, failed:") == 2 and "last rank" in text
    # The setting's own comparison has what ended, and says what did not.
    own = read_comparison(tmp_path / "m" / "data.alpha=0.5")
    assert [item.label for item in own.items] == ["fedprox"]
    assert "Not in the table: fedavg(server_lr=1e30)" in (own.path / "table.md").read_text()
    html = (tmp_path / "m" / "report.html").read_text()
    assert "<h2>Failed</h2>" in html and "2 runs, 1 failed" in html
