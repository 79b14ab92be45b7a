"""The fixed order in which replies are added up, whoever adds them and whenever they come.

The selected clients stand in a fixed order and are cut into blocks of fixed size, whatever the number of
workers; a client that failed leaves a hole. A block is folded in order, and blocks merge as a fixed binary tree
whose leaves they are. Floating-point addition is not associative, so this order is what makes inline, Ray with
any number of workers, and gRPC agree to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from umbel.core.folds import Partial, Product
from umbel.core.records import Reply


@dataclass(frozen=True)
class Block:
    """Some consecutive clients of the cohort.

    Attributes:
        index: Position among the blocks of the phase.
        clients: The clients in order.
    """

    index: int
    clients: tuple[int, ...]


def cut(cohort: Sequence[int], size: int) -> list[Block]:
    """Cut the selected clients, in their order, into blocks of `size` (the last may be shorter)."""
    return [
        Block(index, tuple(cohort[start : start + size])) for index, start in enumerate(range(0, len(cohort), size))
    ]


def merged(whole: Collection[int], num_blocks: int) -> list[tuple[int, ...]]:
    """Return how a node merges the blocks that it holds whole: the blocks behind each accumulator that it sends.

    Args:
        whole: Their indices.
        num_blocks: Blocks of the whole phase.
    """
    tops: list[tuple[int, ...]] = []
    held: dict[int, tuple[int, ...]] = {index: (index,) for index in sorted(whole)}
    while num_blocks > 1:
        above: dict[int, tuple[int, ...]] = {}
        for index, blocks in held.items():
            sibling = held.get(index ^ 1)
            if sibling is None and index ^ 1 < num_blocks:
                tops.append(blocks)
            elif sibling is None or index % 2 == 0:
                above[index // 2] = blocks + (sibling or ())
        held, num_blocks = above, (num_blocks + 1) // 2
    return [*tops, *held.values()]


class BlockTree:
    """Merges blocks as a fixed binary tree, in whatever order they come.

    Node (level, index) covers the leaves index * 2^level up to (index + 1) * 2^level. Two siblings merge as soon
    as both are there, left before right; a node without a sibling moves up as it is. At most one accumulator a
    level waits when blocks come in order.

    Args:
        fold: Fold of the phase.
        num_blocks: Number of leaves.
        spill: Called with an accumulator that must wait when those that wait exceed `max_waiting_bytes`; returns
            a function that brings it back. None keeps all in memory.
        max_waiting_bytes: Memory for accumulators that wait.
    """

    def __init__(
        self,
        fold: Product,
        num_blocks: int,
        spill: Callable[[Partial], Callable[[], Partial]] | None = None,
        max_waiting_bytes: int = 1 << 30,
    ) -> None:
        self._fold = fold
        self._widths = [num_blocks]
        while self._widths[-1] > 1:
            self._widths.append((self._widths[-1] + 1) // 2)
        self._waiting: dict[tuple[int, int], Partial | Callable[[], Partial]] = {}
        self._spill = spill
        self._max_waiting_bytes = max_waiting_bytes

    def add(self, level: int, index: int, partial: Partial) -> None:
        """Put the accumulator of node (level, index) in; it is used up."""
        top = len(self._widths) - 1
        while level < top:
            sibling = (level, index ^ 1)
            if index ^ 1 < self._widths[level]:
                if sibling not in self._waiting:
                    break
                other = self._fetch(sibling)
                partial = self._fold.merge(partial, other) if index % 2 == 0 else self._fold.merge(other, partial)
            level, index = level + 1, index // 2
        self._store((level, index), partial)

    def _store(self, key: tuple[int, int], partial: Partial) -> None:
        held = sum(entry.num_bytes for entry in self._waiting.values() if isinstance(entry, Partial))
        if self._spill is not None and held + partial.num_bytes > self._max_waiting_bytes:
            self._waiting[key] = self._spill(partial)
        else:
            self._waiting[key] = partial

    def _fetch(self, key: tuple[int, int]) -> Partial:
        entry = self._waiting.pop(key)
        return entry if isinstance(entry, Partial) else entry()

    def nodes(self) -> Iterator[tuple[int, int, Partial]]:
        """Yield what has been merged so far as (level, index, accumulator), and forget it."""
        for level, index in sorted(self._waiting):
            yield level, index, self._fetch((level, index))

    def root(self) -> Partial:
        """Return the accumulator of all blocks.

        Raises:
            ValueError: Not all blocks have come.
        """
        top = (len(self._widths) - 1, 0)
        if list(self._waiting) != [top]:
            raise ValueError(f"Some of the {self._widths[0]} blocks are missing.")
        return self._fetch(top)


class Assembler:
    """Puts together what comes in from anywhere: merged nodes of the tree, single replies, and holes.

    Args:
        fold: Fold of the phase.
        blocks: All blocks of the phase.
        tree: The tree to fill; by default one that keeps everything in memory.
    """

    def __init__(self, fold: Product, blocks: Sequence[Block], tree: BlockTree | None = None) -> None:
        self._fold = fold
        self._blocks = {block.index: block for block in blocks}
        self._block_of = {client: block.index for block in blocks for client in block.clients}
        self._singles: dict[int, dict[int, Reply | None]] = {}
        self.tree = tree or BlockTree(fold, len(blocks))

    def add_node(self, level: int, index: int, partial: Partial) -> None:
        """Add a merged node of the tree that a worker or node held whole."""
        self.tree.add(level, index, partial)

    def add_client(self, client: int, reply: Reply | None) -> None:
        """Add one client's reply, or None for a hole; the block is folded once all of its clients are known."""
        block = self._blocks[self._block_of[client]]
        known = self._singles.setdefault(block.index, {})
        known[client] = reply
        if len(known) == len(block.clients):
            self.tree.add(0, block.index, fold_block(self._fold, block, known))
            del self._singles[block.index]

    def finish(self) -> Partial:
        """Return the accumulator of the phase."""
        return self.tree.root()


def fold_block(fold: Product, block: Block, replies: Mapping[int, Reply | None]) -> Partial:
    """Fold a block's replies in the block's order; None stands for a client that failed."""
    accumulator = fold.zero()
    for client in block.clients:
        reply = replies[client]
        if reply is not None:
            accumulator = fold.add(accumulator, client, reply)
    return accumulator
