"""What was made of an object, kept with the object itself."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from inspect import ismethod
from typing import Generic, TypeVar
from weakref import WeakMethod

K = TypeVar("K")
V = TypeVar("V")


class Kept(Generic[K, V]):
    """Makes something of an object once; two objects that are equal are two.

    The object is kept beside what was made of it, so that nobody else can come by its identity meanwhile. What was
    asked for longest ago goes first, and the last one made stays.

    Args:
        make: Makes it; a method is held weakly, since what keeps things is kept by whose method it is.
        size: How much one takes.
        limit: How much all may take together.
    """

    def __init__(self, make: Callable[[K], V], size: Callable[[V], float] = lambda made: 1, limit: float = math.inf):
        self._make = WeakMethod(make) if ismethod(make) else lambda: make
        self._size = size
        self._limit = limit
        self._held: OrderedDict[int, tuple[K, V]] = OrderedDict()
        self._total = 0.0

    def __call__(self, source: K) -> V:
        """Return what was made of an object, making it if need be."""
        if id(source) not in self._held:
            make = self._make()
            assert make is not None, "what keeps things has outlived whose they are"
            made = make(source)
            self._held[id(source)] = (source, made)
            self._total += self._size(made)
        self._held.move_to_end(id(source))
        while self._total > self._limit and len(self._held) > 1:
            _, (_, old) = self._held.popitem(last=False)
            self._total -= self._size(old)
        return self._held[id(source)][1]

    def __len__(self) -> int:
        return len(self._held)
