"""What the Flowers of all known versions have in common on a node: eight calls, and messages that travel in pieces.

Flower moves a message as a tree of objects, of which each side asks the other for those that it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple

from flwr.app import Message
from flwr.common.config import get_fused_config_from_fab, parse_config_args
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore import heartbeat
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.run import Run, RunNotRunningException

from umbel.client.node.connection import Address, Bundle, Connection, LostError, RunOverError, voice
from umbel.client.node.heartbeat import beating
from umbel.client.node.presence import Presence
from umbel.core.wire.identity import PrivateKey, new_key

_PULL_SECONDS = 0.02  # first wait for an object that is still on its way up; Flower's is a second


class Calls(NamedTuple):
    """The calls of the Fleet API, in the order in which Flower's connections yield them.

    What says that the node comes, is there and goes, happens around and beside them.
    """

    node_id: int
    receive: Callable[[], tuple[Message, ObjectTree] | None]
    send: Callable[[Message, ObjectTree, float], tuple[set[str], str]]
    get_run: Callable[[int], Run]
    get_fab: Callable[[str, int], Fab]
    pull_object: Callable[[int, str], bytes]
    push_object: Callable[[int, str, str, bytes], None]
    confirm: Callable[[int, str], None]


class FlowerConnection(Connection):
    """A connection over Flower's calls.

    Args:
        calls: The calls.
    """

    def __init__(self, calls: Calls) -> None:
        self.node_id = calls.node_id
        self._calls = calls

    def receive(self) -> Message | None:
        """Return the next message, pulled whole, or None."""
        with _translated():
            received = self._calls.receive()
            if received is None:
                return None
            message, tree = received
            run_id, message_id = message.metadata.run_id, message.metadata.message_id
            contents = pull_objects(
                [entry.object_id for entry in iterate_object_tree(tree)],
                pull_object_fn=lambda name: self._calls.pull_object(run_id, name),
                initial_backoff=_PULL_SECONDS,
            )
            self._calls.confirm(run_id, message_id)
            whole = inflate_object_from_contents(tree.object_id, contents)
        assert isinstance(whole, Message)
        whole.metadata.__dict__["_message_id"] = message_id
        return whole

    def send(self, reply: Message, seconds: float) -> None:
        """Send a reply, and of its pieces those that the SuperLink lacks."""
        run_id = reply.metadata.run_id
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute(), _translated():
            tree = get_object_tree(reply)
            objects = get_all_nested_objects(reply)
            wanted, session = self._calls.send(reply, tree, seconds)
            push_objects(
                objects,
                push_object_fn=lambda name, content: self._calls.push_object(run_id, session, name, content),
                object_ids_to_push=wanted,
            )

    def check_running(self, run_id: int) -> None:
        """Return when a run runs."""
        with _translated():
            self._calls.get_run(run_id)

    def bundle(self, run_id: int) -> Bundle:
        """Return what a run brings along."""
        with _translated():
            run = self._calls.get_run(run_id)
            fab = self._calls.get_fab(run.fab_hash, run_id)
        return Bundle(fab.hash_str, fab.content, dict(get_fused_config_from_fab(fab.content, run)))


@contextmanager
def _translated() -> Iterator[None]:
    """Raise what a connection raises in place of Flower's own."""
    try:
        yield
    except RunNotRunningException as error:
        raise RunOverError(str(error)) from error
    except (ObjectPullError, ObjectPushError, ObjectUnavailableError) as error:
        raise LostError(f"{type(error).__name__}: {error}") from error


@contextmanager
def connected(
    address: Address, connection: ModuleType, calls: Callable[[], AbstractContextManager[tuple[Any, ...]]]
) -> Iterator[Connection]:
    """Yield the connection that Flower's calls make, on which the node counts as present until the end.

    Args:
        address: Where to, and as whom.
        connection: The module of Flower's connection.
        calls: Opens it; yields what `Calls` names.
    """
    with Presence.of(address, _leave) if address.presence else nullcontext() as presence:
        key = address.key or _own_key(connection)
        # The same for every node of a process: Flower has it as a constant.
        for module in (connection, heartbeat):
            vars(module)["HEARTBEAT_DEFAULT_INTERVAL"] = address.heartbeat_seconds
        with calls() as opened:
            made = Calls(*opened)
            with beating(address, key, made.node_id):
                if presence is not None:
                    presence.note(made.node_id, key)
                yield FlowerConnection(made)


def _own_key(connection: ModuleType) -> PrivateKey:
    """Return a key that lasts as long as a connection, which Flower takes for the one that it makes itself."""
    key = new_key()
    vars(connection)["generate_key_pairs"] = lambda: (key, key.public_key())
    return key


def _leave(address: Address, node_id: int, for_good: bool) -> bool:
    said = voice(address)
    try:
        return said.leave(node_id, for_good)
    finally:
        said.close()


def node_config(text: str) -> dict[str, Any]:
    """Read a node's configuration, such as `partition-id=0 num-partitions=4`."""
    return dict(parse_config_args([text]))
