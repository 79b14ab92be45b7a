"""What training costs, counted where it is done: optimiser steps, and examples that went through them.

A scope counts what is trained within it and not within a scope inside of it, so that what clients spend and what the
server spends are told apart though both may be in one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Spent:
    """What training cost.

    Attributes:
        steps: Optimiser steps.
        examples: Examples that went through them, each as often as it did.
    """

    steps: int = 0
    examples: int = 0

    def add(self, steps: int, examples: int) -> None:
        """Count more."""
        self.steps += steps
        self.examples += examples


_scopes: list[Spent] = []


@contextmanager
def counted() -> Iterator[Spent]:
    """Count what is trained within."""
    depth, spent = len(_scopes), Spent()
    _scopes.append(spent)
    try:
        yield spent
    finally:
        del _scopes[depth:]


def count(steps: int, examples: int) -> None:
    """Count a local run that was done."""
    if _scopes:
        _scopes[-1].add(steps, examples)
