"""metrics.parquet has one row a value, summary.json is JSON, and what a lost round told counts once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import small_run, watch_phases
from umbel import resume
from umbel.core.files import plain, read_json, write_json
from umbel.server.listener import Listener, events, mend
from umbel.simulations.report.rows import failures
from umbel.strategies.fedavg import FedAvg

SEVERAL_PHASES = (
    *("strategy.name=ggeur", "strategy.base=scaffold", "strategy.complete=all", "strategy.target=20"),
    *("data.encoder=pca:8", "model.name=linear", "model.sizes={}", "evaluate.clients=-1"),
)
KEY = ["round", "side", "client", "split", "phase", "metric"]


def test_no_two_rows_have_the_same_key(tmp_path: Path) -> None:
    """A round of GGEUR has three phases, and each counts its replies."""
    rows = small_run(tmp_path, *SEVERAL_PHASES).metrics
    assert not rows.duplicated(KEY).any()
    counted = rows[rows["metric"] == "num_replies"]
    assert list(counted[counted["round"] == 1]["phase"]) == ["statistics", "geometry", "train"]
    assert set(rows[rows["split"] == "test"]["phase"]) == {""}


def no_constant(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


def test_what_is_not_a_number_is_null(tmp_path: Path) -> None:
    assert plain({"a": [math.nan, 1.5, (-math.inf,)], "b": {"c": math.inf}}) == {
        "a": [None, 1.5, [None]],
        "b": {"c": None},
    }
    write_json(tmp_path / "a.json", {"a": math.nan})
    assert read_json(tmp_path / "a.json") == {"a": None}


def test_the_summary_and_the_progress_of_nan_are_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A last layer of 1e30 is finite; its logits, and so the loss, are not."""
    result = small_run(tmp_path, "strategy.server_lr=1e37", "run.rounds=1", "run.min_replies=1")
    assert math.isnan(result.metrics.set_index("metric")["value"].get("loss").iloc[-1])
    content = json.loads((result.path / "summary.json").read_text(), parse_constant=no_constant)
    assert content["metrics"]["test/loss"] is None
    for line in (result.path / "progress.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=no_constant)


class EndsAfter(Listener):
    """Ends a run in the middle of a round, with nothing saved of it."""

    def __init__(self, round_: int) -> None:
        self._round = round_

    def round(self, round_: int, *_: Any) -> None:
        if round_ == self._round:
            raise RuntimeError("killed")


def test_failures_of_lost_rounds_are_not_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Client 1 fails in each of four rounds; round 3 runs twice, since the checkpoint is of round 2."""

    def local(phase: Any, payload: Any, client: Any) -> Any:
        if client.id == 1:
            raise ValueError("out of order")
        return phase.local(payload, client)

    watch_phases(monkeypatch, FedAvg, local=local)
    with pytest.raises(RuntimeError, match="killed"):
        small_run(tmp_path, "run.rounds=4", "checkpoint.every=2", "run.name=run", listener=EndsAfter(3))
    folder = tmp_path / "run"
    assert [event["round"] for event in failures(folder)] == [1, 2, 3]
    assert resume(folder).summary["num_failures"] == 4
    assert [event["round"] for event in failures(folder)] == [1, 2, 3, 4]


def test_a_run_that_begins_again_has_no_past(tmp_path: Path) -> None:
    told = [{"event": "failure", "round": 1}, {"event": "resumed", "round": 0}, {"event": "failure", "round": 2}]
    (tmp_path / "progress.jsonl").write_text("".join(json.dumps(each) + "\n" for each in told) + '{"event": "fai')
    mend(tmp_path)
    assert [event for event in events(tmp_path) if event["event"] == "failure"] == [{"event": "failure", "round": 2}]
