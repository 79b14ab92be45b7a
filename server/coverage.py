"""Who took part in a run: how many by round and phase, and which clients it lost for good.

A client takes part in a round when each phase that asked it got a good reply; who drops out by `run.dropout` is not
asked. The evaluation is counted by round, and says nothing of who takes part.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from umbel.core.clients import written

# Phase, its first and last round of these, clients that it selected, good replies: rounds that are alike are one row.
Row = tuple[str, int, int, int, int]
# Of a client: the last round that it took part in (0: none), and how many rounds asked it in vain since then.
Turn = tuple[int, int]


class RoundCoverage:
    """Counts one round.

    Args:
        round_: The round.
    """

    def __init__(self, round_: int) -> None:
        self._round = round_
        self._rows: list[Row] = []
        self._asked: set[int] = set()
        self._failed: set[int] = set()

    def count(self, phase: str, cohort: Collection[int], failures: Collection[int]) -> None:
        """Count the replies of a phase.

        Args:
            phase: Its name.
            cohort: The clients that it selected.
            failures: Those of them without a good reply.
        """
        self._rows.append((phase, self._round, self._round, len(cohort), len(cohort) - len(failures)))

    def ask(self, asked: Iterable[int], failures: Iterable[int]) -> None:
        """Note who was asked to take part in a phase, and who of these failed."""
        self._asked.update(asked)
        self._failed.update(failures)

    def rows(self, before: Sequence[Row]) -> list[Row]:
        """Return the rows of a run with those of this round; where nothing changed, the last one is longer by it."""
        rows = list(before)
        for new in self._rows:
            phase, first, _, *counts = new
            index = next((i for i in reversed(range(len(rows))) if rows[i][0] == phase), None)
            if index is not None and rows[index][2] == first - 1 and list(rows[index][3:]) == counts:
                rows[index] = (phase, rows[index][1], first, new[3], new[4])
            else:
                rows.append(new)
        return rows

    def turns(self, before: Mapping[str, Turn]) -> dict[str, Turn]:
        """Return the turns of all clients that were asked so far."""
        turns = dict(before)
        for client in self._asked:
            taken, missed = before.get(str(client), (0, 0))
            turns[str(client)] = (taken, missed + 1) if client in self._failed else (self._round, 0)
        return turns


def lost(turns: Mapping[str, Turn], num_rounds: int, unheld: Iterable[int]) -> list[int]:
    """Return the clients that a run lost for good.

    Those are the clients that no node holds at its end, and those that did not take part in its last quarter although
    two rounds or more asked them since they last did (one, where the run had no more).

    Args:
        turns: Of the clients that were asked.
        num_rounds: Rounds that the run had.
        unheld: Clients that no node holds now.
    """
    quarter = num_rounds - math.ceil(num_rounds / 4)
    enough = min(2, num_rounds)
    failing = (int(client) for client, (taken, missed) in turns.items() if missed >= enough and taken <= quarter)
    return sorted({*failing, *unheld})


def never(turns: Mapping[str, Turn]) -> list[int]:
    """Return the clients that rounds asked and that took part in none."""
    return sorted(int(client) for client, (taken, _) in turns.items() if not taken)


def summary(
    rows: Sequence[Row], turns: Mapping[str, Turn], lost_clients: Sequence[int], num_clients: int
) -> dict[str, Any]:
    """Return what a run's summary says of who took part."""
    names = ("phase", "first_round", "last_round", "selected", "answered")
    return {
        "num_clients": num_clients,
        "rounds": [dict(zip(names, row, strict=True)) for row in rows],
        "lost": list(lost_clients),
        "never": never(turns),
    }


def in_words(content: Mapping[str, Any]) -> str:
    """Say which clients a run lost for good; "" where there are none, or where its summary is that of an older umbel.

    Args:
        content: The run's summary.
    """
    coverage = content.get("coverage", {"lost": []})
    if not coverage["lost"]:
        return ""
    clients, absent = coverage["lost"], set(coverage["lost"]) & set(coverage["never"])
    text = (
        f"{'Client' if len(clients) == 1 else 'Clients'} {written(clients)} of {coverage['num_clients']} "
        f"{'was' if len(clients) == 1 else 'were'} lost for good; the model is that of the others"
    )
    return f"{text} (in no round at all: {written(absent)})." if absent else f"{text}."
