"""How the server reaches nodes: what an engine has to offer, and nothing of Flower."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from umbel.core.records import Payload
from umbel.core.wire.heads import MessageError
from umbel.core.wire.limits import Limits
from umbel.core.wire.work import Outcome, Work

OnWait = Callable[[], None]


@dataclass(frozen=True)
class Task:
    """A node's share of a phase.

    Attributes:
        node: The node.
        work: Which clients it runs, and where each stands.
        payload: What these receive; the same object for all nodes.
        limits: The most that is read of the answer.
    """

    node: int
    work: Work
    payload: Payload
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Answer:
    """What came of a node's share, or of a part of it.

    Attributes:
        node: The node.
        outcome: What came of its clients; None where nothing can be read, or nothing is handed over yet.
        error: Why nothing can be read.
        framing: Bytes that it had beside its tensors' values; an answer that did not travel has what it says.
        pending: Clients that are done, and come with a later answer.
    """

    node: int
    outcome: Outcome | None
    error: str = ""
    framing: int = 0
    pending: int = 0


@dataclass(frozen=True)
class Question:
    """What a node is asked that is no part of a phase.

    Attributes:
        node: The node.
        kind: A kind of `umbel.client.process`.
        content: Plain values, as JSON has them.
    """

    node: int
    kind: str
    content: Mapping[str, Any]


@dataclass(frozen=True)
class Said:
    """What a node says to a question.

    Attributes:
        node: The node.
        content: Plain values; None where there are none.
        error: Why it did not answer.
        flaw: Why what it sent cannot be read.
    """

    node: int
    content: Mapping[str, Any] | None
    error: str = ""
    flaw: str = ""

    def read(self) -> dict[str, Any]:
        """Return the content.

        Raises:
            MessageError: It cannot be read.
        """
        if self.content is None:
            raise MessageError(self.flaw or self.error or "The answer has no content.")
        return dict(self.content)


class Port(ABC):
    """Nodes that work goes to and answers come from.

    Class attributes:
        num_tries: Greetings that a node may fail to answer before it counts as refused.
        strangers: Whether nodes may come that this process did not start.
        notices: What there is to say of how it was opened.
    """

    num_tries = 1
    strangers = False
    notices: tuple[str, ...] = ()

    @abstractmethod
    def nodes(self) -> set[int]:
        """Return the nodes that are there now."""

    @abstractmethod
    def exchange(self, tasks: Sequence[Task], deadline: float, on_wait: OnWait | None = None) -> Iterator[Answer]:
        """Give nodes their work, and yield answers as they come, until all are there or the deadline has passed.

        Args:
            tasks: One a node.
            deadline: `time.monotonic()` after which nothing more is waited for.
            on_wait: Called while waiting; may raise to stop.
        """

    @abstractmethod
    def ask(self, questions: Sequence[Question], deadline: float, on_wait: OnWait | None = None) -> Iterator[Said]:
        """Ask nodes, and yield what they say as it comes, until all have answered or the deadline has passed.

        Args:
            questions: One a node.
            deadline: `time.monotonic()` after which nothing more is waited for.
            on_wait: Called while waiting; may raise to stop.
        """

    @abstractmethod
    def greet(self, questions: Sequence[Question], deadline: float, most_bytes: int) -> list[Said]:
        """Ask, and return the answers that are there, to these and to earlier greetings; wait for none.

        Args:
            questions: One a node.
            deadline: `time.monotonic()` after which nobody waits for an answer.
            most_bytes: The most that an answer may say; a port that fetches answers fetches little more.
        """

    def silent(self) -> set[int]:
        """Return the nodes that have not answered a greeting yet."""
        return set()
