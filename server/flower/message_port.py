"""A port over Flower's messages: work, questions and answers are encoded, and what comes back may come from anybody."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence

from flwr.app import Message

from umbel.core.wire.heads import MessageError
from umbel.core.wire.limits import Limits, Size
from umbel.core.wire.messages import (
    decode_json,
    decode_outcome,
    encode_json,
    encode_payload,
    encode_work,
    framing_bytes,
)
from umbel.server.port import Answer, OnWait, Port, Question, Said, Task
from umbel.strategies.base import EVALUATE


class MessagePort(Port):
    """A port that sends messages and receives them."""

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

    def greetings(self, messages: Collection[Message], deadline: float, most_bytes: int) -> list[Message]:
        """Send greetings, and return the answers that are there, to these and to earlier ones.

        Args:
            messages: What to send.
            deadline: `time.monotonic()` after which nobody waits for an answer.
            most_bytes: The most that an answer may say.
        """
        return list(self.stream(messages, deadline))

    def limit(self, most_bytes: Mapping[int, int]) -> None:
        """Say how many bytes the next answer of each node may have; a port that fetches answers fetches no more.

        Args:
            most_bytes: By node.
        """

    def exchange(self, tasks: Sequence[Task], deadline: float, on_wait: OnWait | None = None) -> Iterator[Answer]:
        limits = {task.node: task.limits for task in tasks}
        self.limit({node: each.message_bytes for node, each in limits.items()})
        for message in self.stream(messages_of(tasks), deadline, on_wait):
            node = message.metadata.src_node_id
            yield read_answer(message, limits.get(node, Limits.of_answer(Size(), 0)))

    def ask(self, questions: Sequence[Question], deadline: float, on_wait: OnWait | None = None) -> Iterator[Said]:
        for message in self.stream([_message(each) for each in questions], deadline, on_wait):
            yield read_said(message)

    def greet(self, questions: Sequence[Question], deadline: float, most_bytes: int) -> list[Said]:
        messages = self.greetings([_message(each) for each in questions], deadline, most_bytes)
        return [read_said(message, most_bytes) for message in messages]


def _message(question: Question) -> Message:
    return Message(encode_json(dict(question.content)), question.node, question.kind)


def read_said(message: Message, most_bytes: int | None = None) -> Said:
    """Return what a node's message says to a question; whatever is wrong with it is said there.

    Args:
        message: It may come from anybody.
        most_bytes: The most that is read of it; None takes what a greeting may have at all.
    """
    node = message.metadata.src_node_id
    if message.has_error():
        return Said(node, None, str(message.error.reason) or "it failed, and says not why")
    try:
        content = decode_json(message.content) if most_bytes is None else decode_json(message.content, most_bytes)
    except (ValueError, RecursionError) as error:  # whatever it sent
        return Said(node, None, flaw=str(error))
    return Said(node, content)


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
