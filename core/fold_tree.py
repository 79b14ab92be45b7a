"""The fixed order in which replies are added up, whoever adds them and whenever they come.

The selected clients stand in a fixed order, and each is a leaf of a binary tree; a client that failed leaves a hole.
Two siblings merge, left before right. Floating-point addition is not associative, so this tree is what makes inline,
Ray with any number of workers, and gRPC agree to the bit: a process that has run some consecutive clients holds whole
branches of it, merges them, and hands the few over that have no sibling there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from umbel.core.flat import pieces
from umbel.core.folds import Partial, Product
from umbel.core.records import Reply
from umbel.core.stored import Stored, stored_of
from umbel.core.tree import Tree

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
    """What waits on disk: a reply of a client, or an accumulator, without its trees, and these."""

    entry: _Single | Partial
    trees: Stored
    num_bytes: int = 0


_Entry = Partial | _Single | _Spilled


def _with(entry: _Single | Partial, trees: Any) -> _Single | Partial:
    """Return a reply or an accumulator with other trees."""
    if isinstance(entry, _Single):
        return replace(entry, reply=replace(entry.reply, trees=trees))
    return replace(entry, trees=trees)


def _entry(entry: _Single | Partial) -> _Entry:
    """Return what waits as it is, or as what is in a file already."""
    stored = stored_of(entry.reply.trees if isinstance(entry, _Single) else entry.trees)
    return entry if stored is None else _Spilled(_with(entry, {}), stored)


def _shown(entry: _Entry) -> _Single | Partial:
    """Return the other way round: what waits, with the trees where they are."""
    return _with(entry.entry, entry.trees.trees()) if isinstance(entry, _Spilled) else entry


class FoldTree:
    """Merges replies as a fixed binary tree, in whatever order they come.

    Node (level, index) covers the leaves index * 2^level up to (index + 1) * 2^level. Two siblings merge as soon
    as both are there, left before right; a node without a sibling moves up as it is. At most one accumulator a
    level waits when replies come in order. Where these are too many, those on the highest levels wait on disk, whose
    siblings come last.

    Args:
        fold: Fold of the phase.
        num_leaves: Clients of the phase.
        spill: Puts trees on disk when what waits exceeds `max_waiting_bytes`. None keeps all in memory.
        max_waiting_bytes: Memory for what waits.
        lift: Makes the accumulator of a reply that has waited; by default the fold's.
    """

    def __init__(
        self,
        fold: Product,
        num_leaves: int,
        spill: Callable[[Mapping[str, Tree]], Stored] | None = None,
        max_waiting_bytes: int = 1 << 30,
        lift: Lift | None = None,
    ) -> None:
        self._fold = fold
        self._widths = [num_leaves]
        while self._widths[-1] > 1:
            self._widths.append((self._widths[-1] + 1) // 2)
        self._waiting: dict[tuple[int, int], _Entry] = {}
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

    def kept(self, reply: Reply) -> Reply:
        """Return a reply that waits, which nobody else can change: in memory of its own, or on disk.

        One of a sum that is larger than all that may wait in memory would go there anyway, and so is never in memory
        twice.
        """
        if self._fold.is_sum and self._spill is not None and reply.num_bytes > self._max_waiting_bytes:
            try:
                return replace(reply, trees=self._spill(reply.trees).trees())
            except OSError:  # as in `_store`
                self._spill = None
        return reply.owned()

    def add_reply(self, place: int, client: int, reply: Reply | None) -> None:
        """Put a client's reply in, or a hole.

        Args:
            place: The client's, among the selected ones.
            client: Its number.
            reply: Its reply, in memory of its own if `waits(place)`; a sum's fold uses it up. None leaves a hole.
        """
        if reply is None:
            self.add(0, place, self._fold.zero())
        elif self.waits(place):
            self._store(self._lone(0, place), _entry(_Single(client, reply)))
        else:
            self._put(0, place, _entry(_Single(client, reply)) if self._fold.is_sum else self._lift(client, reply))

    def add(self, level: int, index: int, partial: Partial) -> None:
        """Put the accumulator of node (level, index) in; it is used up. Its trees may lie in a file."""
        self._put(level, index, _entry(partial))

    def _put(self, level: int, index: int, entry: _Entry) -> None:
        while True:
            level, index = self._lone(level, index)
            if (level, index ^ 1) not in self._waiting:
                break
            pair = [entry, self._take((level, index ^ 1))]
            del entry  # it is held by nobody else while the two are combined
            entry = self._combined(pair if index % 2 == 0 else pair[::-1])
            level, index = level + 1, index // 2
        self._store((level, index), entry)

    def _combined(self, pair: list[_Entry]) -> _Entry:
        """Combine two siblings, left before right; the list is emptied."""
        for place, each in enumerate(pair):
            if isinstance(each, Partial) and not each.num_replies:
                other = pair[1 - place]
                return self._lifted(other) if isinstance(_shown(other), _Single) else other
        if not self._fold.is_sum:
            left, right = (self._lifted(pair.pop(0)) for _ in range(2))
            return self._fold.merge(left, right)
        # The sum is the same to the bit either way round; what is in memory already need not be fetched.
        pair.sort(key=lambda each: (Partial, _Single, _Spilled).index(type(each)))
        first = self._back(pair.pop(0))
        accumulator = self._fold.lift_away(first.client, first.reply) if isinstance(first, _Single) else first
        return self._absorbed(accumulator, pair.pop())

    def _absorbed(self, accumulator: Partial, other: _Entry) -> Partial:
        """Add to an accumulator of a sum what need not be in memory as a whole."""
        if isinstance(other, Partial):
            return self._fold.merge(accumulator, other)
        if isinstance(other, _Single):
            reply = other.reply
            return self._fold.absorb(accumulator, reply, lambda tree, name: pieces(reply.trees[tree][name]))
        head = other.entry.reply if isinstance(other.entry, _Single) else other.entry
        accumulator = self._fold.absorb(accumulator, head, other.trees.pieces)
        other.trees.forget()
        return accumulator

    def _store(self, key: tuple[int, int], entry: _Entry) -> None:
        self._waiting[key] = entry
        self._waiting_bytes += entry.num_bytes
        top = (len(self._widths) - 1, 0)
        while self._spill is not None and self._waiting_bytes > self._max_waiting_bytes:
            held = [place for place, each in self._waiting.items() if each.num_bytes and place != top]
            if not held:
                return
            place = max(held)
            try:
                entry = self._waiting[place]
                assert not isinstance(entry, _Spilled)
                trees = entry.reply.trees if isinstance(entry, _Single) else entry.trees
                spilled = _Spilled(_with(entry, {}), self._spill(trees))
            except OSError:  # the disk is full, say, as somebody has been told: what waits is in memory after all
                self._spill = None
                return
            self._take(place)
            self._waiting[place] = spilled
            del entry, trees  # nobody else has them

    def _take(self, key: tuple[int, int]) -> _Entry:
        entry = self._waiting.pop(key)
        self._waiting_bytes -= entry.num_bytes
        return entry

    def _back(self, entry: _Entry) -> Partial | _Single:
        """Return what waited, its trees in memory."""
        if not isinstance(entry, _Spilled):
            return entry
        back = _with(entry.entry, entry.trees.load())
        entry.trees.forget()
        return back

    def _lifted(self, entry: _Entry) -> Partial:
        entry = self._back(entry)
        return self._lift(entry.client, entry.reply) if isinstance(entry, _Single) else entry

    def replies(self) -> Iterator[tuple[int, Reply]]:
        """Yield the replies that have met no sibling, with their clients, and forget them; some lie in a file."""
        for key in sorted(self._waiting, key=lambda each: each[1] << each[0]):
            entry = _shown(self._waiting[key])
            if isinstance(entry, _Single):
                self._take(key)
                yield entry.client, entry.reply

    def nodes(self) -> Iterator[tuple[int, int, Partial]]:
        """Yield what has been merged so far as (level, index, accumulator), and forget it; some lie in a file."""
        for level, index in sorted(self._waiting):
            entry = _shown(self._take((level, index)))
            yield level, index, entry if isinstance(entry, Partial) else self._lifted(entry)

    def root(self) -> Partial:
        """Return the accumulator of all replies.

        Raises:
            ValueError: Not all have come.
        """
        top = (len(self._widths) - 1, 0)
        if list(self._waiting) != [top]:
            raise ValueError(f"Some of the {self._widths[0]} replies are missing.")
        return self._lifted(self._take(top))
