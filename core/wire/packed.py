"""An answer as a process of this machine hands it to another: its tensors in one piece of memory, mapped by both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.core.flat import Outline, flattened, mapped
from umbel.core.tree import Tree
from umbel.core.wire.work import Outcome


@dataclass(frozen=True)
class Packed:
    """An answer and its tensors.

    Attributes:
        outcome: The answer, with names of trees and no tensors.
        outline: What lies where; a tree is called by the number of its accumulator, or of its reply, and its name.
        memory: [B] uint8.
    """

    outcome: Outcome
    outline: Outline
    memory: Any

    @classmethod
    def of(cls, outcome: Outcome, memory: Callable[[int], NDArray[np.uint8]] | None = None) -> Packed:
        """Pack an answer.

        Args:
            outcome: The answer.
            memory: Returns memory for so many bytes; None takes new one.
        """
        trees: dict[str, Tree] = {}
        nodes, singles = [], {}
        for number, (level, index, partial) in enumerate(outcome.nodes):
            trees |= {f"node{number}.{name}": tree for name, tree in partial.trees.items()}
            nodes.append((level, index, replace(partial, trees={name: {} for name in partial.trees})))
        for client, reply in outcome.singles.items():
            trees |= {f"single{client}.{name}": tree for name, tree in reply.trees.items()}
            singles[client] = replace(reply, trees={name: {} for name in reply.trees})
        return cls(replace(outcome, nodes=nodes, singles=singles), *flattened(trees, memory))

    def unpacked(self) -> Outcome:
        """Return the answer, its tensors in memory of their own: accumulators are added to in place."""
        trees = self.outline.read(mapped(self.memory).clone())

        def of(prefix: str, names: Mapping[str, Tree]) -> dict[str, dict[str, Any]]:
            return {name: trees[f"{prefix}.{name}"] for name in names}

        nodes = [
            (level, index, replace(partial, trees=of(f"node{number}", partial.trees)))
            for number, (level, index, partial) in enumerate(self.outcome.nodes)
        ]
        singles = {
            client: replace(reply, trees=of(f"single{client}", reply.trees))
            for client, reply in self.outcome.singles.items()
        }
        return replace(self.outcome, nodes=nodes, singles=singles)
