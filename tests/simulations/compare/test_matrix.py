"""Comparisons in several settings: what is asked for, what runs, what is written, what happens when runs fail."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.damages import cut, replaced
from tests.helpers import compared
from umbel import compare, compare_settings
from umbel.conf.errors import ExperimentError
from umbel.conf.schema import Experiment
from umbel.conf.sweep import Setting
from umbel.core.files import DamagedError, read_json
from umbel.core.refusal import Refusal
from umbel.server import reading
from umbel.server.errors import RunStoppedError
from umbel.simulations.commands.main import main
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare import go_through as through
from umbel.simulations.compare.comparison import Comparison, Item, Member, read_comparison
from umbel.simulations.compare.go_through import go_through, write_so_far
from umbel.simulations.compare.matrix import Cell, Failure, Matrix, read_matrix
from umbel.simulations.compare.matrix_tables import frame, latex, markdown, table
from umbel.simulations.compare.plan import Estimate, measured
from umbel.simulations.compare.settings import folder_of, prepare_matrix, wanted
from umbel.simulations.report import matrix as report_matrix
from umbel.simulations.report import page

TINY = """\
data: {name: digits, num_clients: 2, max_train: 60, partition: dirichlet}
model: {name: linear}
run: {rounds: 4}
client: {epochs: 1}
evaluate: {clients: 0}
compare: {strategies: [fedavg, fedprox(mu=1.0)], seeds: 1}
sweep: {data.alpha: [0.5, 5]}
"""


def umbel(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def written(folder: Path, text: str = TINY) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def events(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def hows(result: Result) -> list[str]:
    return [event["how"] for event in events(result) if event["event"] == "member"]


def hashes(matrix: Matrix) -> list[str]:
    return [each.summary["weights_sha256"] for cell in matrix.cells for each in cell.comparison.members]


def made(values: dict[str, dict[str, list[float]]], failures: dict[str, list[Failure]] | None = None) -> Matrix:
    """Make a matrix: by setting and strategy the test accuracies, one a seed."""
    cells = []
    for setting, by_label in values.items():
        given = {label: [{"test_last": each} for each in row] for label, row in by_label.items()}
        comparison = compared(given)
        for number, member in enumerate(comparison.members):
            member.__dict__["summary"] = {"weights_sha256": f"{setting}-{number}"}
        cells.append(
            Cell(Setting(setting, (f"data.alpha={setting}",)), comparison, tuple((failures or {}).get(setting, ())))
        )
    return Matrix(Path("somewhere"), tuple(cells), "digits")


# ---- what is asked for -----------------------------------------------------------------------------------------


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


# ---- what runs -------------------------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A matrix that ran through, and what the command said."""
    folder = tmp_path_factory.mktemp("whole")
    result = umbel("compare", written(folder), "--output", folder / "m")
    assert result.exit_code == 0, result.output
    return folder, result


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


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are written, and what takes seconds is not drawn."""
    for place in (report_matrix, page):
        monkeypatch.setattr(place, "write_pictures", lambda _: None)
    monkeypatch.setattr(page, "report", lambda _: None)


@pytest.mark.usefixtures("without_pictures")
def test_a_report_can_be_had_at_any_time(whole: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = whole
    output, two_seeds = tmp_path / "m", ("--seeds", "2", "--only-report")
    nothing = umbel("compare", folder / "mine.yaml", "--output", output, *two_seeds)
    assert nothing.exit_code == 2 and "--only-report" in nothing.stderr and not output.exists()
    shutil.copytree(folder / "m", output)
    shutil.rmtree(next((output / "data.alpha=5").glob("fedprox*")))
    result = umbel("compare", folder / "mine.yaml", "--output", output, *two_seeds)
    assert result.exit_code == 0, result.output
    assert (
        not hows(result) and "data.alpha=0.5: still to come: fedavg, seed 1; fedprox(mu=1.0), seed 1" in result.stderr
    )
    there = read_matrix(output)
    assert [len(cell.missing) for cell in there.cells] == [2, 3]
    # A setting's own tables are of the seeds that are complete, and say which are not.
    own = read_comparison(output / "data.alpha=0.5")
    assert own.seeds == (0,) and own.open_seeds == (1,)
    assert "Not in the table yet: seed 1" in (own.path / "table.md").read_text()
    again = page._compare_command(own)
    assert "--seeds 0,1 " in again and "--fresh" not in again
    assert "--seeds 0, --fresh" in page._compare_command(read_comparison(folder / "m" / "data.alpha=0.5"))
    replaced(next((output / "data.alpha=0.5").glob("fedprox*")) / "env.json", '"umbel": "', '"umbel": "0')
    fewer = umbel("compare", folder / "mine.yaml", "--output", output, *two_seeds)
    assert fewer.exit_code == 0 and "1 run that is of other code" in fewer.stderr and "--keep" in fewer.stderr
    assert [len(cell.missing) for cell in read_matrix(output).cells] == [3, 3]
    kept = umbel("compare", folder / "mine.yaml", "--output", output, *two_seeds, "--keep")
    assert kept.exit_code == 0 and "other code" not in kept.stderr
    assert [len(cell.missing) for cell in read_matrix(output).cells] == [2, 3]
    alone = ("compare", folder / "mine.yaml", "-s", "fedprox(mu=1.0)", "--only-report", "--seeds", "1")
    none = umbel(*alone, "data.alpha=0.5", "-o", output / "data.alpha=0.5")
    assert none.exit_code == 2 and "--keep takes 1 run" in none.stderr
    replaced(next((output / "data.alpha=0.5").glob("fedprox*")) / "env.json", '"umbel": "0', '"umbel": "')
    one = umbel("compare", folder / "mine.yaml", "data.alpha=0.5", "-o", output / "data.alpha=0.5", *two_seeds)
    assert one.exit_code == 0 and "2 of 4 runs are in the table" in one.stderr


@pytest.mark.usefixtures("without_pictures")
def test_a_run_that_failed_stays_failed_until_it_is_carried_out(whole: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = whole
    output = tmp_path / "m"
    shutil.copytree(folder / "m", output)
    prepared = prepare_matrix(str(folder / "mine.yaml"), wanted(str(folder / "mine.yaml")), (), output)
    first = prepared.cells[0]
    (first.comparison.members[1].path / "summary.json").unlink()
    (prepared.cells[1].comparison.members[0].path / "summary.json").unlink()
    failed = Cell(first.setting, first.comparison, (Failure("fedprox(mu=1.0)", 0, "no reason"),))
    there = write_so_far(replace(prepared, cells=(failed, prepared.cells[1])))
    assert (len(there.failures), there.num_missing) == (1, 1)
    later = write_so_far(prepared)  # asked by another process, which knows the folder alone
    assert [each.sentence for _, each in later.failures] == ["fedprox(mu=1.0), seed 0, failed: no reason"]
    assert table(later)[1][0][2] == "failed 1 of 1" and table(later)[1][1][1] == "0 of 1 so far"

    def before(how: str, fresh: bool = False) -> list[Path]:
        plans = [["reused", how], [how, "reused"]]
        return [*through._Course(prepared, plans, Estimate(prepared), Watcher(), 1, fresh).before]

    path = first.comparison.members[1].path
    assert before("resumed") == before("new") == [path]
    assert before("changed") == before("new", fresh=True) == []  # what is run anew has not failed


def test_an_earlier_page_is_not_that_of_what_has_ended(whole: tuple[Path, Result], tmp_path: Path) -> None:
    class Stops(Watcher):
        def setting(self, index: int, total: int, label: str, probed: bool = False) -> None:
            raise KeyboardInterrupt

    path = str(whole[0] / "mine.yaml")
    prepared, watcher = prepare_matrix(path, wanted(path), (), tmp_path), Stops()
    (tmp_path / "report.html").touch()
    with pytest.raises(KeyboardInterrupt):
        go_through(prepared, watcher)
    assert watcher.page is None


def test_a_page_links_to_reports_that_are_there_and_of_the_same_runs(
    whole: tuple[Path, Result], tmp_path: Path
) -> None:
    there = read_matrix(shutil.copytree(whole[0] / "m", tmp_path / "m"))

    def links(matrix: Matrix) -> list[bool]:
        return [bool(link) for *_, link in report_matrix.settings(matrix)]

    assert links(there) == [True, True]
    (tmp_path / "m" / "data.alpha=5" / "report.html").unlink()
    assert links(there) == [True, False]
    failed = replace(there.cells[0], failures=(Failure("fedprox(mu=1.0)", 0, "no reason"),))
    assert links(replace(there, cells=(failed, there.cells[1]))) == [False, False]


@pytest.mark.usefixtures("without_pictures")
def test_a_damaged_earlier_run_does_not_stop_the_others(
    whole: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(through, "_PAGES_AFTER_SECONDS", 0.0)
    path, output = str(whole[0] / "mine.yaml"), shutil.copytree(whole[0] / "m", tmp_path / "m")
    prepared = prepare_matrix(path, wanted(path), (), output)
    cut(prepared.cells[1].comparison.members[0].path / "summary.json")
    course = through._Course(prepared, [["new"] * 2, ["reused"] * 2], Estimate(prepared), Watcher(), 2)
    jobs = course.jobs()
    for job in jobs[:2]:
        course.ended(job, None)
    course.meanwhile()
    assert read_matrix(output).num_missing == 2  # what is there was not looked at yet
    # Tables that cannot be written are tried again at the end, and refused there.
    cut(prepared.cells[0].comparison.members[0].path / "env.json")
    monkeypatch.setattr(through, "write", lambda each: reading.environment(each.members[0].path))
    course = through._Course(prepared, [["new"] * 2, ["reused"] * 2], Estimate(prepared), Watcher(), 2)
    for job in course.jobs()[:2]:
        course.ended(job, None)
    course.meanwhile()
    assert isinstance(course.write_rest(), DamagedError)


def test_pages_of_all_settings_come_with_each_that_is_complete(
    whole: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = whole
    prepared = prepare_matrix(str(folder / "mine.yaml"), wanted(str(folder / "mine.yaml")), (), folder / "m")
    monkeypatch.setattr(through, "_PAGES_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(through, "write", lambda comparison: written.append(comparison.path.name))
    monkeypatch.setattr(through, "write_matrix", lambda matrix: written.append(str(matrix.num_missing)))
    written: list[str] = []
    plans = [["new"] * 2] * 2
    course = through._Course(prepared, plans, Estimate(prepared), Watcher(), 2)
    for job in course.jobs()[1::-1]:  # the second is the first to end
        course.meanwhile()
        assert not written
        course.ended(job, RunStoppedError("no reason") if job.index == 2 else None)
    course.meanwhile()
    assert written == ["data.alpha=0.5", "2"]  # of the other setting both runs are to come
    assert [each.sentence for _, each in course.matrix().failures] == ["fedprox(mu=1.0), seed 0, failed: no reason"]
    for job in course.jobs()[2:]:
        course.ended(job, None)
    course.meanwhile()
    assert written == ["data.alpha=0.5", "2", "data.alpha=5"]  # those of all are written when it is over


def test_a_report_of_all_settings_is_one_file(whole: tuple[Path, Result]) -> None:
    folder, _ = whole
    html = (folder / "m" / "report.html").read_text()
    assert "<script" not in html and "http:" not in html and "https:" not in html
    assert set(re.findall(r"href=\"([^\"#][^\"]*)", html)) == {
        f"data.alpha%3D{alpha}/report.html" for alpha in ("0.5", "5")
    }
    alternatives = re.findall(r"role=\"img\"[^>]* aria-label=\"([^\"]*)", html)
    assert len(alternatives) == 3 and "data:image/png" not in html
    assert "data.alpha=0.5, " in alternatives[0] and "Of 2 settings ranks can tell nothing" in alternatives[1]
    assert f"umbel compare {folder / 'mine.yaml'}" in html and "--sweep data.alpha=0.5,5" in html
    own = (folder / "m" / "data.alpha=5" / "report.html").read_text()
    assert f"umbel compare {folder / 'mine.yaml'} data.alpha=5 " in own and "--budget rounds" in own
    assert umbel("report", folder / "m", "--output", folder / "again.html").exit_code == 0


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


# ---- numbers and words -----------------------------------------------------------------------------------------


def test_ranks_over_settings_are_told_or_not() -> None:
    order = {"a": [0.5, 0.52, 0.51, 0.53], "b": [0.6, 0.62, 0.61, 0.63], "c": [0.7, 0.72, 0.71, 0.73]}
    rng = iter(range(100))

    def moved() -> dict[str, list[float]]:
        step = 0.001 * next(rng)
        return {label: [each + step for each in row] for label, row in order.items()}

    five = made({str(number): moved() for number in range(10)})
    _, rows = table(five)
    assert rows[-1] == ["mean rank", "3.00", "2.00", "1.00"]
    assert "which tells c from a" in markdown(five) and "interval" in markdown(five)
    assert rows[0][1].startswith("0.5150 [0.5")
    order = {label: row[:3] for label, row in order.items()}
    many = made({str(number): moved() for number in range(14)})
    assert table(many)[1][-1] == ["mean rank", "3.00", "2.00", "1.00 *"] and "told from every other" in markdown(many)
    two = made({str(number): moved() for number in range(2)})
    assert "Of 2 settings ranks can tell nothing" in markdown(two) and "*" not in table(two)[1][-1][3]
    shuffled = made({"0": order, "1": dict(zip("abc", [*order.values()][::-1], strict=True)), "2": order, "3": order})
    assert "may be chance" in markdown(shuffled)
    assert r"$\chi$$^2$" in latex(five) and "χ" not in latex(five)


def test_a_setting_that_changes_nothing_counts_once() -> None:
    values = {"a": [0.5, 0.6], "b": [0.6, 0.7], "c": [0.7, 0.9]}
    same = made({str(number): values for number in range(3)})
    assert len(same.distinct) == 3  # other weights, though the same accuracies
    for cell in same.cells[1:]:
        for first, member in zip(same.cells[0].comparison.members, cell.comparison.members, strict=True):
            member.__dict__["summary"] = first.summary
    same = Matrix(same.path, same.cells, same.source)
    assert len(same.distinct) == 1 and len(same.regrets["a"]) == 2
    assert "All runs of 1; 2 came to what those of a setting above came to" in markdown(same)
    assert "mean rank" not in markdown(same)


def test_a_failed_run_is_never_near_and_never_averaged_over() -> None:
    values = {label: [0.5 + 0.1 * place, 0.6] for place, label in enumerate("abc")}
    failures = {"1": [Failure("c", 1, "diverged", is_saved=True)]}
    found = made({str(number): values for number in range(3)}, failures)
    assert found.cells[1].values("c", "test_last")[0] == pytest.approx(0.7)
    assert math.isnan(found.scores["c"][1]) and math.isinf(found.regrets["c"][3])
    assert found.regrets["a"] == pytest.approx([0.2, 0.0, 0.2, 0.0, 0.2, 0.0])
    assert found.ranking is not None and found.ranking.mean_ranks["c"] == pytest.approx((1 + 3 + 1) / 3)
    whole = found.cells[1].whole
    assert whole is not None and [item.label for item in whole.items] == ["a", "b"] and len(whole.members) == 4
    rows = frame(found)
    one = rows[(rows.setting == "1") & (rows.strategy == "c") & (rows.measure == "test_last")].to_dict("records")
    assert len(one) == 1 and math.isnan(one[0]["mean"]) and one[0]["num_failed"] == 1
    open_ = replace(found, cells=(replace(found.cells[0], missing=frozenset({("a", 0)})), *found.cells[1:]))
    rows = frame(open_)
    missing = rows[(rows.setting == "0") & (rows.measure == "test_last")].set_index("strategy")
    assert missing.num_missing.to_dict() == {"a": 1, "b": 0, "c": 0} and math.isnan(missing["mean"]["a"])
    pictures = dict(report_matrix.of_matrix(found))
    assert "c 0.0000 and 1 failed" in pictures["profiles.png"][1]
    everything = made({"0": values}, {"0": [Failure(label, 0, "x") for label in "abc"]})
    assert everything.cells[0].whole is None and everything.main == "test_last"


# ---- how long it takes -----------------------------------------------------------------------------------------


def progress(folder: Path, *told: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "progress.jsonl").write_text("".join(json.dumps(each) + "\n" for each in told))
    return folder


def test_the_time_of_a_run_is_that_of_its_rounds(tmp_path: Path) -> None:
    """Setup 3 s, a first round of 5 s, two of 2 s each: 10 rounds take 3 + 5 + 9 * 2 s."""
    rounds = [(0.0, 5.0, 8.0), (5.0, 7.0, 10.0), (107.0, 109.0, 12.0)]  # begin, end, seconds of the run so far
    lines: list[dict[str, Any]] = [{"event": "begin", "time": -3.0, "folder": ""}]
    for number, (began, ended, seconds) in enumerate(rounds, start=1):
        lines += [{"event": "resumed", "time": 100.0, "round": 2}] if number == 3 else []
        lines.append({"event": "phase", "time": began, "round": number, "phase": "train", "num_clients": 1})
        lines.append({"event": "phase", "time": began + 1, "round": number, "phase": "evaluate", "num_clients": 1})
        lines.append({"event": "round", "time": ended, "round": number, "num_rounds": 10, "seconds": seconds})
    assert measured(progress(tmp_path / "a", *lines), 10) == pytest.approx((12.0, 26.0))
    assert measured(progress(tmp_path / "b", *lines[:4]), 10) == pytest.approx((8.0, 53.0))
    assert measured(progress(tmp_path / "c", *lines[:2]), 10) is None


def test_times_are_carried_over_to_what_has_not_run(tmp_path: Path) -> None:
    """b takes 3 times as long as a in setting 0; a takes 10 s in setting 1, of which nothing else is known."""
    items = (Item("a", "a"), Item("b", "b"))
    cells = []
    for number in range(3):
        folder = tmp_path / str(number)
        members = tuple(Member(item, 0, Experiment(), folder / item.label) for item in items)
        cells.append(Cell(Setting(str(number), ()), Comparison(folder, items, (0,), members, "digits")))
    estimate = Estimate(Matrix(tmp_path, tuple(cells), "digits"))
    assert estimate.whole(0, "a") is None and not estimate.is_known(0)
    estimate._ended |= {(0, "a"): [1.0, 3.0], (0, "b"): [6.0], (1, "a"): [10.0]}
    assert [estimate.whole(0, label) for label in "ab"] == [2.0, 6.0]
    assert estimate.whole(1, "b") == pytest.approx(30.0) and estimate.whole(2, "a") == pytest.approx(6.0)
    member = cells[1].comparison.members[1]
    estimate._spent[member.path] = 12.0
    assert estimate.left(1, member) == pytest.approx(18.0)
