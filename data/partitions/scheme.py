"""What every partition scheme is given.

Shapes: N examples of the training pool, K clients, C classes. A scheme returns two int64 arrays of one
length: example numbers in random order, each at most once, and the client of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from umbel.core.rng import key_of, numpy_generator
from umbel.data.config import DataConfig

Ints = NDArray[np.int64]
Assignment = tuple[Ints, Ints]


@dataclass(frozen=True)
class Request:
    """One draw of a partition.

    Attributes:
        config: What was asked for.
        labels: [N].
        num_classes: C.
        domains: [N], or None.
        natural_ids: [N], or None.
        seed: The seed of the data.
        attempt: 0 for the first draw; counts up while a draw leaves a client with too few examples.
    """

    config: DataConfig
    labels: Ints
    num_classes: int
    domains: Ints | None
    natural_ids: Ints | None
    seed: int
    attempt: int

    def rng(self, purpose: str) -> np.random.Generator:
        """Return numpy's generator for one purpose of this draw; numpy has the Dirichlet that torch lacks."""
        return numpy_generator(key_of(self.seed, "partition", self.config.partition, self.attempt, purpose))

    def shuffled(self) -> Ints:
        """Return 0..N-1 in random order."""
        return self.rng("order").permutation(len(self.labels))
