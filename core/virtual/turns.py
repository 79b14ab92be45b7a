"""Who of those that were selected is in time: the first to finish, or all that meet a deadline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """What comes of a phase in virtual time.

    Attributes:
        clients: Whose replies the server takes, in ascending order.
        late: Those whose replies would come too late, likewise.
        ends: The virtual second at which the phase ends.
        dropped_out: Those of the clients that drop out, whatever their time.
    """

    clients: tuple[int, ...]
    late: tuple[int, ...]
    ends: float
    dropped_out: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Places:
    """How many replies a server takes of each group of clients.

    Attributes:
        groups: The group of each client.
        quotas: How many it takes of each group.
    """

    groups: Sequence[int]
    quotas: Sequence[int]

    def first(self, order: Sequence[int], least: int) -> list[int]:
        """Return the first of each group, in their order; of any, where so few are left of a group.

        Args:
            order: Clients as they finish.
            least: How many it takes whatever their groups, while there are as many.
        """
        left = list(self.quotas)
        first = []
        for client in order:
            if left[self.groups[client]] > 0:
                left[self.groups[client]] -= 1
                first.append(client)
        chosen = set(first)
        others = [client for client in order if client not in chosen]
        chosen.update(others[: max(least - len(first), 0)])
        return [client for client in order if client in chosen]


def turn(
    ends: Mapping[int, float],
    begins: float,
    take: int,
    least: int = 1,
    deadline: float = math.inf,
    places: Places | None = None,
) -> Turn:
    """Return who is in time.

    The phase ends with the last reply that is taken; where fewer than `take` meet the deadline, not before it. Of two
    clients that end at once the lower number comes first.

    Args:
        ends: The virtual second at which each client that was asked would have its reply back.
        begins: The second at which the phase begins.
        take: How many replies the server takes at most.
        least: How many it waits for whatever the deadline says.
        deadline: The second until which it waits.
        places: How many of them of each group, `take` in all; None takes the first of all.
    """
    order = sorted(ends, key=lambda client: (ends[client], client))
    first = order[:take] if places is None else places.first(order, least)
    taken = [client for rank, client in enumerate(first) if rank < least or ends[client] <= deadline]
    last = max((ends[client] for client in taken), default=begins)
    waits = len(taken) < len(first)
    return Turn(tuple(sorted(taken)), tuple(sorted(ends.keys() - set(taken))), max(last, deadline) if waits else last)
