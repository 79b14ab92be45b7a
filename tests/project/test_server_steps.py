"""The benchmark of the servers' steps, at tiny sizes: both ways of each pair agree, and the table is whole."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from tests.places import BENCHMARKS


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("server_steps")
    for module in ("server_steps", "server_cases"):
        sys.modules.pop(module, None)


def test_both_ways_agree(steps: ModuleType) -> None:
    sizes = replace(steps.TINY, draws=500)  # two samples, of which means of squares are compared
    for row in steps.rows(sizes):
        ours = steps.CASES[row.ours](sizes)
        if row.plain:
            assert ours["check"] == pytest.approx(steps.CASES[row.plain](sizes)["check"], rel=row.agree)
        if row.memory:
            assert steps.CASES[row.memory](sizes)["check"] == pytest.approx(1.0)  # weights sum to 1 over clients


def test_a_client_in_k_is_timed(steps: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    case = steps.CASES["creamfl_time"]
    monkeypatch.setitem(case.__globals__, "timed", lambda work: (2.0, work()))
    assert case(steps.TINY) == {"seconds": 2.0 * 3, "check": 0.0, "scaled": 3}


def test_skipped_products_are_allocated(steps: ModuleType) -> None:
    one, other = torch.ones(2, 3), torch.ones(3, 4)
    with sys.modules["server_cases"].SkipProducts(1):
        real, summed = one @ other, torch.logsumexp(one, dim=1)
        skipped, none = one @ other, torch.logsumexp(one, dim=1)
    assert torch.equal(real, torch.full((2, 4), 3.0)) and torch.allclose(summed, torch.tensor(1 + 1.0986123))
    assert torch.equal(skipped, torch.zeros(2, 4)) and torch.equal(none, torch.zeros(2))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_line_is_measured_in_processes_of_its_own(steps: ModuleType) -> None:
    row = next(row for row in steps.rows(steps.TINY) if row.ours == "creamfl_small")
    cells = [cell.strip() for cell in steps.line(row, tiny=True).split("|")[1:-1]]
    assert len(cells) == 6 and cells[0].startswith("CreamFL: P = 20") and all(cells)
    with pytest.raises(SystemExit, match="the two ways differ"):
        steps.line(replace(row, plain="creamfl_time"), tiny=True)
