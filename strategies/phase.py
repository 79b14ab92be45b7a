"""A phase: one exchange of a round with all that belongs to it, or a step of the server alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, Never, TypeVar

from umbel.core.folds import Folded, Product
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.training import LocalConfig, num_processed

if TYPE_CHECKING:
    from umbel.strategies.base import ClientContext, ServerContext

S = TypeVar("S")
B = TypeVar("B")


EVALUATE = "evaluate"  # the loop's own exchange after a round's phases: clients evaluate `Strategy.evaluated`


def _nothing(state: object) -> Mapping[str, float]:
    return {}


def _own(state: object, own: int) -> float:
    return own


@dataclass(frozen=True)
class Visit:
    """A client's part of a phase as the server sees it before anybody is asked.

    Attributes:
        server: The server in this round.
        own: Training examples that the client may train on (`Phase.most_examples`).
        remembers: The client remembered something when it took part before.
    """

    server: ServerContext
    own: int
    remembers: bool


def _nothing_besides(state: object, visit: Visit) -> int:
    return 0


def one_pass(local: LocalConfig, own: int) -> int:
    """Return the examples that a client goes through that looks at each once."""
    return own


def no_pass(local: LocalConfig, own: int) -> int:
    """Return those of a client that looks at none: it counts labels, or keeps what came."""
    return 0


@dataclass(frozen=True)
class Phase(Generic[S]):
    """One exchange of a round. Clients have no State: `local` and `fold` need none.

    Attributes:
        name: Travels in the message and seeds the generators of the phase; unique within the round.
        broadcast: Returns what every selected client receives.
        local: Does a client's part and returns its reply.
        fold: Returns how the replies combine; asked on the server and on clients.
        update: Returns the State after the phase.
        who: `sample` (the round's cohort), `everyone`, `same:<phase>` (the clients of an earlier phase of this
            round), `clients` (those of `clients`), or `server` (nobody: see `of_server`).
        groups: The group of each client: a sample then takes from each group in proportion, at least one while there
            are enough; empty draws from all alike.
        measured: Returns numbers to report that `update` found, by name; they become rows of the metrics.
        most_examples: Returns the most examples that a reply may count, of the State and of the training examples that
            its client has by the word of the node that holds it; by default those. A method that trains on more (on
            data that it made, or drew anew) says here on how many; math.inf takes any number, and any weight.
        num_processed: Returns how many examples a client goes through, of how clients train and of the training
            examples that it has: its part in virtual time. By default those of a local training. An example counts as
            often as it goes through a model, whether that learns from it or not.
        besides: Returns how many it goes through besides, where that hangs on more: on the State, the round, the public
            examples, or whether the client has been there before. By default none.
        clients: Who takes part where the strategy itself says it, in ascending order.
        ends: The virtual second of the run at which the phase ends, where the strategy itself says it.
    """

    name: str
    broadcast: Callable[[S, ServerContext], Payload]
    local: Callable[[Payload, ClientContext], Reply]
    fold: Callable[[], Product]
    update: Callable[[S, Folded, ServerContext], S]
    who: str = "sample"
    groups: tuple[int, ...] = ()
    measured: Callable[[S], Mapping[str, float]] = field(default_factory=lambda: _nothing)
    most_examples: Callable[[S, int], float] = field(default_factory=lambda: _own)
    num_processed: Callable[[LocalConfig, int], int] = field(default_factory=lambda: num_processed)
    besides: Callable[[S, Visit], int] = field(default_factory=lambda: _nothing_besides)
    clients: tuple[int, ...] = ()
    ends: float | None = None

    @staticmethod
    def of_server(
        name: str,
        update: Callable[[S, ServerContext], S],
        measured: Callable[[S], Mapping[str, float]] = _nothing,
    ) -> Phase[S]:
        """Return a step of the server alone: nothing is sent, and to ask what would be is an error.

        Args:
            name: Name of the step.
            update: Returns the State after it.
            measured: As above.
        """

        def nobody(*_: object) -> Never:
            raise TypeError(f"The phase {name!r} is a step of the server alone: it has no exchange.")

        return Phase(
            name, nobody, nobody, nobody, lambda state, folded, server: update(state, server), "server", (), measured
        )


def over(
    phase: Phase[B],
    get: Callable[[S], B],
    put: Callable[[S, B], S],
    server: Callable[[S, ServerContext], ServerContext] = lambda state, server: server,
    client: Callable[[Payload, ClientContext], ClientContext] = lambda payload, client: client,
    most_examples: Callable[[S, int], float] = _own,
) -> Phase[S]:
    """Return the phase of a base as one of a strategy that goes over it.

    Args:
        phase: The base's.
        get: Returns the base's State out of the strategy's.
        put: Returns the strategy's State with another of the base.
        server: Returns the server that the base sees.
        client: Returns the client that the base sees, when this came.
        most_examples: Returns the most training examples that this client has, of those that the client has itself.
    """
    return Phase(
        phase.name,
        broadcast=lambda state, seen: phase.broadcast(get(state), server(state, seen)),
        local=lambda payload, seen: phase.local(payload, client(payload, seen)),
        fold=phase.fold,
        update=lambda state, folded, seen: put(state, phase.update(get(state), folded, server(state, seen))),
        who=phase.who,
        groups=phase.groups,
        measured=lambda state: phase.measured(get(state)),
        most_examples=lambda state, own: _within(phase, get(state), most_examples(state, own)),
        num_processed=phase.num_processed,
        besides=lambda state, seen: phase.besides(get(state), replace(seen, server=server(state, seen.server))),
        clients=phase.clients,
        ends=phase.ends,
    )


def _within(phase: Phase[B], state: B, own: float) -> float:
    return phase.most_examples(state, int(own)) if math.isfinite(own) else own


def by_name(phases: Iterable[Phase[S]], key: str = "strategy.name") -> dict[str, Phase[S]]:
    """Return phases by their names, in their order.

    Args:
        phases: Phases of one round.
        key: The configuration key that chose them.

    Raises:
        Refusal: Two have the same name, or one has that of the loop's own exchange: what a client draws, and what it
            is asked for, goes by the name.
    """
    named: dict[str, Phase[S]] = {}
    for phase in phases:
        if phase.name in named or phase.name == EVALUATE:
            whose = "two phases of a round are" if phase.name in named else "the loop's own exchange is"
            raise Refusal(
                f"A round has phases of different names, and {whose} called {phase.name!r}.",
                key=key,
                remedy="Give the phase another name, or choose another strategy.",
            )
        named[phase.name] = phase
    return named
