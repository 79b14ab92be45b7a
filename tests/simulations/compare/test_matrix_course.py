"""The course of comparisons in several settings: what is written as runs end, fail, or are damaged."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from tests.damages import cut
from umbel.core.files import DamagedError
from umbel.server import reading
from umbel.server.errors import RunStoppedError
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare import matrix_course
from umbel.simulations.compare.matrix import Cell, Failure
from umbel.simulations.compare.matrix_course import MatrixCourse
from umbel.simulations.compare.matrix_tables import table
from umbel.simulations.compare.plan import Estimate
from umbel.simulations.compare.read_matrix import read_matrix
from umbel.simulations.compare.settings import prepare_matrix, wanted
from umbel.simulations.compare.write_matrix import write_so_far


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
        return [*MatrixCourse(prepared, plans, Estimate(prepared), Watcher(), 1, fresh).before]

    path = first.comparison.members[1].path
    assert before("resumed") == before("new") == [path]
    assert before("changed") == before("new", fresh=True) == []  # what is run anew has not failed


@pytest.mark.usefixtures("without_pictures")
def test_a_damaged_earlier_run_does_not_stop_the_others(
    whole: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix_course, "_PAGES_AFTER_SECONDS", 0.0)
    path, output = str(whole[0] / "mine.yaml"), shutil.copytree(whole[0] / "m", tmp_path / "m")
    prepared = prepare_matrix(path, wanted(path), (), output)
    cut(prepared.cells[1].comparison.members[0].path / "summary.json")
    course = MatrixCourse(prepared, [["new"] * 2, ["reused"] * 2], Estimate(prepared), Watcher(), 2)
    jobs = course.jobs()
    for job in jobs[:2]:
        course.ended(job, None)
    course.meanwhile()
    assert read_matrix(output).num_missing == 2  # what is there was not looked at yet
    # Tables that cannot be written are tried again at the end, and refused there.
    cut(prepared.cells[0].comparison.members[0].path / "env.json")
    monkeypatch.setattr(matrix_course, "write", lambda each: reading.environment(each.members[0].path))
    course = MatrixCourse(prepared, [["new"] * 2, ["reused"] * 2], Estimate(prepared), Watcher(), 2)
    for job in course.jobs()[:2]:
        course.ended(job, None)
    course.meanwhile()
    assert isinstance(course.write_rest(), DamagedError)


def test_pages_of_all_settings_come_with_each_that_is_complete(
    whole: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = whole
    prepared = prepare_matrix(str(folder / "mine.yaml"), wanted(str(folder / "mine.yaml")), (), folder / "m")
    monkeypatch.setattr(matrix_course, "_PAGES_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(matrix_course, "write", lambda comparison: written.append(comparison.path.name))
    monkeypatch.setattr(matrix_course, "write_matrix", lambda matrix: written.append(str(matrix.num_missing)))
    written: list[str] = []
    plans = [["new"] * 2] * 2
    course = MatrixCourse(prepared, plans, Estimate(prepared), Watcher(), 2)
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
