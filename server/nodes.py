"""Which node holds which clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

from core.messages import MessageError, decode_json, encode_json
from server.errors import RunStoppedError

_FIRST_WAIT, _LONGEST_WAIT = 0.005, 0.25


def replies(
    grid: Grid, messages: list[Message], deadline: float, on_wait: Callable[[], None] | None = None
) -> Iterator[Message]:
    """Send messages and yield the replies as they come, until all are there or the deadline has passed.

    Flower's own `send_and_receive` looks every three seconds and returns everything at once; this looks soon and
    then less often, so that a reply is folded while others are still under way. A grid of this project, which
    knows when something is there, streams without looking (`stream`).

    Args:
        grid: The grid.
        messages: What to send.
        deadline: `time.monotonic()` after which nothing more is waited for.
        on_wait: Called while waiting; may raise to stop.
    """
    stream = getattr(grid, "stream", None)
    if stream is not None:
        yield from stream(messages, deadline)
        return
    waiting = {identifier for identifier in grid.push_messages(messages) if identifier}
    wait = _FIRST_WAIT
    while waiting and time.monotonic() < deadline:
        found = list(grid.pull_messages(sorted(waiting)))
        for message in found:
            waiting.discard(message.metadata.reply_to_message_id)
            yield message
        wait = _FIRST_WAIT if found else min(wait * 1.5, _LONGEST_WAIT)
        if waiting:
            if on_wait is not None:
                on_wait()
            time.sleep(wait)


class Directory:
    """The nodes of the federation and the clients that each holds.

    Args:
        grid: The grid.
        config_hash: Hash of the server's experiment; a node that composed another is refused.
        num_clients: Clients in total.
        timeout_seconds: How long to wait for nodes that together hold every client.
    """

    def __init__(self, grid: Grid, config_hash: str, num_clients: int, timeout_seconds: float) -> None:
        self._grid = grid
        self._config_hash = config_hash
        self._num_clients = num_clients
        self._timeout = timeout_seconds
        self._held: dict[int, frozenset[int]] = {}
        self._refused: dict[int, str] = {}

    def wait(self, on_wait: Callable[[], None] | None = None) -> None:
        """Wait until the nodes that are there hold every client.

        Raises:
            RunStoppedError: They do not, within the timeout; the message says which clients are missing.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            self.refresh(on_wait)
            missing = set(range(self._num_clients)).difference(*self._held.values())
            if not missing:
                return
            if time.monotonic() >= deadline:
                raise RunStoppedError(self._too_few(missing))
            if on_wait is not None:
                on_wait()
            time.sleep(0.2)

    def _too_few(self, missing: set[int]) -> str:
        text = (
            f"Waited {self._timeout:g} s: {len(self._held)} nodes are connected, and nobody holds the clients "
            f"{_ranges(missing)} of {self._num_clients}. Start more nodes (umbel federate up --nodes N), or raise "
            "engine.node_timeout_seconds."
        )
        for node, reason in self._refused.items():
            text += f"\nNode {node} was refused: {reason}"
        return text

    def refresh(self, on_wait: Callable[[], None] | None = None) -> None:
        """Greet nodes that are new and forget those that left."""
        present = set(self._grid.get_node_ids())
        self._held = {node: held for node, held in self._held.items() if node in present}
        new = sorted(present - self._held.keys() - self._refused.keys())
        if not new:
            return
        greetings = [Message(encode_json({"hello": self._config_hash}), node, "query") for node in new]
        deadline = time.monotonic() + self._timeout
        for reply in replies(self._grid, greetings, deadline, on_wait):
            self._welcome(reply)

    def _welcome(self, reply: Message) -> None:
        node = reply.metadata.src_node_id
        if reply.has_error():
            self._refused[node] = str(reply.error.reason)
            return
        try:
            answer = decode_json(reply.content)
            theirs, held = str(answer["config_hash"]), frozenset(int(c) for c in answer["partitions"])
        except (MessageError, KeyError, TypeError, ValueError) as error:
            self._refused[node] = f"its greeting cannot be read: {error}"
            return
        if theirs != self._config_hash:
            self._refused[node] = (
                f"it composed the experiment {theirs}, the server {self._config_hash}: different versions of umbel "
                "or of the experiment."
            )
            return
        self._held[node] = held

    def split(self, cohort: Iterable[int]) -> tuple[dict[int, frozenset[int]], list[int]]:
        """Return the clients of a cohort by the node that runs them, and those that nobody holds.

        A client that several nodes hold goes to the one with the lowest id.
        """
        remaining = set(cohort)
        assigned: dict[int, frozenset[int]] = {}
        for node in sorted(self._held):
            mine = frozenset(remaining & self._held[node])
            if mine:
                assigned[node] = mine
                remaining -= mine
        return assigned, sorted(remaining)


def _ranges(clients: Iterable[int]) -> str:
    """Write client numbers as ranges: 0-3, 7."""
    text: list[str] = []
    start = last = None
    for client in [*sorted(clients), None]:
        if last is not None and client is not None and client == last + 1:
            last = client
            continue
        if start is not None:
            text.append(str(start) if start == last else f"{start}-{last}")
        start = last = client
    return ", ".join(text)
