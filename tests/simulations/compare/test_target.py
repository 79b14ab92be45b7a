"""What it took to come to a target."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.helpers import SMALL
from umbel.core.files import read_sealed
from umbel.simulations.compare import target as targets
from umbel.simulations.compare.carry_out import compare
from umbel.simulations.compare.comparison import Comparison, read_comparison
from umbel.simulations.report import series
from umbel.simulations.report.measures import MEASURES
from umbel.simulations.report.page import report


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("target")
    return compare("digits", *SMALL, "run.rounds=3", strategies="fedavg,fedprox", seeds=2, output=folder, target=0.25)


def test_the_first_round_that_is_as_good_counts(two: Comparison) -> None:
    for member in two.members:
        course = series.course(member.metrics, MEASURES["test_last"])
        for target in (0.0, *course.values(), 2.0):
            expected = next((round_ for round_ in sorted(course) if course[round_] >= target), None)
            found = targets.reached(member, "test_last", target)
            assert found.round == expected
            assert found.costs == (
                {} if expected is None else {cost: by[expected] for cost, by in member.costs_by_round.items()}
            )


def test_of_a_loss_less_is_better(two: Comparison) -> None:
    member = two.members[0]
    course = series.course(member.metrics, MEASURES["loss"])
    assert targets.reached(member, "loss", min(course.values())).round == min(course, key=course.__getitem__)
    assert targets.reached(member, "loss", 0.0).round is None


def test_who_never_comes_there_is_counted_and_has_dashes(two: Comparison) -> None:
    heads, rows = targets.table(dataclasses.replace(two, target=1.5))
    assert heads[:3] == ["strategy", "reached", "rounds"]
    assert rows == [[label, "0 of 2", *["–"] * (len(heads) - 2)] for label in ("fedavg", "fedprox")]


def test_it_stands_in_all_that_is_written_and_is_read_again(two: Comparison) -> None:
    content = read_sealed(two.path / "comparison.json")
    assert content["target"] == 0.25 and content["reached"].keys() == {"fedavg", "fedprox"}
    assert [entry["round"] for entry in content["reached"]["fedavg"]] == [
        targets.reached(member, "test_last", 0.25).round for member in two.of("fedavg")
    ]
    assert json.dumps(content["reached"])
    again = read_comparison(two.path)
    assert again.target == 0.25 and targets.markdown(again) in (two.path / "table.md").read_text(encoding="utf-8")
    page = report([two.path], two.path / "again.html").read_text(encoding="utf-8")
    assert targets.title(two) in page and "--target 0.25" in page


def test_without_a_target_nothing_is_said(two: Comparison, tmp_path: Path) -> None:
    plain = dataclasses.replace(two, target=None)
    assert targets.markdown(plain) == ""
