"""What a run had cost after each round, by its metrics."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.helpers import small_run
from umbel.models.facts import flops
from umbel.server import reading
from umbel.simulations.compare.comparison import costs
from umbel.simulations.report.charts import COST_AXES
from umbel.simulations.report.cost_series import against, costs_by_round


def test_the_last_round_has_cost_what_the_run_has(tmp_path: Path) -> None:
    run = small_run(tmp_path, "model.name=cnn", "model.sizes={width: 4}", "run.rounds=2", "strategy.name=moon")
    by_round = costs_by_round(reading.metrics(run.path).to_pandas())
    whole = costs(run.summary)
    assert by_round.keys() == COST_AXES.keys()
    whole["bytes"] = sum(run.summary[side]["tensors"] for side in ("bytes_up", "bytes_down"))
    for what in ("steps", "examples", "flops", "bytes"):
        assert list(by_round[what]) == [1, 2]
        assert by_round[what][2] == pytest.approx(whole[what] / COST_AXES[what][1], rel=1e-12) and by_round[what][1] > 0
    assert by_round["flops"][2] > 2 * by_round["flops"][1]  # MOON has no model before the first round
    (spec, last), *_ = run.summary["passes"]["clients"].items()
    assert flops({spec: last}) == whole["flops"]


def test_a_run_of_an_earlier_version_says_none() -> None:
    columns = ["round", "side", "split", "metric", "value", "seconds"]
    assert costs_by_round(pd.DataFrame([[1, "server", "test", "accuracy", 0.5, 1.0]], columns=columns)) == {}


def test_a_round_stands_where_seeds_end_it_in_the_mean() -> None:
    courses, spent = [{1: 0.1, 2: 0.3}, {1: 0.2, 2: 0.4}], [{1: 10.0, 2: 20.0}, {1: 30.0, 2: 60.0}]
    assert against(courses, spent) == [{20.0: 0.1, 40.0: 0.3}, {20.0: 0.2, 40.0: 0.4}]
    assert against(courses, [{1: 10.0}, {1: 30.0, 2: 60.0}]) == [{20.0: 0.1}, {20.0: 0.2}]
