"""How the server reaches nodes: what an engine has to offer, and nothing of Flower but its messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message

from umbel.core.records import Payload
from umbel.core.wire.limits import Limits, Size
from umbel.core.wire.messages import MessageError, decode_outcome, encode_payload, encode_work, framing_bytes
from umbel.core.wire.work import Outcome, Work
from umbel.strategies.base import EVALUATE

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

    def exchange(self, tasks: Sequence[Task], deadline: float, on_wait: OnWait | None = None) -> Iterator[Answer]:
        """Give nodes their work, and yield answers as they come, until all are there or the deadline has passed.

        Args:
            tasks: One a node.
            deadline: `time.monotonic()` after which nothing more is waited for.
            on_wait: Called while waiting; may raise to stop.
        """
        limits = {task.node: task.limits for task in tasks}
        self.limit({node: each.message_bytes for node, each in limits.items()})
        for message in self.stream(messages_of(tasks), deadline, on_wait):
            node = message.metadata.src_node_id
            yield read_answer(message, limits.get(node, Limits.of_answer(Size(), 0)))

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
    def greet(self, messages: Collection[Message], deadline: float, most_bytes: int) -> list[Message]:
        """Send greetings, and return the answers that are there, to these and to earlier ones; wait for none.

        Args:
            messages: What to send.
            deadline: `time.monotonic()` after which nobody waits for an answer.
            most_bytes: The most that an answer may say; a port that fetches answers fetches little more.
        """

    def silent(self) -> set[int]:
        """Return the nodes that have not answered a greeting yet."""
        return set()


def messages_of(tasks: Sequence[Task]) -> list[Message]:
    """Return tasks as Flower's messages; what they share is encoded once."""
    messages = []
    arrays = encode_payload(tasks[0].payload) if tasks else {}
    for task in tasks:
        kind = "evaluate" if task.work.phase == EVALUATE else "train"
        content = encode_work(task.work, task.payload, arrays)
        messages.append(Message(content, task.node, kind, group_id=str(task.work.round)))
    return messages


def read_answer(message: Message, limits: Limits) -> Answer:
    """Return what a node's message says; whatever is wrong with it is an answer's error.

    Args:
        message: It may come from anybody.
        limits: The most that is read of it.
    """
    node = message.metadata.src_node_id
    if message.has_error():
        return Answer(node, None, str(message.error.reason))
    if not message.has_content():
        return Answer(node, None, "The message has no content.")
    try:
        outcome = decode_outcome(message.content, limits)
    except MessageError as error:
        return Answer(node, None, str(error))
    return Answer(node, outcome, framing=framing_bytes(message.content))
