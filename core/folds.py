"""How replies combine: folds, each a commutative monoid over float64 accumulators.

A `Product` says for a phase which trees and numbers a reply must have and how each combines. Because a fold is
a monoid (`zero`, `add`, `merge`, `finish`), one algorithm serves a server that streams, partial sums inside a
worker, and a hierarchy of aggregators. The order of additions is fixed by `umbel.core.fold_tree`, so that every engine
gets the same bits.

Means and sums are here, `umbel.core.collecting` has the folds that keep more than a sum. Legend: N replies.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from umbel.core.device import give_back_memory
from umbel.core.flat import pieces
from umbel.core.fold import ROUNDED
from umbel.core.fold import WEIGHT as WEIGHT
from umbel.core.fold import Fold as Fold
from umbel.core.fold import Like as Like
from umbel.core.fold import Shapes as Shapes
from umbel.core.names import shortened
from umbel.core.once import Once
from umbel.core.records import LARGEST, MOST_EXAMPLES, BadReplyError, NotFiniteError, Payload, Reply
from umbel.core.stored import without
from umbel.core.tree import Tree, num_bytes
from umbel.core.wire.limits import Size

_GIVEN_BACK = 16 << 20  # bytes, from which on memory counts more than the moment that it takes to give it back
Pieces = Callable[[str, str], Iterable[Tensor]]


def _sum_into(left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in right.items():
        left[name] += tensor
    return left


def _weighted(tensor: Tensor, weight: float) -> Tensor:
    """Return weight * tensor in float64, in memory of its own, in row-major order."""
    tensor = tensor.contiguous()
    return tensor * weight if tensor.dtype == torch.float64 else tensor.to(torch.float64).mul_(weight)


def _add_pieces(own: Tensor, others: Iterable[Tensor], weight: float | None) -> None:
    """Add a tensor that comes as `umbel.core.flat.pieces`, to one in row-major order."""
    for place, piece in zip(pieces(own), others, strict=True):
        place += piece if weight is None else _weighted(piece, weight)


class _Linear(Fold):
    """A sum of weighted trees."""

    @abstractmethod
    def weight(self, num_examples: int) -> float:
        """Return the weight of a reply."""

    def total_weight(self, num_examples: int, num_replies: int) -> float | None:
        """Return the weight of so many replies with so many examples together; None where these do not say it."""
        return None

    def lift(self, tree: Tree, num_examples: int, client: int) -> dict[str, Tensor]:
        weight = self.weight(num_examples)
        # Multiplied first and added afterwards, never fused: a reply that comes singly and one that is folded
        # where it arose must round in the same way.
        lifted = {name: _weighted(tensor, weight) for name, tensor in tree.items()}
        lifted[WEIGHT] = torch.tensor(weight, dtype=torch.float64)
        return lifted

    def merge(self, left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
        return _sum_into(left, right)

    @property
    def is_sum(self) -> bool:
        # A subclass may do anything; without names, replies may have different ones.
        return type(self) in (WeightedMean, UniformMean, Sum) and bool(self.like is not None or self.keys)

    def shapes(self, tree: Tree, lifted: bool) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in tree.items() if name != WEIGHT}

    def check_accumulator(self, what: str, accumulator: Tree, payload: Payload, clients: Sequence[int]) -> None:
        weight = accumulator.get(WEIGHT)
        if weight is None or weight.shape != () or not 0 < float(weight) < math.inf:
            raise BadReplyError(f"{what}: a partial sum has no weight above 0")
        if any(tensor.dtype != torch.float64 for tensor in accumulator.values()):
            raise BadReplyError(f"{what}: a partial sum should be float64")
        self.check_tree(what, without(accumulator, WEIGHT), payload, float(weight) * ROUNDED)

    def check_weights(self, what: str, accumulator: Tree, num_examples: int, most: Mapping[int, float]) -> None:
        weight, expected = float(accumulator[WEIGHT]), self.total_weight(num_examples, len(most))
        if expected is None:  # what all of them have together is not known; no more than what each may have
            largest = sum(self.weight(int(min(each, MOST_EXAMPLES))) for each in most.values())
            if not weight <= largest * ROUNDED:
                raise BadReplyError(f"{what}: a partial sum of at most {largest:g} in weight says it has {weight:g}")
        elif weight != expected:
            raise BadReplyError(f"{what}: a partial sum of {expected:g} in weight says it has {weight:g}")

    def check(self, what: str, tree: Tree, payload: Payload) -> None:
        super().check(what, tree, payload)
        for name, tensor in tree.items():
            if not tensor.is_floating_point():
                raise BadReplyError(f"{what}: {name!r} is {tensor.dtype}; only floating-point tensors are averaged")


def _mean(accumulator: dict[str, Tensor]) -> dict[str, Tensor]:
    total = accumulator[WEIGHT]
    return {name: tensor.div_(total) for name, tensor in accumulator.items() if name != WEIGHT}


class WeightedMean(_Linear):
    """Mean with the number of examples as weight: sum_k n_k x_k / sum_k n_k; a subclass may weigh otherwise."""

    def weight(self, num_examples: int) -> float:
        return float(num_examples)

    def total_weight(self, num_examples: int, num_replies: int) -> float | None:
        is_own = type(self).weight is not WeightedMean.weight
        return None if is_own else float(num_examples)

    def finish(self, accumulator: dict[str, Tensor]) -> dict[str, Tensor]:
        return _mean(accumulator)


class UniformMean(_Linear):
    """Mean in which every reply counts the same: sum_k x_k / N."""

    def weight(self, num_examples: int) -> float:
        return 1.0

    def total_weight(self, num_examples: int, num_replies: int) -> float | None:
        is_own = type(self).weight is not UniformMean.weight
        return None if is_own else float(num_replies)

    def finish(self, accumulator: dict[str, Tensor]) -> dict[str, Tensor]:
        return _mean(accumulator)


class Sum(_Linear):
    """Sum over replies."""

    def weight(self, num_examples: int) -> float:
        return 1.0

    def total_weight(self, num_examples: int, num_replies: int) -> float | None:
        is_own = type(self).weight is not Sum.weight
        return None if is_own else float(num_replies)


@dataclass
class Partial:
    """What some replies of a phase have combined to so far.

    Attributes:
        trees: Accumulator of each named tree.
        numbers: Sums of the replies' numbers, each weighted by the number of examples.
        num_examples: Examples behind these replies.
        num_replies: How many replies these are.
    """

    trees: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    num_examples: int = 0
    num_replies: int = 0

    @property
    def num_bytes(self) -> int:
        """Size of the accumulators in bytes."""
        return sum(t.numel() * t.element_size() for tree in self.trees.values() for t in tree.values())


@dataclass(frozen=True)
class Folded:
    """The combination of all replies of a phase.

    Attributes:
        trees: Result of each named tree; means are float64 and cast when they are applied. A mean or sum is a
            `umbel.core.once.Once`, of which the server's step lets each tensor go as it uses it.
        numbers: Means of the replies' numbers over examples.
        num_examples: Examples behind all replies.
        num_replies: Replies that were used.
    """

    trees: Mapping[str, Tree]
    numbers: Mapping[str, float]
    num_examples: int
    num_replies: int


class Product:
    """The fold of a phase: one fold for each named tree of a reply, and the numbers it must have.

    Args:
        folds: Fold of each tree by its name in the reply.
        numbers: Names of the numbers that every reply has; they are averaged over examples.
    """

    def __init__(self, folds: Mapping[str, Fold], numbers: Sequence[str] = ()) -> None:
        self.folds = dict(folds)
        self.numbers = tuple(numbers)

    def check(self, reply: Reply, payload: Payload, most: float = math.inf) -> None:
        """Raise `BadReplyError` with the reason unless `reply` may be folded.

        Args:
            reply: The reply.
            payload: What its client received.
            most: The most examples that its client may count.
        """
        if set(reply.trees) != set(self.folds):
            raise BadReplyError(f"expected the trees {sorted(self.folds)}, found {sorted(reply.trees)}")
        if set(reply.numbers) != set(self.numbers):
            raise BadReplyError(f"expected the numbers {sorted(self.numbers)}, found {sorted(reply.numbers)}")
        if not reply.num_examples >= 1:
            raise BadReplyError(f"num_examples should be at least 1, found {reply.num_examples}")
        if reply.num_examples > MOST_EXAMPLES:
            raise BadReplyError(f"num_examples should be at most 2^53, found {shortened(str(reply.num_examples))}")
        if reply.num_examples > most:
            raise BadReplyError(f"num_examples should be at most {most:,.0f}, found {reply.num_examples:,}")
        for name, number in reply.numbers.items():
            if not abs(number) <= LARGEST:
                raise NotFiniteError(f"the number {name!r} is {number}")
        for name, fold in self.folds.items():
            fold.check(name, reply.trees[name], payload)
            fold.check_examples(name, reply.trees[name], most)

    def check_partial(
        self,
        partial: Partial,
        payload: Payload,
        clients: Sequence[int],
        most: Callable[[int], float] = lambda client: MOST_EXAMPLES,
    ) -> None:
        """Raise `BadReplyError` unless a node's accumulator may be merged.

        Args:
            partial: The accumulator.
            payload: What the clients received.
            clients: Whose replies must be in it, in the order of the cohort.
            most: Returns the most examples that a client may count.
        """
        num_replies = len(clients)
        if partial.num_replies != num_replies:
            raise BadReplyError(f"a partial sum of {num_replies} replies says it holds {partial.num_replies}")
        if not num_replies:
            if partial != self.zero():
                raise BadReplyError("a partial sum of no replies should be empty")
            return
        if set(partial.trees) != set(self.folds) or set(partial.numbers) != set(self.numbers):
            raise BadReplyError(f"a partial sum should have {sorted(self.folds)}, found {sorted(partial.trees)}")
        allowed = {client: most(client) for client in clients}
        limit = min(sum(allowed.values()), MOST_EXAMPLES)
        if not num_replies <= partial.num_examples <= limit:
            raise BadReplyError(
                f"a partial sum of {num_replies} replies should be of {num_replies} to {limit:,.0f} examples, found "
                f"{partial.num_examples:,}"
            )
        for name, number in partial.numbers.items():
            if not abs(number) <= LARGEST * partial.num_examples * ROUNDED:
                raise BadReplyError(f"the sum of the numbers {name!r} is {number}")
        for name, fold in self.folds.items():
            fold.check_accumulator(name, partial.trees[name], payload, clients)
            fold.check_weights(name, partial.trees[name], partial.num_examples, allowed)

    def most(self, payload: Payload, num_replies: int = 1) -> Size:
        """Return the most that an accumulator of so many replies, or a reply, may come to."""
        return sum((fold.most(payload, num_replies) for fold in self.folds.values()), Size())

    def num_bytes(self, payload: Payload) -> int:
        """Return the size of a reply's tensors in bytes, as far as the payload says their shapes."""
        expected = (fold.expected(payload) for fold in self.folds.values())
        return sum(num_bytes(tree) for tree in expected if tree is not None)

    def agree(self, known: Shapes, trees: Mapping[str, Tree], lifted: bool) -> None:
        """Note the shapes that all replies of a phase have; where the payload leaves them open, the first sets them.

        Args:
            known: Shapes so far, by tree and name; those of these trees are added when they fit.
            trees: Of a reply that was checked, or its accumulators.
            lifted: They are accumulators.

        Raises:
            BadReplyError: They could not be merged with those before.
        """
        theirs = {
            (tree, name): shape
            for tree, fold in self.folds.items()
            for name, shape in fold.shapes(trees[tree], lifted).items()
        }
        for (tree, name), shape in theirs.items():
            expected = known.get((tree, name), shape)
            if shape != expected:
                raise BadReplyError(
                    f"{tree}: {name!r} should have shape {expected} as another client's has, found {shape}; they "
                    "cannot be combined"
                )
        known |= theirs

    def zero(self) -> Partial:
        """Return the neutral element."""
        return Partial()

    def lift(self, client: int, reply: Reply) -> Partial:
        """Return the accumulator of one reply."""
        trees = {name: fold.lift(reply.trees[name], reply.num_examples, client) for name, fold in self.folds.items()}
        numbers = {name: reply.numbers[name] * reply.num_examples for name in self.numbers}
        return Partial(trees, numbers, reply.num_examples, 1)

    def lift_away(self, client: int, reply: Reply) -> Partial:
        """Return the accumulator of one reply of a sum, which is used up: its trees are emptied tensor by tensor.

        What that frees is between what is in use, and too small for what comes: it is given back as it goes.
        """
        freed = 0
        accumulator = self.lift(client, replace(reply, trees={name: {} for name in self.folds}))
        for name, fold in self.folds.items():
            tree, lifted = reply.trees[name], accumulator.trees[name]
            weight = lifted.pop(WEIGHT)
            for key in list(tree):
                tensor = tree.pop(key) if isinstance(tree, dict) else tree[key]
                lifted[key] = fold.lift({key: tensor}, reply.num_examples, client)[key]
                freed += tensor.nbytes
                del tensor  # so that all of them are never there twice
                if freed >= _GIVEN_BACK:
                    give_back_memory()
                    freed = 0
            lifted[WEIGHT] = weight
        return accumulator

    def add(self, accumulator: Partial, client: int, reply: Reply) -> Partial:
        """Add one reply; `accumulator` is used up."""
        return self.merge(accumulator, self.lift(client, reply))

    def merge(self, left: Partial, right: Partial) -> Partial:
        """Combine two accumulators, `left` before `right`; `left` is used up."""
        if not left.num_replies:
            return right
        if not right.num_replies:
            return left
        trees = {name: fold.merge(left.trees[name], right.trees[name]) for name, fold in self.folds.items()}
        numbers = {name: left.numbers[name] + right.numbers[name] for name in self.numbers}
        return Partial(trees, numbers, left.num_examples + right.num_examples, left.num_replies + right.num_replies)

    @property
    def is_sum(self) -> bool:
        """Whether `absorb` does what `merge` does."""
        return all(fold.is_sum for fold in self.folds.values())

    def absorb(self, accumulator: Partial, other: Partial | Reply, values: Pieces) -> Partial:
        """Add a reply, or another accumulator, whose tensors come piece by piece; `accumulator` is used up.

        The bits are those of `merge`, of the one before the other or the other before the one.

        Args:
            accumulator: The accumulator.
            other: What is added, whose trees need not be there.
            values: Returns the values of a tensor by the names of its tree and its own, as `umbel.core.flat.pieces`.
        """
        is_reply, examples = isinstance(other, Reply), other.num_examples
        for name, fold in self.folds.items():
            assert isinstance(fold, _Linear), "only sums are absorbed"
            weight = fold.weight(examples) if is_reply else None
            for key, tensor in accumulator.trees[name].items():
                if key == WEIGHT and weight is not None:
                    tensor += weight
                else:
                    _add_pieces(tensor, values(name, key), weight)
        times = examples if is_reply else 1
        numbers = {name: total + other.numbers[name] * times for name, total in accumulator.numbers.items()}
        num_replies = accumulator.num_replies + (1 if isinstance(other, Reply) else other.num_replies)
        return Partial(accumulator.trees, numbers, accumulator.num_examples + examples, num_replies)

    def finish(self, accumulator: Partial) -> Folded:
        """Turn the accumulator of all replies into the result; it is used up."""
        if not accumulator.num_replies:
            raise ValueError("There is no reply to combine.")
        trees: dict[str, dict[str, Tensor]] = {}
        for name, fold in self.folds.items():
            finished = fold.finish(accumulator.trees[name])
            trees[name] = Once(finished) if fold.is_sum else finished
        numbers = {name: total / accumulator.num_examples for name, total in accumulator.numbers.items()}
        return Folded(trees, numbers, accumulator.num_examples, accumulator.num_replies)


def product(folds: Mapping[str, Fold], numbers: Sequence[str] = ()) -> Product:
    """Return the `Product` of named folds."""
    return Product(folds, numbers)
