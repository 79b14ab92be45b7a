"""The one place that touches what Flower does not promise to keep.

Flower sets a process's identity before it runs an app, and a Message cannot be made without one. Engines of this
project run the apps in processes of their own, and so set it themselves.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

NODE = 1  # the only node of an engine that runs on one machine
CLIENT_FAILED = 3  # Flower's code for a ClientApp that raised


def identify() -> None:
    """Give this process an identity, unless Flower has given it one."""
    unset: int | None = TaskIdentity._task_id
    if unset is None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, NODE


def make_context(run_config: dict[str, Any], node_config: dict[str, Any]) -> Context:
    """Make the context that an app runs in."""
    return Context(1, NODE, node_config, RecordDict(), run_config)


def error_reply(message: Message, error: BaseException) -> Message:
    """Answer a message with an error."""
    return Message(Error(CLIENT_FAILED, f"{type(error).__name__}: {error}"), reply_to=message)


class LocalGrid(Grid):
    """A grid with one node that holds every client, in this process or in workers of it."""

    def __init__(self) -> None:
        identify()

    @abstractmethod
    def stream(self, messages: Iterable[Message], deadline: float) -> Iterator[Message]:
        """Yield replies as they come.

        Args:
            messages: What to send.
            deadline: `time.monotonic()` after which nothing more is waited for.
        """

    def get_node_ids(self) -> Iterable[int]:
        """Return the one node."""
        return [NODE]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return all replies at once."""
        return list(self.stream(messages, float("inf") if timeout is None else time.monotonic() + timeout))

    def set_run(self, run: Any) -> None:
        """Do nothing: there is no SuperLink whose run this could be."""

    @property
    def run(self) -> Any:
        """There is no run of a SuperLink."""
        raise AttributeError("A local grid has no run.")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Refuse: use `Message` itself."""
        raise TypeError("Make a Message with its constructor.")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse: nothing waits here."""
        raise TypeError("A local grid streams; use `stream` or `send_and_receive`.")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse: nothing waits here."""
        raise TypeError("A local grid streams; use `stream` or `send_and_receive`.")
