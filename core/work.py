"""What a node is asked to do in a phase, and what it answers; the same for every engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from umbel.core.blocks import Block
from umbel.core.folds import Partial
from umbel.core.memory import Version
from umbel.core.records import Reply


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
        blocks: The blocks with a client in `clients`, each with all of its clients.
        num_blocks: Blocks of the whole phase.
        clients: The clients that this node runs.
        memories: Which version of its memory each of them goes on from; a client that is not named has none.
        agreed: What all sites with data of their own go by; empty where there are none.
    """

    run: str
    attempt: str
    round: int
    step: int
    phase: str
    config_hash: str
    checkpoint_round: int
    blocks: tuple[Block, ...]
    num_blocks: int
    clients: frozenset[int]
    memories: Mapping[int, Version] = field(default_factory=dict)
    agreed: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a node answers.

    Attributes:
        nodes: Accumulators of tree nodes that it held whole, as (level, index, accumulator).
        singles: Replies of clients whose block it did not hold whole.
        flaws: Accumulators that could not be read, by (level, index), and why.
        failures: Reason for each client that failed.
        seconds: Time that each client took.
        remembered: Clients that wrote their memory.
        bytes_up: Tensor bytes of all replies, before any folding; the server holds it to what came.
        framing_up: Bytes of framing that these replies would have had, sent singly; likewise.
    """

    nodes: list[tuple[int, int, Partial]] = field(default_factory=list)
    singles: dict[int, Reply] = field(default_factory=dict)
    flaws: dict[tuple[int, int], str] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    remembered: list[int] = field(default_factory=list)
    bytes_up: int = 0
    framing_up: int = 0


def share(blocks: Sequence[Block], held: frozenset[int]) -> tuple[tuple[Block, ...], frozenset[int]]:
    """Return the blocks that touch `held`, and the clients of them that are held."""
    touched = tuple(block for block in blocks if not held.isdisjoint(block.clients))
    return touched, frozenset(client for block in touched for client in block.clients if client in held)


def held_by(index: int, num_nodes: int, num_clients: int) -> range:
    """Return the clients that node `index` of `num_nodes` holds: the fixed map, contiguous ranges.

    Contiguous, because a cohort stands in ascending order: most blocks then lie within one node.
    """
    return range(index * num_clients // num_nodes, (index + 1) * num_clients // num_nodes)


def numbers(values: Mapping[str, float]) -> dict[str, float]:
    """Return the values as plain floats."""
    return {name: float(value) for name, value in values.items()}
