"""A strategy whose server trains: it says so in each round."""

from __future__ import annotations

from umbel.core.folds import Folded
from umbel.core.spent import count
from umbel.strategies.base import ServerContext
from umbel.strategies.fedavg import FedAvg, State


class Counting(FedAvg):
    """FedAvg, whose server counts 3 steps of 40 examples in a round."""

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        count(3, 40)
        return super().update(state, folded, server)
