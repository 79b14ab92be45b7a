"""Messages to nodes and their replies, as they come."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Collection, Iterator, Mapping

from flwr.app import Error, Message
from flwr.serverapp import Grid

from umbel.core.wire.limits import Limits
from umbel.server.flower.internals import node_left
from umbel.server.flower.message_port import MessagePort
from umbel.server.flower.pulling import UnreadableError, pull, refusal
from umbel.server.port import OnWait

_FIRST_WAIT, _LONGEST_WAIT = 0.005, 1.0  # a reply that is there is late by a second at most
_SHARE = 0.02  # looks are this part of the time waited so far apart
_LAST_LOOK = 0.5  # before the deadline everybody is looked at, so that what has come by then counts
_APART = 0.002  # first looks after many messages are so far apart: a connection pool is small
_MANY = 8  # nodes, from which on each is looked at less often
_GRACE_SECONDS = 5.0  # a message outlives its deadline, so that this side is the one that gives up
_PRESENCE_SECONDS = 2.0  # how often to look which nodes are still there
_MOST_BYTES = 1 << 25  # of an answer of which nothing else is said
_TURN_SECONDS = 0.25  # how often the caller is asked whether to go on


class Inbox:
    """Messages on their way to nodes behind a SuperLink, and what came back.

    A thread fetches each reply. Flower's grid takes a reply whole and waits for what of it is still on its way up:
    a slow node would hold up the replies of all others, and a node that dies with its reply half sent would hold
    them up for three minutes, until the SuperLink gives the reply up. Here only a thread waits; a node that is no
    longer present is given up (`give_up`) whatever its thread does.

    What a node sent that cannot be read, or is in another's name, is an answer with an error: that node's own failure.
    What goes wrong between here and the SuperLink is raised.

    Args:
        grid: The grid.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._waiting: dict[str, Message] = {}
        self._came: queue.SimpleQueue[tuple[str, Message | Exception]] = queue.SimpleQueue()

    @property
    def waiting(self) -> list[int]:
        """The nodes that have not answered."""
        return [message.metadata.dst_node_id for message in self._waiting.values()]

    def send(self, messages: Collection[Message], deadline: float, most_bytes: Mapping[int, int] | None = None) -> None:
        """Send messages.

        A message says how long its answer is of use, so that a node can give up what nobody waits for any more.

        Args:
            messages: What to send.
            deadline: `time.monotonic()` after which nothing more is waited for.
            most_bytes: How many bytes the answer of each node may have.
        """
        patience = max(deadline - time.monotonic(), 0.0) + _GRACE_SECONDS
        for message in messages:
            message.metadata.ttl = min(message.metadata.ttl, patience)
        names = self._grid.push_messages(messages)
        sent = {name: message for name, message in zip(names, messages, strict=True) if name}  # "": not taken
        self._waiting |= sent
        for number, (name, message) in enumerate(sent.items()):
            most = (most_bytes or {}).get(message.metadata.dst_node_id, _MOST_BYTES)
            threading.Thread(target=self._fetch, args=(name, number * _APART, deadline, most), daemon=True).start()

    def _fetch(self, name: str, wait: float, deadline: float, most_bytes: int) -> None:
        began = time.monotonic()
        time.sleep(wait)
        while name in self._waiting:
            asked = time.monotonic()
            try:
                if (reply := pull(self._grid, name, most_bytes)) is not None:
                    self._came.put((name, reply))
                    return
            except Exception as error:  # noqa: BLE001 - the caller's thread shall see it
                self._came.put((name, error))
                return
            now = time.monotonic()
            wait = max(_SHARE * (now - began), _FIRST_WAIT) * max(1.0, len(self._waiting) / _MANY)
            wait = max(wait, (now - asked) * len(self._waiting))  # a SuperLink that is slow is asked less often
            last = deadline - _LAST_LOOK - now
            time.sleep(min(wait, _LONGEST_WAIT, last) if last > 0 else min(wait, _LONGEST_WAIT))

    def take(self, seconds: float = 0.0) -> list[Message]:
        """Return the replies that are there.

        For a node that is gone the SuperLink answers itself, in its own name: the reply is put into the node's.

        Args:
            seconds: How long to wait for the first one.

        Raises:
            Exception: Whatever the grid raised, but for what a node sent.
        """
        replies: list[Message] = []
        while self._waiting or not self._came.empty():
            try:
                name, reply = self._came.get(timeout=seconds) if seconds > 0 else self._came.get_nowait()
            except queue.Empty:
                break
            seconds = 0.0
            asked = self._waiting.pop(name, None)
            if asked is None:
                continue  # given up in the meantime
            if isinstance(reply, UnreadableError):
                reply = refusal(asked, str(reply))
            elif isinstance(reply, Exception):
                raise reply
            elif not reply.has_error() and reply.metadata.src_node_id != asked.metadata.dst_node_id:
                reply = refusal(asked, "its answer is in another node's name")
            if reply.has_error() and reply.metadata.src_node_id != asked.metadata.dst_node_id:
                reply = Message(Error(reply.error.code, reply.error.reason), reply_to=asked)
            replies.append(reply)
        return replies

    def give_up(self, present: Collection[int]) -> list[Message]:
        """Return the SuperLink's answer for nodes that are no longer present, and stop waiting for them."""
        gone = {name: m for name, m in self._waiting.items() if m.metadata.dst_node_id not in present}
        for name in gone:
            del self._waiting[name]
        return [Message(node_left(), reply_to=message) for message in gone.values()]

    def close(self) -> None:
        """Stop waiting."""
        self._waiting.clear()


class FlowerPort(MessagePort):
    """A port over Flower's grid.

    Flower's own `send_and_receive` looks every three seconds and returns everything at once; this looks soon and then
    less often, so that a reply is folded while others are still under way.

    Args:
        grid: The grid that Flower hands to the ServerApp.
    """

    num_tries = 3  # a node's process may have been killed while it answered
    strangers = True

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._greetings = Inbox(grid)
        self._most_bytes: Mapping[int, int] = {}

    def nodes(self) -> set[int]:
        """Return the nodes that the SuperLink counts as present; greetings of others are no longer waited for."""
        present = set(self._grid.get_node_ids())
        self._greetings.give_up(present)
        return present

    def limit(self, most_bytes: Mapping[int, int]) -> None:
        """Fetch no more of the next answers than this."""
        self._most_bytes = dict(most_bytes)

    def stream(
        self, messages: Collection[Message], deadline: float, on_wait: OnWait | None = None
    ) -> Iterator[Message]:
        """Send messages and yield the replies as they come; a node that leaves is answered for."""
        inbox = Inbox(self._grid)
        try:
            inbox.send(messages, deadline, self._most_bytes)
            looked = time.monotonic()
            while inbox.waiting and (now := time.monotonic()) < deadline:
                yield from inbox.take(min(_TURN_SECONDS, deadline - now))
                if now - looked > _PRESENCE_SECONDS:
                    yield from inbox.give_up(self.nodes())
                    looked = now
                if inbox.waiting and on_wait is not None:
                    on_wait()
        finally:
            inbox.close()

    def greetings(self, messages: Collection[Message], deadline: float, most_bytes: int) -> list[Message]:
        """Send greetings and return the answers that have come."""
        if messages:
            most = Limits(head_bytes=most_bytes, header_bytes=0, value_bytes=0).message_bytes
            self._greetings.send(messages, deadline, {each.metadata.dst_node_id: most for each in messages})
        return self._greetings.take()

    def silent(self) -> set[int]:
        """Return the nodes that have not answered a greeting yet."""
        return set(self._greetings.waiting)
