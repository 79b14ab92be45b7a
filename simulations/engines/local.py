"""What the engines on this machine share: one node that holds every client."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

from umbel.server.port import OnWait, Port, Question, Said

NODE = 1


class LocalPort(Port):
    """A port to one node, in this process or in workers of it; nothing is encoded, and Flower is not needed."""

    @abstractmethod
    def say(self, question: Question) -> Said:
        """Answer a question."""

    def nodes(self) -> set[int]:
        """Return the one node."""
        return {NODE}

    def ask(self, questions: Sequence[Question], deadline: float, on_wait: OnWait | None = None) -> Iterator[Said]:
        return map(self.say, questions)

    def greet(self, questions: Sequence[Question], deadline: float, most_bytes: int) -> list[Said]:
        """Return the answers at once: the node is here."""
        return [self.say(question) for question in questions]
