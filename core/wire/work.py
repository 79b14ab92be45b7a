"""What a node is asked to do in a phase, and what it answers; the same for every engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from umbel.core.folds import Partial
from umbel.core.memory import Version
from umbel.core.records import Reply
from umbel.core.spent import Spent

MOST_FALLBACKS = 16  # that a node tells of a phase, and a run of all its rounds


@dataclass(frozen=True)
class Work:
    """A node's share of a phase.

    Attributes:
        run: Name of the run's folder; client memory of different runs is kept apart.
        attempt: Changes with every start and resume.
        round: Round number, from 1.
        step: Position of the phase in the round, from 0.
        phase: Name of the phase.
        config_hash: Hash of the portable part of the server's experiment.
        checkpoint_round: The oldest round that a resume may go back to.
        num_leaves: Clients of the whole phase.
        leaves: The clients that this node runs, in their order, and the place of each among all.
        memories: Which version of its memory each of them goes on from; a client that is not named has none.
        agreed: What all sites with data of their own go by; empty where there are none.
        most_examples: The most examples that each of them may count; one that is not named, any number. The node holds
            its clients to it before it adds their replies up, so that one that counts too many is lost alone,
            however many nodes there are.
        squads: Clients that train at once, two or more each, of all nodes (`client.together`). A node makes up for
            those that it does not run, so that a client's bits are the same wherever the others are.
    """

    run: str
    attempt: str
    round: int
    step: int
    phase: str
    config_hash: str
    checkpoint_round: int
    num_leaves: int = 0
    leaves: Mapping[int, int] = field(default_factory=dict)
    memories: Mapping[int, Version] = field(default_factory=dict)
    agreed: Mapping[str, Any] = field(default_factory=dict)
    most_examples: Mapping[int, float] = field(default_factory=dict)
    squads: tuple[tuple[int, ...], ...] = ()


class ClientTime(NamedTuple):
    """When a client ran.

    Attributes:
        client: Its number.
        process: The process that ran it.
        began: Seconds since the epoch.
        seconds: How long it took, without pauses.
    """

    client: int
    process: int
    began: float
    seconds: float


@dataclass
class Outcome:
    """What a node answers.

    Attributes:
        nodes: Accumulators of nodes of the tree that it held whole, as (level, index, accumulator).
        singles: Replies of clients that had no sibling there.
        flaws: Accumulators that could not be read, by (level, index), and why.
        failures: Reason for each client that failed.
        seconds: Time that each client took.
        remembered: Clients that wrote their memory.
        bytes_up: Tensor bytes of all replies, before any folding; the server holds it to what came.
        framing_up: Bytes of framing that these replies would have had, sent singly; likewise.
        spent: What training cost the clients whose replies were good, by the node's word.
        times: When each client ran; only of the simulation's own processes, and never sent as a message.
        notices: What whoever reads the result should know; likewise.
        fallbacks: What trained without a fast mode that was asked for, and why.
    """

    nodes: list[tuple[int, int, Partial]] = field(default_factory=list)
    singles: dict[int, Reply] = field(default_factory=dict)
    flaws: dict[tuple[int, int], str] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    remembered: list[int] = field(default_factory=list)
    bytes_up: int = 0
    framing_up: int = 0
    spent: Spent = field(default_factory=Spent)
    times: list[ClientTime] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)


def share(work: Work, cohort: Sequence[int], held: Collection[int]) -> Work:
    """Return the share that a node has of a phase's work.

    Args:
        work: What is known of the clients of the whole phase.
        cohort: These, in their order.
        held: Those that the node holds.
    """
    leaves = {client: place for place, client in enumerate(cohort) if client in held}
    return replace(
        work,
        leaves=leaves,
        memories={client: work.memories[client] for client in leaves if client in work.memories},
        most_examples={client: work.most_examples[client] for client in leaves if client in work.most_examples},
        squads=tuple(squad for squad in work.squads if any(client in leaves for client in squad)),
    )


def squads(cohort: Sequence[int], num_together: int, num_examples: Callable[[int], int]) -> tuple[tuple[int, ...], ...]:
    """Return who trains at once: of each `num_together` consecutive clients those with equally many examples.

    Args:
        cohort: All clients of a phase, in their order.
        num_together: As `umbel.core.training.modes.num_together` says.
        num_examples: How many examples a client trains on.
    """
    found: list[tuple[int, ...]] = []
    for start in range(0, len(cohort), num_together) if num_together > 1 else ():
        alike: dict[int, list[int]] = {}
        for client in cohort[start : start + num_together]:
            alike.setdefault(num_examples(client), []).append(client)
        found += [tuple(each) for each in alike.values() if len(each) > 1]
    return tuple(found)


def held_by(index: int, num_nodes: int, num_clients: int) -> range:
    """Return the clients that node `index` of `num_nodes` holds: the fixed map, contiguous ranges.

    Contiguous, because a cohort stands in ascending order: most siblings then lie within one node.
    """
    return range(index * num_clients // num_nodes, (index + 1) * num_clients // num_nodes)


def numbers(values: Mapping[str, float]) -> dict[str, float]:
    """Return the values as plain floats."""
    return {name: float(value) for name, value in values.items()}
