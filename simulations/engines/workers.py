"""What a phase needs of the workers that run its clients, however these are reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from umbel.core.wire.work import Outcome
from umbel.server.port import Task

LOOK_SECONDS = 1.0  # between looks at what starts workers


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds.

    Attributes:
        client: A client.
        node: What a worker may take to start, and beside its clients.
    """

    client: float
    node: float


class WorkerFailedError(RuntimeError):
    """A worker could not do what it was given; its text is the reason."""


class WorkerDiedError(RuntimeError):
    """A worker died.

    Args:
        text: Why, as far as is known.
        by_machine: Its whole machine is gone, which is no client's doing.
    """

    def __init__(self, text: str, by_machine: bool = False) -> None:
        super().__init__(text)
        self.by_machine = by_machine


class Workers(Protocol):
    """The workers that there are, and how they are reached."""

    def all(self) -> list[Any]:
        """Return them."""

    def replace(self, worker: Any) -> Any:
        """End a worker, whatever it is doing, and return another one, which may take a while to come."""

    def is_there(self, worker: Any) -> bool:
        """Say whether a worker has come.

        Raises:
            WorkerDiedError: It never will.
        """

    def look(self) -> None:
        """Raise where what starts workers has ended."""

    def lay(self, task: Task) -> Any:
        """Put a phase where all workers find it, and return the opening that says so."""

    def give(self, worker: Any, opening: Any, clients: tuple[int, ...], closes: bool) -> Any:
        """Give a worker clients to run, after all that it was given before; return what stands for it.

        Nothing may be given behind what closes before that is done: what a worker hands over lies where the next will.
        """

    def wait(self, given: Sequence[Any], seconds: float) -> Any:
        """Return one of what was given that is done; None when there is none in time, or another worker has come."""

    def take(self, given: Any) -> Outcome | None:
        """Return what came of something that is done.

        Raises:
            WorkerFailedError: The worker raised.
            WorkerDiedError: It is no more.
        """
