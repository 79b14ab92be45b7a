"""Tables and pages of all settings: whole, or of what there is so far, and where they link to."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from tests.damages import replaced
from tests.simulations.compare.matrices import hows, umbel
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare.comparison import read_comparison
from umbel.simulations.compare.go_through import go_through
from umbel.simulations.compare.matrix import Failure, Matrix
from umbel.simulations.compare.read_matrix import read_matrix
from umbel.simulations.compare.settings import prepare_matrix, wanted
from umbel.simulations.report import matrix as report_matrix
from umbel.simulations.report import page


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
