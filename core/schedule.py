"""When a sequence of tasks moves on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Tasks one after the other, each for the same number of rounds; the last goes on for as long as there are any.

    Attributes:
        num_tasks: T; 1 where there is no sequence.
        rounds_per_task: Rounds of each task; 0 trains on all tasks at once.
    """

    num_tasks: int = 1
    rounds_per_task: int = 0

    @property
    def is_sequence(self) -> bool:
        """Whether there is more than one task, one after the other."""
        return self.num_tasks > 1 and self.rounds_per_task > 0

    def task(self, round_: int) -> int:
        """Return the task of a round, from 0; rounds are counted from 1. Always 0 without a sequence."""
        if not self.is_sequence:
            return 0
        return min(max(round_ - 1, 0) // self.rounds_per_task, self.num_tasks - 1)

    def ends_task(self, round_: int) -> bool:
        """Say whether a round is the last of its task (of the last task: its last planned round)."""
        return (
            self.is_sequence
            and round_ > 0
            and round_ % self.rounds_per_task == 0
            and round_ <= self.num_tasks * self.rounds_per_task
        )
