"""An answer as a process of this machine hands it to another: its tensors in one piece of memory, mapped by both.

A large one lies in a file on disk, from which the other adds it up piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from umbel.core.flat import Outline, flattened, mapped
from umbel.core.stored import File, Stored
from umbel.core.tree import Tree
from umbel.core.wire.work import Outcome

Lay = Callable[[Mapping[str, Tree], Outline, Callable[[str], None]], Any]


@dataclass(frozen=True)
class Packed:
    """An answer and its tensors.

    Attributes:
        outcome: The answer, with names of trees and no tensors.
        outline: What lies where; a tree is called by the number of its accumulator, or of its reply, and its name.
        memory: [B] uint8; or a `File` that is this answer's own.
    """

    outcome: Outcome
    outline: Outline
    memory: Any

    @classmethod
    def of(cls, outcome: Outcome, lay: Lay | None = None) -> Packed:
        """Pack an answer.

        Args:
            outcome: The answer.
            lay: Lays trees down and returns the memory, and tells what a user should know, which becomes a notice of
                the answer; None takes new memory.
        """
        trees: dict[str, Tree] = {}
        nodes, singles = [], {}
        for number, (level, index, partial) in enumerate(outcome.nodes):
            trees |= {f"node{number}.{name}": tree for name, tree in partial.trees.items()}
            nodes.append((level, index, replace(partial, trees={name: {} for name in partial.trees})))
        for client, reply in outcome.singles.items():
            trees |= {f"single{client}.{name}": tree for name, tree in reply.trees.items()}
            singles[client] = replace(reply, trees={name: {} for name in reply.trees})
        told = replace(outcome, nodes=nodes, singles=singles, notices=list(outcome.notices))
        if lay is None:
            return cls(told, *flattened(trees))
        outline = Outline.of(trees)
        return cls(told, outline, lay(trees, outline, told.notices.append))

    def unpacked(self) -> Outcome:
        """Return the answer, its tensors in memory of their own: accumulators are added to in place; or in its file."""
        is_file = isinstance(self.memory, File)
        trees = {} if is_file else self.outline.read(mapped(self.memory).clone())

        def of(prefix: str, names: Mapping[str, Tree]) -> Any:
            if not is_file:
                return {name: trees[f"{prefix}.{name}"] for name in names}
            places = {name: self.outline.trees[f"{prefix}.{name}"] for name in names}
            return Stored(self.memory, Outline(places, self.outline.num_bytes)).trees()

        nodes = [
            (level, index, replace(partial, trees=of(f"node{number}", partial.trees)))
            for number, (level, index, partial) in enumerate(self.outcome.nodes)
        ]
        singles = {
            client: replace(reply, trees=of(f"single{client}", reply.trees))
            for client, reply in self.outcome.singles.items()
        }
        return replace(self.outcome, nodes=nodes, singles=singles)
