"""What comparisons in several settings tell together, in numbers and words."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.simulations.compare.matrices import made
from umbel.simulations.compare.matrix import Failure, Matrix
from umbel.simulations.compare.matrix_tables import frame, latex, markdown, table
from umbel.simulations.report import matrix as report_matrix


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
