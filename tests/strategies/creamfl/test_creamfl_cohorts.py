"""Who takes part in a round of CreamFL: clients of each kind, in proportion, or as they come."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from tests.strategies.creamfl.halves import Halves
from tests.strategies.creamfl.pairs import DIMENSION, PAIRS, go
from umbel.conf.load import load
from umbel.core.records import Payload
from umbel.server.cohorts import quotas
from umbel.server.listener import Listener
from umbel.server.session import Session


class Spy(Listener):
    """Keeps what failed."""

    def __init__(self) -> None:
        self.reasons: dict[int, str] = {}

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        self.reasons[client] = reason


def test_a_round_without_a_modality_goes_on(tmp_path):
    """Two clients a round, not stratified: a pair with images alone and one with texts alone, which else cannot be."""
    heard = Spy()
    options = ("strategy.stratify=false", "run.clients_per_round=2", "run.rounds=4", "run.seed=8")
    session = Session(load("digits", [*PAIRS, *options]))
    cohorts = [session.cohorts.of(session.strategy.phase("contrast"), round_, {}) for round_ in range(1, 5)]
    assert {(0, 1), (2, 3)} <= set(cohorts)
    summary = go(tmp_path, *options, "evaluate.every=4", listener=heard).summary
    assert summary["rounds"] == 4
    assert not heard.reasons
    matrices = sum(2 if client >= 4 else 1 for cohort in cohorts for client in cohort)
    assert summary["bytes_up"]["tensors"] == matrices * len(session.data.public) * DIMENSION * 4


@pytest.mark.parametrize("stratify", [True, False])
def test_a_stratified_sample_has_every_kind_and_another_may_not(stratify):
    session = Session(load("digits", [*PAIRS, "run.clients_per_round=3", f"strategy.stratify={str(stratify).lower()}"]))
    phase = session.strategy.phase("contrast")
    cohorts = [session.cohorts.of(phase, round_, {}) for round_ in range(1, 12)]
    every = [sorted(client // 2 for client in cohort) == [0, 1, 2] for cohort in cohorts]
    assert all(every) if stratify else not all(every)
    assert len(set(cohorts)) > 3


@pytest.mark.parametrize("over", [1, 2])
@pytest.mark.parametrize("sampled", [3, 4])
def test_the_first_of_each_kind_are_taken_as_many_as_without_over_sampling(tmp_path, sampled, over):
    rows = [f"{client},{1000 - 100 * client},1e15,1e15" for client in range(6)]  # who has images is the fastest
    trace = tmp_path / "t.csv"
    trace.write_text("\n".join(["client,speed,download,upload", *rows]), encoding="utf-8")
    devices = (f"simulation.devices.capacity={trace}", f"run.clients_per_round={sampled}")
    plain, more = (Session(load("digits", [*PAIRS, *devices, f"run.over_sample={each}"])) for each in (0, over))
    phase, payload = more.strategy.phase("contrast"), Payload({"index": {"rows": torch.arange(1)}})
    cut = 0
    for round_ in range(1, 9):
        asked, server = more.cohorts.of(phase, round_, {}), more.context(round_)
        turn = more.cohorts.turn(phase, None, server, asked, payload, 0.0)
        kinds = sorted(client // 2 for client in turn.clients)
        assert kinds == sorted(client // 2 for client in plain.cohorts.of(phase, round_, {}))
        assert len(asked) == sampled + over and set(asked) == {*turn.clients, *turn.late}
        for late in turn.late:  # behind all that were taken of its kind
            assert all(client < late for client in turn.clients if client // 2 == late // 2)
        cut += len(turn.late)
    assert cut == 8 * over


@pytest.mark.parametrize(
    ("number", "sizes"),
    [
        (10, [10, 10, 15]),
        (1, [3, 3, 3]),
        (2, [3, 3, 3]),
        (4, [3, 3, 3]),
        (5, [1, 1, 30]),
        (9, [3, 3, 3]),
        (4, [0, 1, 9]),
    ],
)
def test_quotas_are_proportional_on_average_with_one_each(number, sizes):
    steps = 360
    drawn = [quotas(number, sizes, Fraction(step, steps)) for step in range(steps)]
    for each in drawn:
        assert sum(each) == number
        assert all(0 <= quota <= size for quota, size in zip(each, sizes, strict=True))
        if number >= sum(size > 0 for size in sizes):
            assert all(quota > 0 for quota, size in zip(each, sizes, strict=True) if size)
    if all(number * size >= sum(sizes) for size in sizes) or number < len(sizes):  # one each is nobody's more than due
        means = [sum(column) / steps for column in zip(*drawn, strict=True)]
        assert means == pytest.approx([number * size / sum(sizes) for size in sizes], abs=0.06)


def test_no_kind_is_shut_out_when_a_round_has_fewer_clients_than_kinds():
    session = Session(load("digits", [*PAIRS, "run.clients_per_round=1"]))
    phase = session.strategy.phase("contrast")
    assert {session.cohorts.of(phase, round_, {})[0] // 2 for round_ in range(1, 30)} == {0, 1, 2}


def test_without_stratify_anyone_is_drawn(tmp_path):
    assert Halves(tmp_path, "strategy.stratify=false").phase.groups == ()
