"""Lines of a picture can be told apart: by colour, mark, and the label at the end."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.figure import Figure

from umbel.simulations.plots.runs import MARKS, apart, curves


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(
    "places", [[0.5], [0.1, 0.9], [0.5, 0.5, 0.5], [0.0, 0.01, 0.02, 0.9], [0.1, 0.14, 0.3, 0.31, 0.33], [0, 0, 1, 1]]
)
def test_labels_are_moved_apart_and_no_further(places: list[float]) -> None:
    found = apart(places, 0.1)
    assert all(second - first >= 0.1 - 1e-12 for first, second in itertools.pairwise(found))
    assert sum(found) == pytest.approx(sum(places))  # each group stays about its mean
    if all(second - first >= 0.1 for first, second in itertools.pairwise(places)):
        assert found == pytest.approx(places)


def test_lines_have_marks_of_their_own_and_labels_at_their_ends() -> None:
    figure = curves({name: [{1: value, 2: value}] for name, value in zip("abc", (0.2, 0.9, 0.5), strict=True)}, "", "")
    assert labels(figure) == ["a", "c", "b"] and not figure.axes[0].get_legend()
    assert [line.get_marker() for line in figure.axes[0].lines] == list(MARKS[:3])


def test_many_or_long_labels_stand_below() -> None:
    many = curves({str(number): [{1: 0.1, 2: 0.2}] for number in range(7)}, "", "")
    long = curves({name: [{1: 0.1, 2: 0.2}] for name in ("a", "b" * 25)}, "", "")
    assert many.legends and long.legends and not labels(many) + labels(long)


@pytest.mark.parametrize(("num_lines", "num_seeds", "drawn"), [(1, 1, 1), (1, 3, 4), (1, 11, 1), (6, 8, 54), (7, 8, 7)])
def test_the_seeds_stand_behind_their_mean_unless_they_are_many(num_lines: int, num_seeds: int, drawn: int) -> None:
    seeds = [{1: 0.1 * seed, 2: 0.2} for seed in range(num_seeds)]
    figure = curves({str(number): seeds for number in range(num_lines)}, "", "")
    assert len(figure.axes[0].lines) == drawn
