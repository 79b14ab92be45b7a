"""The fixed order in which replies are added up, whoever adds them and whenever they come.

The selected clients stand in a fixed order, and each is a leaf of a binary tree; a client that failed leaves a hole.
Two siblings merge, left before right. Floating-point addition is not associative, so this tree is what makes inline,
Ray with any number of workers, and gRPC agree to the bit: a process that has run some consecutive clients holds whole
branches of it, merges them, and hands the few over that have no sibling there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from umbel.core.folds import Partial, Product
from umbel.core.records import Reply

Lift = Callable[[int, Reply], Partial]


def merged(leaves: Collection[int], num_leaves: int) -> list[tuple[int, ...]]:
    """Return what a process merges the leaves to that it holds: those behind each branch that it hands over.

    Args:
        leaves: Their places.
        num_leaves: Leaves of the whole tree.
    """
    tops: list[tuple[int, ...]] = []
    held: dict[int, tuple[int, ...]] = {place: (place,) for place in sorted(leaves)}
    while num_leaves > 1:
        above: dict[int, tuple[int, ...]] = {}
        for index, below in held.items():
            sibling = held.get(index ^ 1)
            if sibling is None and index ^ 1 < num_leaves:
                tops.append(below)
            elif sibling is None or index % 2 == 0:
                above[index // 2] = below + (sibling or ())
        held, num_leaves = above, (num_leaves + 1) // 2
    return [*tops, *held.values()]


@dataclass(frozen=True)
class _Single:
    """A reply that waits for its sibling as it came, which takes half of its accumulator's memory."""

    client: int
    reply: Reply

    @property
    def num_bytes(self) -> int:
        return self.reply.num_bytes


@dataclass(frozen=True)
class _Spilled:
    """An accumulator that waits elsewhere."""

    fetch: Callable[[], Partial]
    num_bytes: int = 0


class FoldTree:
    """Merges replies as a fixed binary tree, in whatever order they come.

    Node (level, index) covers the leaves index * 2^level up to (index + 1) * 2^level. Two siblings merge as soon
    as both are there, left before right; a node without a sibling moves up as it is. At most one accumulator a
    level waits when replies come in order.

    Args:
        fold: Fold of the phase.
        num_leaves: Clients of the phase.
        spill: Called with an accumulator that must wait when those that wait exceed `max_waiting_bytes`; returns
            a function that brings it back. None keeps all in memory.
        max_waiting_bytes: Memory for accumulators that wait.
        lift: Makes the accumulator of a reply that has waited; by default the fold's.
    """

    def __init__(
        self,
        fold: Product,
        num_leaves: int,
        spill: Callable[[Partial], Callable[[], Partial]] | None = None,
        max_waiting_bytes: int = 1 << 30,
        lift: Lift | None = None,
    ) -> None:
        self._fold = fold
        self._widths = [num_leaves]
        while self._widths[-1] > 1:
            self._widths.append((self._widths[-1] + 1) // 2)
        self._waiting: dict[tuple[int, int], Partial | _Single | _Spilled] = {}
        self._waiting_bytes = 0
        self._spill = spill
        self._max_waiting_bytes = max_waiting_bytes
        self._lift = lift or fold.lift

    def waits(self, place: int) -> bool:
        """Say whether a reply at a place will wait for its sibling; it then needs memory of its own."""
        key = self._lone(0, place)
        return key[0] == len(self._widths) - 1 or (key[0], key[1] ^ 1) not in self._waiting

    def _lone(self, level: int, index: int) -> tuple[int, int]:
        """Return where a node comes to stand that moves up as long as there is no sibling in the tree."""
        while level < len(self._widths) - 1 and index ^ 1 >= self._widths[level]:
            level, index = level + 1, index // 2
        return level, index

    def add_reply(self, place: int, client: int, reply: Reply | None) -> None:
        """Put a client's reply in, or a hole.

        Args:
            place: The client's, among the selected ones.
            client: Its number.
            reply: Its reply, in memory of its own if `waits(place)`; None leaves a hole.
        """
        if reply is not None and self.waits(place):
            self._store(self._lone(0, place), _Single(client, reply))
        else:
            self.add(0, place, self._fold.zero() if reply is None else self._lift(client, reply))

    def add(self, level: int, index: int, partial: Partial) -> None:
        """Put the accumulator of node (level, index) in; it is used up."""
        while True:
            level, index = self._lone(level, index)
            if (level, index ^ 1) not in self._waiting:
                break
            sibling = self._fetch((level, index ^ 1))
            partial = self._fold.merge(partial, sibling) if index % 2 == 0 else self._fold.merge(sibling, partial)
            level, index = level + 1, index // 2
        self._store((level, index), partial)

    def _store(self, key: tuple[int, int], entry: Partial | _Single) -> None:
        num_bytes = entry.num_bytes
        if self._spill is not None and self._waiting_bytes + num_bytes > self._max_waiting_bytes:
            self._waiting[key] = _Spilled(self._spill(self._lifted(entry)))
        else:
            self._waiting[key] = entry
            self._waiting_bytes += num_bytes

    def _lifted(self, entry: Partial | _Single) -> Partial:
        return self._lift(entry.client, entry.reply) if isinstance(entry, _Single) else entry

    def _fetch(self, key: tuple[int, int]) -> Partial:
        entry = self._waiting.pop(key)
        self._waiting_bytes -= entry.num_bytes
        return entry.fetch() if isinstance(entry, _Spilled) else self._lifted(entry)

    def replies(self) -> Iterator[tuple[int, Reply]]:
        """Yield the replies that have met no sibling, with their clients, and forget them."""
        for key, entry in sorted(self._waiting.items(), key=lambda each: each[0][1] << each[0][0]):
            if isinstance(entry, _Single):
                del self._waiting[key]
                self._waiting_bytes -= entry.num_bytes
                yield entry.client, entry.reply

    def nodes(self) -> Iterator[tuple[int, int, Partial]]:
        """Yield what has been merged so far as (level, index, accumulator), and forget it."""
        for level, index in sorted(self._waiting):
            yield level, index, self._fetch((level, index))

    def root(self) -> Partial:
        """Return the accumulator of all replies.

        Raises:
            ValueError: Not all have come.
        """
        top = (len(self._widths) - 1, 0)
        if list(self._waiting) != [top]:
            raise ValueError(f"Some of the {self._widths[0]} replies are missing.")
        return self._fetch(top)
