"""How the server reaches nodes: what an engine has to offer, and nothing of Flower but its messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping

from flwr.app import Message

OnWait = Callable[[], None]


class Port(ABC):
    """Nodes that messages go to and replies come from.

    Class attributes:
        num_tries: Greetings that a node may fail to answer before it counts as refused.
        strangers: Whether nodes may come that this process did not start.
    """

    num_tries = 1
    strangers = False

    @abstractmethod
    def nodes(self) -> set[int]:
        """Return the nodes that are there now."""

    def limit(self, most_bytes: Mapping[int, int]) -> None:  # noqa: B027 - most ports have their answers here
        """Say how many bytes the next answer of each node may have; a port that fetches answers fetches no more.

        Args:
            most_bytes: By node.
        """

    @abstractmethod
    def stream(
        self, messages: Collection[Message], deadline: float, on_wait: OnWait | None = None
    ) -> Iterator[Message]:
        """Send messages and yield the replies as they come, until all are there or the deadline has passed.

        Args:
            messages: What to send.
            deadline: `time.monotonic()` after which nothing more is waited for.
            on_wait: Called while waiting; may raise to stop.
        """

    @abstractmethod
    def greet(self, messages: Collection[Message], deadline: float) -> list[Message]:
        """Send greetings, and return the answers that are there, to these and to earlier ones; wait for none.

        Args:
            messages: What to send.
            deadline: `time.monotonic()` after which nobody waits for an answer.
        """

    def silent(self) -> set[int]:
        """Return the nodes that have not answered a greeting yet."""
        return set()
