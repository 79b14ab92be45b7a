"""What travels between server and clients: named trees of tensors and named numbers. Nothing is positional."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from umbel.core import tree as trees_
from umbel.core.tree import Tree


class BadReplyError(ValueError):
    """A client's reply that cannot be used: it is left out, counted and named, and the round goes on."""


@dataclass(frozen=True)
class Payload:
    """What every selected client of a phase receives.

    Attributes:
        trees: Named trees of tensors, such as `model` or `control`.
        numbers: Named numbers.
    """

    trees: Mapping[str, Tree] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of the tensors in bytes, without framing."""
        return sum(trees_.num_bytes(tree) for tree in self.trees.values())


@dataclass(frozen=True)
class Reply:
    """What one client answers.

    Attributes:
        trees: Named trees of tensors.
        numbers: Named numbers, averaged with the number of examples as weight.
        num_examples: Examples behind this reply, at least 1; the weight of weighted means.
    """

    trees: Mapping[str, Tree] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    num_examples: int = 1

    @property
    def num_bytes(self) -> int:
        """Size of the tensors in bytes, without framing."""
        return sum(trees_.num_bytes(tree) for tree in self.trees.values())
