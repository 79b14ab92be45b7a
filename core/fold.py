"""What a fold is: how one named tree of the replies combines, and what is checked of what came.

What comes from elsewhere is hostile until it was checked. A value must stay a number in whatever is made of it: of a
parameter its square too, in the parameter's dtype (the server adds changes up, and some methods square them). A sum of
weighted values is at most the weight times that, and its weight is the one that its replies' examples give.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from umbel.core.records import LARGEST, BadReplyError, NotFiniteError, Payload
from umbel.core.stored import parts_of
from umbel.core.tree import Tree, TreeMismatchError, check_same, largest
from umbel.core.wire.limits import Size

WEIGHT = "#weight"  # name of the total weight inside an accumulator; no parameter starts with '#'
_OPEN, _OPEN_TIMES = Size(1 << 28, 10_000), 16  # of a reply's tree whose shapes the payload leaves open
_LARGEST_SUM = 1e150  # in an accumulator of which no more is known: sums over any number of nodes are still numbers
ROUNDED = 1 + 1e-9  # a sum of many of the largest values may be above it by rounding
_WIDE = 1e30  # a dtype that reaches as far has room for squares of what is sensible; float16 has not

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

    @property
    def is_sum(self) -> bool:
        """Whether an accumulator is the sum of its replies' tensors with a weight each, and nothing else.

        Then either of two may be reused for their sum, and what is added may come piece by piece from wherever it lies.
        """
        return False

    def finish(self, accumulator: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn the accumulator of all replies into the result, still in float64; it is used up."""
        return {name: tensor for name, tensor in accumulator.items() if name != WEIGHT}

    def check(self, what: str, tree: Tree, payload: Payload) -> None:
        """Raise `BadReplyError` unless the tree may be folded."""
        self.check_tree(what, tree, payload)

    def check_tree(self, what: str, tree: Tree, payload: Payload, weight: float = 1.0) -> None:
        """Check a tree of a reply, or the sum of several with a weight."""
        expected = self.expected(payload)
        try:
            if expected is not None:
                check_same(tree, expected, what)
            elif self.keys and set(tree) != set(self.keys):
                raise TreeMismatchError(f"{what}: expected the keys {sorted(self.keys)}, found {sorted(tree)}")
        except TreeMismatchError as error:
            raise BadReplyError(str(error)) from error
        check_values(what, tree, expected or {}, isinstance(self.like, str), weight)

    def check_accumulator(self, what: str, accumulator: Tree, payload: Payload, clients: Sequence[int]) -> None:
        """Raise `BadReplyError` unless an accumulator of these clients that came from elsewhere may be merged."""
        for name in accumulator:
            if flaw := _flaw(parts_of(accumulator, name), _LARGEST_SUM):
                raise BadReplyError(f"{what}: the partial sum of {name!r} holds {flaw}")

    def check_examples(self, what: str, tree: Tree, most: float) -> None:  # noqa: B027 - most folds count none
        """Raise `BadReplyError` where a reply's tree that was checked counts more examples than its client has."""

    def check_weights(  # noqa: B027 - a fold may have no weights
        self, what: str, accumulator: Tree, num_examples: int, most: Mapping[int, float]
    ) -> None:
        """Raise `BadReplyError` where an accumulator that was checked weighs more than its replies' examples.

        Args:
            what: Name of the tree.
            accumulator: The accumulator.
            num_examples: Examples behind it, by its own word, which was checked.
            most: The clients whose replies it holds, and the most examples that each may count.
        """

    def expected(self, payload: Payload) -> Tree | None:
        """Return a tree of the names, shapes and dtypes that a reply has; None where the payload leaves them open."""
        if self.like is None:
            return None
        return payload.trees[self.like] if isinstance(self.like, str) else self.like(payload)

    def most(self, payload: Payload, num_replies: int) -> Size:
        """Return the most that an accumulator of so many replies, or a reply, may come to.

        Where the payload leaves it open, each reply may have a quarter of a gibibyte, or 16 times the payload's bytes;
        a fold that has more says so here.
        """
        expected = self.expected(payload)
        return open_size(payload) * num_replies if expected is None else _size(expected)

    def shapes(self, tree: Tree, lifted: bool) -> dict[str, tuple[int, ...]]:
        """Return the shapes in which all replies must agree, whatever the payload says: of tensors that are merged.

        Args:
            tree: Of a reply that was checked, or an accumulator.
            lifted: It is an accumulator.
        """
        return {}


def open_size(payload: Payload) -> Size:
    """Return the most that a reply's tree may come to whose shapes the payload leaves open."""
    return Size(max(_OPEN.num_bytes, _OPEN_TIMES * payload.num_bytes), _OPEN.num_tensors)


def _size(expected: Tree) -> Size:
    """Return what the accumulator of a tree comes to: its values in float64, and a weight."""
    return Size(8 * (sum(tensor.numel() for tensor in expected.values()) + 1), len(expected) + 1)


def check_values(what: str, tree: Tree, expected: Tree, squared: bool = False, weight: float = 1.0) -> None:
    """Raise `BadReplyError` for values of a reply that are no numbers, or would not be once they are combined.

    Args:
        what: Name of the tree.
        tree: The reply's, or the sum of several.
        expected: Tensors of the dtypes to which means are cast, where they are known.
        squared: They are changes of parameters: so are their squares.
        weight: Of the sum.
    """
    for name in tree:
        wanted = (expected if name in expected else tree)[name].dtype
        limit = min(LARGEST, torch.finfo(wanted).max) if wanted.is_floating_point else LARGEST
        if squared and wanted.is_floating_point and torch.finfo(wanted).max > _WIDE:
            limit = min(LARGEST, math.sqrt(torch.finfo(wanted).max))
        if flaw := _flaw(parts_of(tree, name), weight * limit):
            raise NotFiniteError(f"{what}: {name!r} holds {flaw}")


def _flaw(parts: Iterable[Tensor], limit: float) -> str:
    """Say what is wrong with the values of a tensor, which come in parts; "" when nothing is."""
    most = 0.0
    for part in parts:
        if part.is_floating_point() and part.numel():
            here = largest(part)
            if not math.isfinite(here):
                return "NaN or infinity"
            most = max(most, here)
    return "" if most <= limit else f"values up to {most:.3g}; more than {limit:.3g} cannot be combined"
