"""What test examples are taken for: kept by a run, the same after a resume, and shown in reports."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.damages import cut, lose
from tests.helpers import SMALL, small_run
from umbel import resume
from umbel.core.files import DamagedError, file_sha256, read_sealed, write_sealed, write_text
from umbel.core.metrics.counts import NO_CLASS
from umbel.server import reading
from umbel.simulations.compare.carry_out import compare
from umbel.simulations.report import confusion
from umbel.simulations.report.page import report

HEADING = "What is taken for what"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs"), "client.lr=0.1", "run.name=run").path


def with_counts(folder: Path, counts: str) -> Path:
    """Put other counts into a finished run; none where empty, as in one of an older umbel."""
    content = read_sealed(folder / "summary.json")
    del content["files_sha256"]["confusion.csv"]
    if counts:
        write_text(folder / "confusion.csv", f"label,predicted,examples\n{counts}\n")
        content["files_sha256"]["confusion.csv"] = file_sha256(folder / "confusion.csv")
    write_sealed(folder / "summary.json", content)
    return folder


def test_its_sums_are_the_accuracies_of_the_run(folder: Path) -> None:
    found, metrics = confusion.told([folder]), reading.summary(folder)["metrics"]
    assert found is not None
    right = sum(number for (label, predicted), number in found.pairs.items() if label == predicted)
    assert right / sum(found.examples.values()) == pytest.approx(metrics["test/accuracy"], abs=1e-12)
    assert sum(found.examples.values()) == 60
    shares = [found.share((label, label)) for label in found.examples]
    assert sum(shares) / len(shares) == pytest.approx(metrics["test/balanced_accuracy"], abs=1e-12)


def test_it_is_the_same_after_a_resume_and_also_where_no_round_is_left(folder: Path, tmp_path: Path) -> None:
    own = (folder / "confusion.csv").read_bytes()
    halves = small_run(tmp_path, "client.lr=0.1", "run.name=halves", "run.rounds=1", "checkpoint.every=1").path
    assert (halves / "confusion.csv").read_bytes() != own
    resume(halves, "run.rounds=2")
    assert (halves / "confusion.csv").read_bytes() == own
    (halves / "confusion.csv").unlink()
    resume(halves)
    assert (halves / "confusion.csv").read_bytes() == own


def test_what_was_not_evaluated_on_the_server_tells_nothing(tmp_path: Path) -> None:
    run = small_run(tmp_path, "evaluate.server=false", "evaluate.clients=-1").path
    assert not (run / "confusion.csv").exists() and reading.confusion(run) is None
    assert HEADING not in report([run]).read_text(encoding="utf-8")


def test_the_report_of_a_run_says_which_classes_are_confused(folder: Path, tmp_path: Path) -> None:
    run = with_counts(shutil.copytree(folder, tmp_path / "run"), "0,0,6\n0,3,2\n3,0,1\n3,3,4\n5,-1,1")
    page = report([run]).read_text(encoding="utf-8")
    said = re.search(r'aria-label="(What test examples[^"]*)"', page)
    assert said and "71.4 % right, most often taken 0 for 3 in 25.0 %; 3 for 0 in 20.0 %." in said[1]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page.partition(HEADING)[2].partition("</table>")[0])
    assert cells == ["0", "3", "2", "25.0", "3", "0", "1", "20.0"]
    assert "1.0 examples were taken for no class" in page and "data:image/png;base64" in page
    assert '<div class="card picture">' not in page  # no heat map is on white


def test_an_older_run_has_no_such_section_and_a_damaged_table_is_refused(folder: Path, tmp_path: Path) -> None:
    older = with_counts(shutil.copytree(folder, tmp_path / "older"), "")
    assert HEADING not in report([older]).read_text(encoding="utf-8")
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    cut(damaged / "confusion.csv")
    with pytest.raises(DamagedError, match=r"confusion\.csv is damaged"):
        report([damaged])


def test_names_of_classes_take_no_weights(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = with_counts(shutil.copytree(folder, tmp_path / "run"), "0,0,6\n0,3,2\n3,3,4")
    hashed = []
    monkeypatch.setattr(reading, "file_sha256", lambda file: hashed.append(file.name) or file_sha256(file))
    names = confusion.class_names(run)
    assert len(names) == 10 and not hashed
    content = bytearray((run / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "model.safetensors").write_bytes(content)
    assert confusion.class_names(run) == names
    for damage in (cut, lose):
        damage(run / "model.safetensors")
        assert confusion.class_names(run) == ()
    assert "class 3" in section({"": [run]})["picture"][1]


def section(by_label: Mapping[str, list[Path]]) -> dict[str, Any]:
    found = confusion.section(by_label, "title")
    assert found is not None
    return found


def test_a_comparison_has_means_over_seeds(folder: Path, tmp_path: Path) -> None:
    counts = {"a0": "0,0,4", "a1": "0,0,2\n0,1,2", "b0": "0,1,4", "b1": "0,1,3\n0,-1,1"}
    runs = {name: with_counts(shutil.copytree(folder, tmp_path / name), each) for name, each in counts.items()}
    found = section({"a": [runs["a0"], runs["a1"]], "b": [runs["b0"], runs["b1"]]})
    # a: (0 + 2) / 2 of 4; b: (4 + 3) / 2 of 4; of both (1 + 3.5) / 2.
    assert found["rows"] == [["0", "1", "2.2", "25.0", "87.5"]]
    assert found["heads"] == ["class", "taken for", "examples", "a", "b"]
    draw, said = found["picture"]
    assert "a: 75.0 % right, most often taken 0 for 1 in 25.0 %. b: 0.0 % right" in said
    assert [axes.get_title(loc="left") for axes in draw().axes][:2] == ["a", "b"]
    older = with_counts(shutil.copytree(folder, tmp_path / "older"), "")
    assert confusion.section({"a": [runs["a0"], older]}, "title") is None
    assert confusion.section({"a": [runs["a0"]], "b": [older]}, "title") is None


def test_of_many_classes_there_are_the_most_confused_pairs_alone(folder: Path, tmp_path: Path) -> None:
    counts = "\n".join(f"{label},{label},9\n{label},{(label + 1) % 1000},{1 + label % 7}" for label in range(1000))
    found = section({"": [with_counts(shutil.copytree(folder, tmp_path / "run"), counts)]})
    assert found["picture"] is None and "no picture of more than 50 classes" in found["note"]
    assert found["rows"][0] == ["class 6", "class 7", "7", "43.8"] and len(found["rows"]) == 15


def test_shares_of_a_matrix() -> None:
    told = confusion.Told({(0, 0): 3.0, (0, 2): 1.0, (2, NO_CLASS): 2.0}, {0: 4.0, 2: 2.0})
    matrix = told.matrix(3)
    assert matrix[0].tolist() == [0.75, 0.0, 0.25] and matrix[2].tolist() == [0.0, 0.0, 0.0]
    assert np.isnan(matrix[1]).all()


def test_the_report_of_a_comparison_has_them_side_by_side(tmp_path: Path) -> None:
    compare("digits", *SMALL, strategies="fedavg,fedprox(mu=1)", seeds=2, output=tmp_path / "both")
    page = (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    assert HEADING in page and "Means over 2 seeds" in page
    assert re.search(
        r'aria-label="What test examples[^"]*fedavg: [\d.]+ % right[^"]*fedprox\(mu=1\): [\d.]+ % right', page
    )
