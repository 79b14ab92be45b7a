"""A phase on workers.

Each worker begins with a run of consecutive clients, and is given them in spans that get shorter towards the end; the
next one waits at the worker before it is done with the last. Whoever has none left takes over the rear half of what the
slowest has not begun. Workers add up what they can and hand it over once, with their last span; until then an answer
says only that a span is done.

When a worker dies, what it had added up is gone, and its clients run again elsewhere, from the same memory and the
same random generators, with the same result. Those of the span that it was at run one by one: who killed it is
known only when alone. The worker that starts in its place is given nothing until it has come, so that nobody waits for
one that never does, because its machine is gone.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from umbel.core.wire.work import Outcome
from umbel.server.errors import RunStoppedError
from umbel.server.port import Answer, OnWait, Task
from umbel.simulations.engines.workers import LOOK_SECONDS, Limits, WorkerDiedError, WorkerFailedError, Workers

_TRIES = 3  # how often a client may be the one whose worker dies
_AHEAD = 2  # spans that a worker has, with the one that it runs
_LEAST_SECONDS, _MOST_SECONDS = 0.02, 2.0  # of a span, as far as it is known how long clients take
_UNKNOWN = 8  # clients of a span at most, as long as it is not


@dataclass(frozen=True, eq=False)
class _Span:
    """Some clients that a worker has been given.

    Attributes:
        clients: Their numbers.
        closes: The worker hands over what it has added up.
        alone: A client whose worker has died; nothing else is lost with it.
        given: What stands for it.
    """

    clients: tuple[int, ...]
    closes: bool
    alone: bool
    given: Any


@dataclass(eq=False)
class _Seat:
    """A worker's part of the phase.

    Attributes:
        worker: The worker.
        own: Clients that it is to be given.
        flying: What it has been given; it runs the first.
        done: Clients whose replies it has and has not handed over.
        is_open: It has been told of the phase, and goes on to add up.
        due: `time.monotonic()` at which it counts as lost.
        is_there: It has come.
        starts: How often it has been started in this phase.
    """

    worker: Any
    own: deque[int] = field(default_factory=deque)
    flying: deque[_Span] = field(default_factory=deque)
    done: list[int] = field(default_factory=list)
    is_open: bool = False
    due: float = math.inf
    is_there: bool = False
    starts: int = 0


class Pace:
    """How long clients take, as the phases of a run have shown so far."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def of(self, phase: str) -> float | None:
        """Return the seconds a cost takes in a phase, if that is known."""
        return self._seconds.get(phase)

    def note(self, phase: str, seconds: float, cost: float) -> None:
        """Note how long clients of some cost took."""
        if cost:
            self._seconds[phase] = seconds / cost


class WorkersPhase:
    """One exchange with all workers.

    Args:
        task: The clients' work.
        workers: The workers.
        cost: Returns what a client takes, in any unit: its examples.
        pace: How long that took before.
        limits: How long things may take.
    """

    def __init__(
        self,
        task: Task,
        workers: Workers,
        cost: Callable[[int], float],
        pace: Pace,
        limits: Limits,
    ) -> None:
        self._task, self._workers, self._cost, self._pace, self._limits = task, workers, cost, pace, limits
        # Who trains at once with somebody before it comes in the same span.
        places, tied = task.work.leaves, set[int]()
        for squad in task.work.squads:
            here = [places[client] for client in squad if client in places]
            tied |= {client for client, place in places.items() if here and here[0] < place <= here[-1]}
        self._tied = tied
        self._seats = [_Seat(worker) for worker in workers.all()]
        self._alone: deque[int] = deque()
        self._deaths: dict[int, int] = {}
        self._half = math.inf  # when half of the phase's time is over
        self._last_words = ""  # of a worker that died while it started
        self._opening = workers.lay(task)
        self._deal()

    def _deal(self) -> None:
        """Give each worker a run of consecutive clients, of about one cost."""
        clients = list(self._task.work.leaves)
        total = sum(self._cost(client) for client in clients)
        before, place = 0.0, 0
        for client in clients:
            middle = before + self._cost(client) / 2
            if client not in self._tied:
                place = min(int(middle / total * len(self._seats)) if total else 0, len(self._seats) - 1)
            self._seats[place].own.append(client)
            before += self._cost(client)

    def answers(self, deadline: float, on_wait: OnWait | None = None) -> Iterator[Answer]:
        """Yield what workers hand over, until all is there or the deadline has passed.

        Raises:
            RunStoppedError: There is no worker any more, and none comes.
        """
        self._half = (time.monotonic() + deadline) / 2
        patience_ends = time.monotonic() + self._limits.node
        while True:
            for seat in self._seats:
                if self._has_come(seat):
                    patience_ends = time.monotonic() + self._limits.node
                    while len(seat.flying) < _AHEAD and self._give(seat):
                        pass
            busy = [seat for seat in self._seats if seat.flying]
            if not busy and not self._alone and not any(seat.own for seat in self._seats):
                return
            if not busy and time.monotonic() > patience_ends:
                raise RunStoppedError(
                    f"No worker has come within {self._limits.node:g} s (engine.node_timeout_seconds)"
                    f"{self._last_words and f'; the last that died while it started: {self._last_words}'}."
                )
            until = min([deadline, patience_ends, *(seat.due for seat in busy)])
            patience = min(max(until - time.monotonic(), 0.0), LOOK_SECONDS)
            done = self._workers.wait([seat.flying[0].given for seat in busy], patience)
            self._workers.look()
            if done is not None:
                yield from self._collect(next(seat for seat in busy if seat.flying[0].given is done))
            elif time.monotonic() >= deadline:
                return
            else:
                yield from self._end_overdue()
                if on_wait is not None:
                    on_wait()

    def _has_come(self, seat: _Seat) -> bool:
        """Say whether a worker is there; one that has died while it started is started again, a few times."""
        if not seat.is_there and seat.starts < _TRIES:
            try:
                seat.is_there = self._workers.is_there(seat.worker)
            except WorkerDiedError as error:
                seat.starts, self._last_words = seat.starts + 1, str(error)
                seat.worker = self._workers.replace(seat.worker)
        return seat.is_there

    def abandon(self) -> None:
        """Replace the workers that still have something of this phase to do."""
        for seat in self._seats:
            if seat.flying:
                self._workers.replace(seat.worker)
                seat.flying.clear()

    def _give(self, seat: _Seat) -> bool:
        """Give a worker its next span; return whether there may be another one."""
        if seat.flying and seat.flying[-1].closes:
            return False
        if self._alone:
            if seat.is_open:
                self._launch(seat, (), closes=True)
            elif not seat.flying:
                self._launch(seat, (self._alone.popleft(),), closes=True, alone=True)
            return False
        if not seat.own:
            self._take_over(seat)
        clients = self._next(seat)
        is_last = not any(other.own for other in self._seats)
        if clients:
            self._launch(seat, clients, is_last or time.monotonic() > self._half)
        elif seat.is_open:
            self._launch(seat, (), closes=True)
        return bool(clients) and not is_last

    def _next(self, seat: _Seat) -> tuple[int, ...]:
        """Take the next span off what a worker is to be given: half of it, as far as it lasts sensibly long."""
        pace, half = self._pace.of(self._task.work.phase), -(-len(seat.own) // 2)
        clients: list[int] = []
        seconds = 0.0
        while seat.own:
            if not (clients and seat.own[0] in self._tied):
                if pace is None and len(clients) >= min(half, _UNKNOWN):
                    break
                is_long = pace is not None and (len(clients) >= half or seconds >= _MOST_SECONDS)
                if is_long and seconds >= _LEAST_SECONDS:
                    break
            client = seat.own.popleft()
            clients.append(client)
            seconds += (pace or 0.0) * self._cost(client)
        return tuple(clients)

    def _take_over(self, seat: _Seat) -> None:
        """Take the rear half of what the worker with most to do has not been given."""
        other = max(self._seats, key=lambda each: sum(self._cost(client) for client in each.own))
        half = -(-len(other.own) // 2)
        while other.own and (len(seat.own) < half or seat.own[0] in self._tied):
            seat.own.appendleft(other.own.pop())

    def _launch(self, seat: _Seat, clients: tuple[int, ...], closes: bool, alone: bool = False) -> None:
        opening = None if seat.is_open else self._opening
        seat.is_open = not closes
        given = self._workers.give(seat.worker, opening, clients, closes)
        seat.flying.append(_Span(clients, closes, alone, given))
        if len(seat.flying) == 1:
            self._begin(seat)

    def _begin(self, seat: _Seat) -> None:
        """Say when a worker is late with the span that it is at.

        A client that is late is interrupted where it runs; what cannot be interrupted ends with its worker.
        """
        # Of a squad, each runs up to its training, then all train, then each runs to its end.
        times = 3 if self._task.work.squads else 1
        seat.due = time.monotonic() + times * len(seat.flying[0].clients) * self._limits.client + self._limits.node

    def _collect(self, seat: _Seat) -> Iterator[Answer]:
        span = seat.flying.popleft()
        try:
            outcome = self._workers.take(span.given)
        except WorkerFailedError as error:
            yield self._failed(self._lost(seat, span), str(error))
            seat.is_open = False
            if seat.flying:
                self._begin(seat)
            return
        except WorkerDiedError as error:
            last_words = f"its worker died {_TRIES} times; the last time: {error}"
            yield from self._died(seat, span, last_words, is_blamed=not error.by_machine)
            return
        if seat.flying:
            self._begin(seat)
        seat.done += span.clients
        if outcome is not None:
            costs = sum(self._cost(client) for client in seat.done)
            self._pace.note(self._task.work.phase, sum(outcome.seconds.values()), costs)
            seat.done = []
        pending, framing = sum(len(each.done) for each in self._seats), outcome.framing_up if outcome else 0
        yield Answer(self._task.node, outcome, framing=framing, pending=pending)

    def _lost(self, seat: _Seat, span: _Span) -> list[int]:
        """Return, and forget, the clients whose replies are gone with a worker, but those that it was not at yet."""
        lost = [*seat.done, *span.clients]
        seat.done = []
        return lost

    def _died(self, seat: _Seat, span: _Span, last_words: str, is_blamed: bool = True) -> Iterator[Answer]:
        """Have the clients of a worker run again; one that was alone for the last time has failed.

        Args:
            seat: The worker's.
            span: What it was at.
            last_words: Why a client has failed that has.
            is_blamed: The clients that it was at may have killed it.
        """
        suspects = (span.clients or tuple(seat.done)) if is_blamed else ()
        others = [client for client in self._lost(seat, span) if client not in suspects]
        others += [client for behind in seat.flying for client in behind.clients]
        seat.flying.clear()
        seat.worker, seat.is_open, seat.is_there = self._workers.replace(seat.worker), False, False
        seat.own = deque(sorted([*others, *seat.own], key=self._task.work.leaves.__getitem__))
        for client in reversed(suspects):
            self._deaths[client] = self._deaths.get(client, 0) + 1
            if self._deaths[client] < _TRIES:
                self._alone.appendleft(client)
            else:
                yield self._failed([client], last_words)

    def _end_overdue(self) -> Iterator[Answer]:
        """Replace the workers whose span is overdue; a client that was alone has failed."""
        for seat in self._seats:
            if not seat.flying or seat.due > time.monotonic():
                continue
            span = seat.flying.popleft()
            if span.alone:
                self._deaths[span.clients[0]] = _TRIES
            text = f"it took longer than {self._limits.client:g} s (engine.client_seconds) and did not stop"
            yield from self._died(seat, span, text)

    def _failed(self, clients: Sequence[int], why: str) -> Answer:
        return Answer(self._task.node, Outcome(failures=dict.fromkeys(clients, why)))
