"""Runs for tests to carry out at once, what remembers how they ended, and whether processes live."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from umbel import load
from umbel.server.errors import StopRequested
from umbel.simulations.compare.at_once import Course, Job
from umbel.simulations.compare.comparison import Item, Member

TINY = ("data.num_clients=2", "data.max_train=60", "model.name=linear", "evaluate.clients=0", "run.rounds=2")


def jobs(folder: Path, *names: str) -> list[Job]:
    experiment = load("digits", TINY)
    made = []
    for index, name in enumerate(names, start=1):
        path = folder / f"{name}-{index}"
        run = replace(experiment.run, results=str(folder), name=path.name)
        member = Member(Item(name, "fedavg"), index, replace(experiment, run=run), path)
        made.append(Job(member, index, len(names)))
    return made


class Ends(Course):
    """Remembers how jobs ended; what is unforeseen passes, a request to stop does not."""

    def __init__(self) -> None:
        self.errors: dict[str, Exception | None] = {}
        self.begun: list[str] = []

    def begins(self, job: Job) -> None:
        self.begun.append(job.member.item.label)

    def ended(self, job: Job, error: Exception | None) -> None:
        if isinstance(error, StopRequested):
            raise error
        self.errors[job.member.item.label] = error


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.02)
