"""What the engines on this machine share: one node that holds every client."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator

from flwr.app import Message

from umbel.server.port import OnWait, Port
from umbel.simulations.engines.flower_internals import NODE, identify


class LocalPort(Port):
    """A port to one node, in this process or in workers of it."""

    def __init__(self) -> None:
        identify()

    @abstractmethod
    def stream(
        self, messages: Collection[Message], deadline: float, on_wait: OnWait | None = None
    ) -> Iterator[Message]:
        """Run each message and yield its replies."""

    def nodes(self) -> set[int]:
        """Return the one node."""
        return {NODE}

    def greet(self, messages: Collection[Message], deadline: float, most_bytes: int) -> list[Message]:
        """Return the answers at once: the node is here."""
        return list(self.stream(messages, deadline))
