"""Which node holds which clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flwr.app import Message

from umbel.core.messages import MessageError, decode_json, encode_json
from umbel.server.errors import RunStoppedError
from umbel.server.port import Port

_FIRST_WAIT, _LONGEST_WAIT = 0.005, 0.25


class Directory:
    """The nodes of the federation and the clients that each holds.

    Args:
        port: How nodes are reached.
        config_hash: Hash of the server's experiment; a node that composed another is refused.
        num_clients: Clients in total.
        timeout_seconds: How long to wait for nodes that together hold every client.
    """

    def __init__(self, port: Port, config_hash: str, num_clients: int, timeout_seconds: float) -> None:
        self._port = port
        self._config_hash = config_hash
        self._num_clients = num_clients
        self._timeout = timeout_seconds
        self._held: dict[int, frozenset[int]] = {}
        self._refused: dict[int, str] = {}
        self._num_failed: dict[int, int] = {}
        self._came: dict[int, int] = {}  # 0 for nodes that were there from the beginning, then counting up
        self._num_refreshes = 0

    def wait(self, on_wait: Callable[[], None] | None = None) -> None:
        """Wait until the nodes that are there hold every client.

        Raises:
            RunStoppedError: They do not, within the timeout; the message says which clients are missing.
        """
        deadline = time.monotonic() + self._timeout
        wait = _FIRST_WAIT
        while True:
            self.refresh()
            missing = set(range(self._num_clients)).difference(*self._held.values())
            if not missing:
                return
            self._num_refreshes = 0
            if time.monotonic() >= deadline:
                raise RunStoppedError(self._too_few(missing))
            if on_wait is not None:
                on_wait()
            wait = min(wait * 1.5, _LONGEST_WAIT)
            time.sleep(wait)

    def _too_few(self, missing: set[int]) -> str:
        text = (
            f"Waited {self._timeout:g} s: {len(self._held)} nodes are connected, and nobody holds the clients "
            f"{_ranges(missing)} of {self._num_clients}. Start more nodes (umbel federate up --nodes N), or raise "
            "engine.node_timeout_seconds."
        )
        silent = sorted(self._port.silent())
        if silent:
            text += f"\nNo answer yet from {', '.join(f'node {node}' for node in silent)}: busy with another run?"
        for node, reason in self._refused.items():
            text += f"\nNode {node} was refused: {reason}"
        return text

    def refresh(self) -> None:
        """Greet nodes that are new and forget those that left.

        Nobody waits here: a node that comes in the middle of a run is of use once it has answered.
        """
        self._num_refreshes += 1
        present = self._port.nodes()
        self._held = {node: held for node, held in self._held.items() if node in present}
        new = sorted(present - self._held.keys() - self._refused.keys() - self._port.silent())
        greetings = [Message(encode_json({"hello": self._config_hash}), node, "query") for node in new]
        for reply in self._port.greet(greetings, time.monotonic() + self._timeout):
            self._welcome(reply)

    def _welcome(self, reply: Message) -> None:
        node = reply.metadata.src_node_id
        if reply.has_error():
            self._num_failed[node] = self._num_failed.get(node, 0) + 1
            if self._num_failed[node] >= self._port.num_tries:
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
        self._came[node] = self._num_refreshes

    def split(self, cohort: Iterable[int]) -> tuple[dict[int, frozenset[int]], list[int]]:
        """Return the clients of a cohort by the node that runs them, and those that nobody holds.

        A client that several nodes hold goes to the one that came last (of those that came together, the one with
        the lowest id): a node that starts again has a new id, and its old one stays for a while.
        """
        remaining = set(cohort)
        assigned: dict[int, frozenset[int]] = {}
        for node in sorted(self._held, key=lambda node: (-self._came[node], node)):
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
