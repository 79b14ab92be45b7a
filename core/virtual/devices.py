"""The devices of a run's clients: how long each takes, and when it is there.

Seconds are virtual, and count from the beginning of the run.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from umbel.core.refusal import Refusal
from umbel.core.virtual import distributions, traces
from umbel.core.virtual.config import KEY, DevicesConfig
from umbel.core.virtual.distributions import draw
from umbel.core.virtual.traces import Capacity, Intervals

_MOST_COMINGS = 10_000


@dataclass(frozen=True)
class Presence:
    """When a client is there, again and again.

    Attributes:
        intervals: Within a period, in order: from the first second of each on, up to its last.
        offset: Where in the period the run begins.
    """

    intervals: Intervals
    offset: float = 0.0

    def is_here(self, now: float) -> bool:
        """Say whether the client is there."""
        local = (now + self.offset) % self.intervals.period
        index = bisect_right(self.intervals.starts, local) - 1
        return index >= 0 and local < self.intervals.ends[index]

    def next_here(self, now: float) -> float:
        """Return the first second from now on in which the client is there."""
        if self.is_here(now):
            return now
        local = (now + self.offset) % self.intervals.period
        index = bisect_right(self.intervals.starts, local)
        is_last = index == len(self.intervals.starts)
        wait = self.intervals.starts[0] + self.intervals.period if is_last else self.intervals.starts[index]
        return max(now + (wait - local), math.nextafter(now, math.inf))


@dataclass(frozen=True)
class Devices:
    """The devices of all clients.

    Attributes:
        capacities: Of each client, by its number.
        presences: Of those clients that come and go.
    """

    capacities: Sequence[Capacity]
    presences: Mapping[int, Presence] = field(default_factory=dict)

    def seconds(self, client: int, num_examples: int, bytes_down: int, bytes_up: int) -> float:
        """Return how long a client takes for its part of a phase.

        Args:
            client: Its number.
            num_examples: Examples that it goes through, an example that comes twice counting twice.
            bytes_down: Of the tensors that it receives.
            bytes_up: Of the tensors that it sends.
        """
        own = self.capacities[client]
        return bytes_down / own.download + num_examples / own.speed + bytes_up / own.upload

    def is_here(self, client: int, now: float) -> bool:
        """Say whether a client is there."""
        return client not in self.presences or self.presences[client].is_here(now)

    def next_here(self, client: int, now: float) -> float:
        """Return the first second from now on in which a client is there."""
        return now if client not in self.presences else self.presences[client].next_here(now)

    def when(self, clients: Sequence[int], now: float, number: int) -> float:
        """Return the first second from now on in which so many of these clients are there at once.

        Raises:
            Refusal: They come and go 10,000 times, and it is never so.
        """
        if not self.presences and len(clients) >= number:
            return now
        for _ in range(_MOST_COMINGS):
            away = [client for client in clients if not self.is_here(client, now)]
            if len(clients) - len(away) >= number:
                return now
            if not away:
                break
            now = min(self.next_here(client, now) for client in away)
        raise Refusal(
            f"Of {len(clients)} clients {number} are never there at once, as {KEY} has them come and go.",
            key="run.min_replies",
            remedy="Ask for fewer replies, or let clients be there for longer.",
        )


def make(config: DevicesConfig, num_clients: int, seed: int) -> Devices:
    """Return the devices of so many clients; what is drawn, by the run's seed.

    Raises:
        Refusal: A trace cannot be read, or has another content than the configuration says.
    """
    traces.check_hash(config)
    if config.capacity:
        capacities = traces.deal(traces.read_capacity(config.capacity), num_clients, seed, "capacity")
    else:
        rates = [draw(getattr(config, name), num_clients, seed, name) for name in ("speed", "download", "upload")]
        capacities = dict(enumerate(Capacity(*each) for each in zip(*rates, strict=True)))
    return Devices(tuple(capacities[client] for client in range(num_clients)), _presences(config, num_clients, seed))


def _presences(config: DevicesConfig, num_clients: int, seed: int) -> dict[int, Presence]:
    if config.availability:
        dealt = traces.deal(traces.read_availability(config.availability), num_clients, seed, "availability", False)
        return {client: Presence(intervals) for client, intervals in dealt.items()}
    if config.on_seconds is None:
        return {}
    times = (draw(getattr(config, name), num_clients, seed, name) for name in ("on_seconds", "off_seconds"))
    begins = distributions.shares(num_clients, seed, "offset")
    return {
        client: Presence(Intervals(on + off, (0.0,), (on,)), share * (on + off))
        for client, (on, off, share) in enumerate(zip(*times, begins, strict=True))
    }
