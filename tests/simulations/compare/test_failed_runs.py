"""A run that fails does not hold up the others of a comparison: they end, and the tables are of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from umbel.core.files import read_sealed
from umbel.server.errors import DivergedError
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare import carry_out
from umbel.simulations.compare.prepare import prepare

SMALL = ("data.max_train=300", "client.max_steps=1", "run.rounds=2", "data.num_clients=2", "evaluate.clients=0")
DIVERGES = "fedavg(server_lr=1e38)"


class Failures(Watcher):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, int]] = []

    def run_failed(self, label: str, seed: int, reason: str) -> None:
        self.told.append((label, seed))


def test_the_others_end_and_stand_in_the_table(tmp_path: Path) -> None:
    planned = prepare("digits", f"fedavg,{DIVERGES},fedprox", "2", SMALL, tmp_path / "c")
    told = Failures()
    with pytest.raises(DivergedError, match=r"2 of 6 runs failed\. The tables in .* The first was .*, seed 0:"):
        carry_out.carry_out(planned, told)
    assert told.told == [(DIVERGES, 0), (DIVERGES, 1)]
    content = read_sealed(tmp_path / "c" / "comparison.json")
    assert list(content["table"]) == ["fedavg", "fedprox"] and content["seeds"] == [0, 1]
    table = (tmp_path / "c" / "table.md").read_text(encoding="utf-8")
    assert f"Not in the table: {DIVERGES}, seed 0, failed: " in table and f"{DIVERGES}, seed 1, failed: " in table
    assert told.page == tmp_path / "c" / "report.html" and told.page.is_file()

    there = carry_out.write_so_far(prepare("digits", f"fedavg,{DIVERGES},fedprox", "2", SMALL, tmp_path / "c"))
    assert there is not None and [item.label for item in there.items] == ["fedavg", "fedprox"]
    assert not there.open_seeds and len(there.failed) == 2  # a failure is told as such, not as a run to come
    assert read_sealed(tmp_path / "c" / "comparison.json")["failures"] == content["failures"]


def test_nothing_is_written_where_every_strategy_has_failed(tmp_path: Path) -> None:
    planned = prepare("digits", DIVERGES, "1", SMALL, tmp_path / "c")
    with pytest.raises(DivergedError, match=r"1 of 1 runs failed\. The first was"):
        carry_out.carry_out(planned)
    assert not (tmp_path / "c" / "comparison.json").exists()


def test_what_was_a_failure_and_has_ended_since_is_none(tmp_path: Path) -> None:
    planned = prepare("digits", "fedavg,fedprox", "1", SMALL, tmp_path / "c")
    carry_out.carry_out(planned)
    failure = carry_out.Failure("fedprox", 0, "it was so")
    carry_out.write(dataclasses.replace(planned), (failure,))
    there = carry_out.write_so_far(planned)
    assert there is not None and [item.label for item in there.items] == ["fedavg", "fedprox"] and not there.failed
