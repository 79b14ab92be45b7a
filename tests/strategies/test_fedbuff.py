"""FedBuff: who is in which buffer by hand, what the server makes of it in closed form, and what is refused.

Clients of quadratics move by q_k (b_k - w), q_k = 1 - (1 - lr a_k)^E (tests/strategies/test_quadratics.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.helpers import Quadratics, unequal
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core.virtual.devices import Devices, Presence
from umbel.core.virtual.traces import Capacity, Intervals
from umbel.strategies import fedavg, fedbuff
from umbel.strategies.fedbuff import FedBuff, Flight, fill


def problem_of(*capacities: Capacity, num_sampled: int = 3) -> Quadratics:
    return replace(unequal(), devices=Devices(capacities), num_sampled=num_sampled)


def one_a_second() -> Quadratics:
    """Three clients of one example a second: two epochs of 1, 2 and 5 examples take 2, 4 and 10 seconds."""
    return problem_of(Capacity(speed=1), Capacity(speed=1), Capacity(speed=1))


def next_round(problem: Quadratics, strategy: FedBuff, state: Any) -> Any:
    (phase,) = strategy.phases(state)
    return problem.round(strategy, state, state.version + 1, phase.clients)


@pytest.mark.parametrize("weighting", fedavg.WEIGHTINGS)
def test_with_equal_delays_it_is_fedavg(weighting: str) -> None:
    # All wait for the same bytes, and everybody fits into the buffer.
    problem = problem_of(*[Capacity(upload=8)] * 3)
    strategy = FedBuff(fedbuff.Config(buffer_size=3, server_lr=0.9, weighting=weighting))
    averaging = fedavg.FedAvg(fedavg.Config(server_lr=0.9, weighting=weighting))
    state, other = strategy.initial(problem.server()), averaging.initial(problem.server())
    for round_ in range(1, 51):
        assert state.now == 2 * round_  # 16 bytes up at 8 a second
        state, other = next_round(problem, strategy, state), problem.round(averaging, other, round_)
        assert torch.equal(state.model["w"], other.model["w"]) and not state.earlier
    p, q = problem.shares(weighting), 1 - (1 - problem.lr * problem.a) ** problem.num_steps
    assert torch.allclose(state.model["w"], (p * q * problem.b).sum(0) / (p * q).sum(0), rtol=0, atol=1e-9)


# Rounds by hand: (second, {client: version it began with}), with a buffer of two and all three under way at once.
# 4: 0 and 1 are back, and begin with version 1, back at 6 and 8. 8: they begin with version 2, back at 10 and 12.
# 10: client 2 is back with version 0, and 0. They begin with version 3, back at 20 and 12. 12: 0, and 1 with version 2.
BY_HAND = [(4, {0: 0, 1: 0}), (8, {0: 1, 1: 1}), (10, {0: 2, 2: 0}), (12, {0: 3, 1: 2})]


def test_who_lands_when_by_hand() -> None:
    problem, strategy = one_a_second(), FedBuff(fedbuff.Config(buffer_size=2))
    state = strategy.initial(problem.server())
    for second, versions in BY_HAND:
        (phase,) = strategy.phases(state)
        assert (state.now, phase.ends, phase.clients) == (second, second, tuple(versions))
        assert {flight.client: flight.version for flight in state.buffer} == versions
        # The models that somebody began with are kept, and no others.
        used = {flight.version for flight in (*state.buffer, *state.flying)} - {state.version}
        assert state.earlier.keys() == set(map(str, used))
        state = next_round(problem, strategy, state)


@pytest.mark.parametrize(("exponent", "server_lr"), [(0.5, 1.0), (0.5, 0.7), (0.0, 1.0), (1.0, 2.0)])
def test_the_update_is_that_of_a_direct_computation(exponent: float, server_lr: float) -> None:
    problem = one_a_second()
    strategy = FedBuff(fedbuff.Config(buffer_size=2, exponent=exponent, server_lr=server_lr))
    q = 1 - (1 - problem.lr * problem.a) ** problem.num_steps
    state, models = strategy.initial(problem.server()), [torch.zeros(2, dtype=torch.float64)]
    for version, (_, began) in enumerate(BY_HAND):
        changes = [(1 + version - v) ** -exponent * q[k] * (problem.b[k] - models[v]) for k, v in began.items()]
        models.append(models[-1] + server_lr * torch.stack(changes).mean(0))
        state = next_round(problem, strategy, state)
        assert torch.allclose(state.model["w"], models[-1], rtol=0, atol=1e-12)
    assert fedbuff.staleness_weight(3, 0.5) == 0.5  # 1 / sqrt(1 + 3)


def test_a_client_takes_one_version_and_its_bytes_count_once() -> None:
    problem, strategy = one_a_second(), FedBuff(fedbuff.Config(buffer_size=2))
    state = strategy.initial(problem.server())
    for _ in range(2):
        state = next_round(problem, strategy, state)
    payload = strategy.send_versions(state, problem.server(3))
    assert payload.trees.keys() == {"model", "model.2"} and payload.num_bytes == 16
    assert payload.numbers == {"staleness.0": 0.0, "staleness.2": 2.0}


def run_of_fills(num_clients: int, size: int, concurrency: int, devices: Devices, rounds: int = 30) -> list[Any]:
    """Fill buffers one after the other; return (buffer, flying, now) of each."""
    source, filled = torch.Generator().manual_seed(1), []
    flying: tuple[Flight, ...] = ()
    now = 0.0
    for version in range(rounds):
        buffer, flying, now = fill(
            flying, now, version, size, concurrency, num_clients, devices,
            lambda client: devices.seconds(client, 10, 0, 0), source,
        )  # fmt: skip
        filled.append((buffer, flying, now))
    return filled


@pytest.mark.parametrize(("size", "concurrency"), [(3, 8), (5, 4), (12, 3), (1, 1), (1, 12)])
def test_places_are_filled_and_nobody_is_twice_at_once(size: int, concurrency: int) -> None:
    speeds = [1.0, 2.0, 2.0, 3.0, 5.0, 8.0, 8.0, 9.0, 9.5, 11.0, 40.0, 90.0]
    devices, before = Devices(tuple(Capacity(speed) for speed in speeds)), 0.0
    for version, (buffer, flying, now) in enumerate(run_of_fills(12, size, concurrency, devices)):
        under_way = [flight.client for flight in (*buffer, *flying)]
        assert len(buffer) == size and len(set(under_way)) == len(under_way)
        assert len(flying) <= concurrency
        assert max(flight.lands for flight in buffer) <= now and now >= before
        assert all(flight.version <= version for flight in (*buffer, *flying))
        before = now


def test_who_is_away_does_not_begin_and_lands_if_it_began() -> None:
    # Client 0 is there for the first five of each 100 seconds and takes ten; client 1 is always there and takes 30.
    presence = {0: Presence(Intervals(100.0, (0.0,), (5.0,)))}
    devices = Devices((Capacity(speed=1.0), Capacity(speed=1 / 3)), presence)
    landed = [[(f.client, f.lands) for f in buffer] for buffer, _, _ in run_of_fills(2, 1, 2, devices, 6)]
    assert landed == [[(0, 10)], [(1, 30)], [(1, 60)], [(1, 90)], [(0, 110)], [(1, 120)]]
    # Alone, it makes the server wait for it.
    alone = Devices((Capacity(speed=1.0),), presence)
    assert [now for _, _, now in run_of_fills(1, 1, 1, alone, 3)] == [10, 110, 210]


DEVICES = ("strategy.name=fedbuff", "strategy.buffer_size=4", "simulation.devices.speed=10", "data.num_clients=6")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["simulation.devices.speed=null"], "simulation.devices.speed"),
        (["strategy.buffer_size=7"], "strategy.buffer_size"),
        (["strategy.buffer_size=0"], "strategy.buffer_size"),
        (["strategy.exponent=-1"], "strategy.exponent"),
        (["run.min_replies=5"], "run.min_replies"),
        (["run.sampling=examples"], "run.sampling"),
        (["run.clients_per_round=4", "run.over_sample=2"], "run.over_sample"),
        (["run.deadline=3"], "run.deadline"),
        (["data.partition=permuted_tasks", "data.num_tasks=2", "data.rounds_per_task=1"], "data.rounds_per_task"),
        (
            ["strategy.name=ggeur", "strategy.options={base: fedbuff}", "data.encoder=pca:8", "model.name=linear"],
            "strategy.base",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(overrides: list[str], key: str) -> None:
    given = DEVICES if not any("ggeur" in each for each in overrides) else DEVICES[2:]
    with pytest.raises(ExperimentError) as refused:
        load("digits", [*given, *overrides])
    assert refused.value.key == key
