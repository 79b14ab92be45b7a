"""How replies combine: folds, each a commutative monoid over float64 accumulators.

A `Product` says for a phase which trees and numbers a reply must have and how each combines. Because a fold is
a monoid (`zero`, `add`, `merge`, `finish`), one algorithm serves a server that streams, partial sums inside a
worker, and a hierarchy of aggregators. The order of additions is fixed by `umbel.core.blocks`, so that every engine
gets the same bits.

Means and sums are here, `umbel.core.collecting` has the folds that keep more than a sum. Legend: N replies.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from umbel.core.records import LARGEST, MOST_EXAMPLES, BadReplyError, Payload, Reply, shortened
from umbel.core.tree import Tree, TreeMismatchError, check_same

WEIGHT = "#weight"  # name of the total weight inside an accumulator; no parameter starts with '#'


_LARGEST_SUM = 1e150  # in an accumulator from elsewhere: sums over any number of nodes are still numbers

Like = str | Callable[[Payload], Tree] | None
Shapes = dict[tuple[str, str], tuple[int, ...]]


class Fold(ABC):
    """How one named tree of the replies combines.

    Args:
        like: Name of the payload's tree whose names and shapes the reply's tree must have, or a function that makes
            such a tree out of the payload (of tensors on the device `meta`); None leaves them open (then `keys` says
            which names there must be).
        keys: Names that the tree must have when `like` is None; empty checks nothing.
    """

    def __init__(self, like: Like = None, keys: Sequence[str] = ()) -> None:
        self.like = like
        self.keys = tuple(keys)

    @abstractmethod
    def lift(self, tree: Tree, num_examples: int, client: int) -> dict[str, Tensor]:
        """Return the accumulator of a single reply, in memory of its own; floating-point values in float64."""

    @abstractmethod
    def merge(self, left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
        """Combine two accumulators. `left` may be reused for the result, `right` is not changed."""

    def finish(self, accumulator: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn the accumulator of all replies into the result, still in float64."""
        return {name: tensor for name, tensor in accumulator.items() if name != WEIGHT}

    def check(self, what: str, tree: Tree, payload: Payload) -> None:
        """Raise `BadReplyError` unless the tree may be folded."""
        expected: Tree = {}
        try:
            if self.like is not None:
                expected = payload.trees[self.like] if isinstance(self.like, str) else self.like(payload)
                check_same(tree, expected, what)
            elif self.keys and set(tree) != set(self.keys):
                raise TreeMismatchError(f"{what}: expected the keys {sorted(self.keys)}, found {sorted(tree)}")
        except TreeMismatchError as error:
            raise BadReplyError(str(error)) from error
        check_values(what, tree, expected)

    def check_accumulator(self, what: str, accumulator: Tree, payload: Payload, clients: Sequence[int]) -> None:
        """Raise `BadReplyError` unless an accumulator of these clients that came from elsewhere may be merged."""
        for name, tensor in accumulator.items():
            if flaw := _flaw(tensor, _LARGEST_SUM):
                raise BadReplyError(f"{what}: the partial sum of {name!r} holds {flaw}")

    def shapes(self, tree: Tree, lifted: bool) -> dict[str, tuple[int, ...]]:
        """Return the shapes in which all replies must agree, whatever the payload says: of tensors that are merged.

        Args:
            tree: Of a reply that was checked, or an accumulator.
            lifted: It is an accumulator.
        """
        return {}


def check_values(what: str, tree: Tree, expected: Tree) -> None:
    """Raise `BadReplyError` for values of a reply that are no numbers, or would not be once they are combined.

    Args:
        what: Name of the tree.
        tree: The reply's.
        expected: Tensors of the dtypes to which means are cast, where they are known.
    """
    for name, tensor in tree.items():
        wanted = expected[name].dtype if name in expected else tensor.dtype
        limit = min(LARGEST, torch.finfo(wanted).max) if wanted.is_floating_point else LARGEST
        if flaw := _flaw(tensor, limit):
            raise BadReplyError(f"{what}: {name!r} holds {flaw}")


def _flaw(tensor: Tensor, limit: float) -> str:
    """Say what is wrong with the values of a tensor; "" when nothing is."""
    if not tensor.is_floating_point() or not tensor.numel():
        return ""
    low, high = torch.aminmax(tensor)
    largest = max(-float(low), float(high))
    if not math.isfinite(largest):
        return "NaN or infinity"
    return "" if largest <= limit else f"values up to {largest:.3g}; more than {limit:.3g} cannot be combined"


def _sum_into(left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in right.items():
        left[name] += tensor
    return left


class _Linear(Fold):
    """A sum of weighted trees."""

    @abstractmethod
    def weight(self, num_examples: int) -> float:
        """Return the weight of a reply."""

    def lift(self, tree: Tree, num_examples: int, client: int) -> dict[str, Tensor]:
        weight = self.weight(num_examples)
        # Multiplied first and added afterwards, never fused: a reply that comes singly and one that is folded
        # where it arose must round in the same way.
        lifted = {name: tensor.to(torch.float64) * weight for name, tensor in tree.items()}
        lifted[WEIGHT] = torch.tensor(weight, dtype=torch.float64)
        return lifted

    def merge(self, left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
        return _sum_into(left, right)

    def shapes(self, tree: Tree, lifted: bool) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in tree.items() if name != WEIGHT}

    def check_accumulator(self, what: str, accumulator: Tree, payload: Payload, clients: Sequence[int]) -> None:
        super().check_accumulator(what, accumulator, payload, clients)
        weight = accumulator.get(WEIGHT)
        if weight is None or weight.shape != () or not float(weight) > 0:
            raise BadReplyError(f"{what}: a partial sum has no weight above 0")
        if any(tensor.dtype != torch.float64 for tensor in accumulator.values()):
            raise BadReplyError(f"{what}: a partial sum should be float64")
        values = {name: tensor for name, tensor in accumulator.items() if name != WEIGHT}
        super().check(what, values, payload)

    def check(self, what: str, tree: Tree, payload: Payload) -> None:
        super().check(what, tree, payload)
        for name, tensor in tree.items():
            if not tensor.is_floating_point():
                raise BadReplyError(f"{what}: {name!r} is {tensor.dtype}; only floating-point tensors are averaged")


def _mean(accumulator: dict[str, Tensor]) -> dict[str, Tensor]:
    total = accumulator[WEIGHT]
    return {name: tensor / total for name, tensor in accumulator.items() if name != WEIGHT}


class WeightedMean(_Linear):
    """Mean with the number of examples as weight: sum_k n_k x_k / sum_k n_k."""

    def weight(self, num_examples: int) -> float:
        return float(num_examples)

    def finish(self, accumulator: dict[str, Tensor]) -> dict[str, Tensor]:
        return _mean(accumulator)


class UniformMean(_Linear):
    """Mean in which every reply counts the same: sum_k x_k / N."""

    def weight(self, num_examples: int) -> float:
        return 1.0

    def finish(self, accumulator: dict[str, Tensor]) -> dict[str, Tensor]:
        return _mean(accumulator)


class Sum(_Linear):
    """Sum over replies."""

    def weight(self, num_examples: int) -> float:
        return 1.0


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
        trees: Result of each named tree; means are float64 and cast when they are applied.
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

    def check(self, reply: Reply, payload: Payload) -> None:
        """Raise `BadReplyError` with the reason unless `reply` may be folded."""
        if set(reply.trees) != set(self.folds):
            raise BadReplyError(f"expected the trees {sorted(self.folds)}, found {sorted(reply.trees)}")
        if set(reply.numbers) != set(self.numbers):
            raise BadReplyError(f"expected the numbers {sorted(self.numbers)}, found {sorted(reply.numbers)}")
        if not reply.num_examples >= 1:
            raise BadReplyError(f"num_examples should be at least 1, found {reply.num_examples}")
        if reply.num_examples > MOST_EXAMPLES:
            raise BadReplyError(f"num_examples should be at most 2^53, found {shortened(str(reply.num_examples))}")
        for name, number in reply.numbers.items():
            if not abs(number) <= LARGEST:
                raise BadReplyError(f"the number {name!r} is {number}")
        for name, fold in self.folds.items():
            fold.check(name, reply.trees[name], payload)

    def check_partial(self, partial: Partial, payload: Payload, clients: Sequence[int]) -> None:
        """Raise `BadReplyError` unless a node's accumulator may be merged.

        Args:
            partial: The accumulator.
            payload: What the clients received.
            clients: Whose replies must be in it, in the order of the cohort.
        """
        num_replies = len(clients)
        if partial.num_replies != num_replies:
            raise BadReplyError(f"a partial sum of {num_replies} replies says it holds {partial.num_replies}")
        if not num_replies:
            return
        if set(partial.trees) != set(self.folds) or set(partial.numbers) != set(self.numbers):
            raise BadReplyError(f"a partial sum should have {sorted(self.folds)}, found {sorted(partial.trees)}")
        counted = num_replies <= partial.num_examples <= num_replies * MOST_EXAMPLES
        if not counted or not all(abs(number) <= _LARGEST_SUM for number in partial.numbers.values()):
            raise BadReplyError("a partial sum has numbers that cannot be")
        for name, fold in self.folds.items():
            fold.check_accumulator(name, partial.trees[name], payload, clients)

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

    def finish(self, accumulator: Partial) -> Folded:
        """Turn the accumulator of all replies into the result."""
        if not accumulator.num_replies:
            raise ValueError("There is no reply to combine.")
        trees = {name: fold.finish(accumulator.trees[name]) for name, fold in self.folds.items()}
        numbers = {name: total / accumulator.num_examples for name, total in accumulator.numbers.items()}
        return Folded(trees, numbers, accumulator.num_examples, accumulator.num_replies)


def product(folds: Mapping[str, Fold], numbers: Sequence[str] = ()) -> Product:
    """Return the `Product` of named folds."""
    return Product(folds, numbers)
