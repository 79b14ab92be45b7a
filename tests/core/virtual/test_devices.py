"""How long devices take, and when they are there."""

from __future__ import annotations

import math

import pytest

from umbel.core.refusal import Refusal
from umbel.core.virtual.config import DevicesConfig
from umbel.core.virtual.devices import Devices, Presence, make
from umbel.core.virtual.traces import Capacity, Intervals

# There from second 10 to 30 and from 40 to 50 of each 60.
TWICE = Intervals(60.0, (10.0, 40.0), (30.0, 50.0))


def test_time_is_down_and_work_and_up():
    devices = Devices((Capacity(speed=50, download=1000, upload=100), Capacity(speed=50), Capacity()))
    assert devices.seconds(0, 200, 3000, 500) == 3 + 4 + 5
    assert devices.seconds(1, 200, 3000, 500) == 4  # what is not said takes no time
    assert devices.seconds(2, 200, 3000, 500) == 0


def test_devices_are_drawn_each_from_its_own_distribution():
    tiers = {"name": "choice", "values": [10, 100]}
    config = DevicesConfig(speed=tiers, upload={"name": "uniform", "low": 1e3, "high": 2e3})
    devices = make(config, 50, 3)
    assert {each.speed for each in devices.capacities} == {10, 100}
    assert len({each.upload for each in devices.capacities}) == 50
    assert {each.download for each in devices.capacities} == {math.inf}
    assert devices == make(config, 50, 3) != make(config, 50, 4)
    assert all(devices.is_here(client, now) for client in range(50) for now in (0.0, 1e9))


@pytest.mark.parametrize(
    ("now", "here", "comes"),
    [
        (0, False, 10),
        (10, True, 10),
        (29, True, 29),
        (30, False, 40),
        (50, False, 70),
        (69, False, 70),
        (125, False, 130),
    ],
)
def test_a_client_comes_and_goes(now, here, comes):
    presence = Presence(TWICE)
    assert presence.is_here(now) == here
    assert presence.next_here(now) == comes


def test_the_run_begins_anywhere_in_a_period():
    assert Presence(TWICE, 20.0).is_here(5) and not Presence(TWICE, 20.0).is_here(10)
    assert Presence(TWICE, 20.0).next_here(10) == 20


def test_a_client_that_is_away_comes_later_however_times_round():
    presence = Presence(Intervals(0.3, (0.1,), (0.2,)), 0.05)
    now = 0.0
    for _ in range(1000):
        now = now if presence.is_here(now) else presence.next_here(now)
        later = presence.next_here(now + 0.1)
        assert later >= now + 0.1
        now = math.nextafter(later, math.inf)


def test_constants_make_it_come_and_go_from_a_drawn_second():
    devices = make(DevicesConfig(on_seconds=30.0, off_seconds=10.0), 400, 0)
    here = [sum(devices.is_here(client, now) for client in range(400)) for now in (0.0, 7.0, 1e6)]
    # Three quarters of 400, within four standard deviations of a binomial: 8.7 each.
    assert all(abs(number - 300) < 35 for number in here)


def test_the_server_waits_until_enough_are_there():
    devices = Devices((Capacity(),) * 3, {0: Presence(TWICE), 1: Presence(Intervals(60.0, (20.0,), (45.0,)))})
    assert devices.when([0, 1, 2], 0.0, 1) == 0.0  # client 2 never goes
    assert devices.when([0, 1], 0.0, 1) == 10.0
    assert devices.when([0, 1], 0.0, 2) == 20.0
    assert devices.when([0, 1], 31.0, 2) == 40.0
    assert devices.when([0, 1], 46.0, 2) == 80.0


def test_those_that_never_meet_are_not_waited_for_for_ever():
    apart = {0: Presence(Intervals(60.0, (0.0,), (10.0,))), 1: Presence(Intervals(60.0, (20.0,), (30.0,)))}
    with pytest.raises(Refusal, match="never there at once"):
        Devices((Capacity(),) * 2, apart).when([0, 1], 0.0, 2)
    with pytest.raises(Refusal, match="never there at once"):
        Devices((Capacity(),) * 2).when([0, 1], 0.0, 3)
