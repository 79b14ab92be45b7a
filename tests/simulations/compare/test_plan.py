"""How long the runs of a comparison may take, by those that were measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from umbel.conf.schema import Experiment
from umbel.conf.sweep import Setting
from umbel.simulations.compare.comparison import Comparison, Item, Member
from umbel.simulations.compare.matrix import Cell, Matrix
from umbel.simulations.compare.plan import Estimate, measured


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
