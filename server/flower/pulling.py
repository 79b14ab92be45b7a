"""A node's answer, fetched from the SuperLink: no more of it than an answer may have, and trusted in nothing.

Flower's grid fetches whatever a node sent, puts it together, and raises what comes up; there, an answer that is no
message, or is one of terabytes by naming one piece again and again, would be the end of the run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from itertools import islice

import httpx
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents, pull_objects
from flwr.superlink.grid.http_grid import HttpGrid

from umbel.core.records import reason
from umbel.core.wire.text import read_json

# Of the connection to the SuperLink, which is this side's matter; anything else is what a node sent.
_CONNECTION = (OSError, httpx.TransportError)


# What an answer is made of.
_KINDS = frozenset(kind.__qualname__ for kind in (Message, RecordDict, ConfigRecord, ArrayRecord, Array, ArrayChunk))
_FEWEST_OBJECTS, _PIECE_BYTES = 64, 1 << 20  # Flower's pieces are larger


class UnreadableError(ValueError):
    """What a node sent is no answer to what it was asked."""


def pull(grid: Grid, name: str, most_bytes: int) -> Message | None:
    """Return the answer to a message, or None while there is none.

    Args:
        grid: The grid.
        name: The message's id.
        most_bytes: The most that the answer may have.

    Raises:
        UnreadableError: What came is no answer to this message, or is more.
        OSError: The SuperLink is not there.
        httpx.TransportError: Likewise.
    """
    try:
        answers = list(_pieces(grid, name, most_bytes) if isinstance(grid, HttpGrid) else grid.pull_messages([name]))
    except (*_CONNECTION, UnreadableError):
        raise
    except Exception as error:  # whatever Flower makes of what a node sent
        raise UnreadableError(f"its answer cannot be read: {reason(error)}") from error
    if not answers:
        return None
    (answer, *more) = answers
    if more or answer.metadata.reply_to_message_id != name:
        raise UnreadableError("it answers another message than the one that it was sent")
    return answer


def refusal(asked: Message, text: str) -> Message:
    """Return an answer that says why there is none.

    Args:
        asked: What the node was sent.
        text: Why.
    """
    return Message(Error(ErrorCode.UNKNOWN, text), reply_to=asked)


def _pieces(grid: HttpGrid, name: str, most_bytes: int) -> Iterable[Message]:
    """Do what Flower's grid does for one message, within limits."""
    client, run_id = grid._runtime_client, grid.run.run_id
    response = client.PullMessages(PullAppMessagesRequest(message_ids=[name]))
    budget = _Budget(most_bytes, make_pull_object_fn_protobuf(client.PullObject, grid.node, run_id))
    for told, tree in zip(response.messages_list, response.message_object_trees, strict=True):
        try:
            names = [each.object_id for each in islice(iterate_object_tree(tree), _most_objects(most_bytes) + 1)]
            if len(names) > _most_objects(most_bytes):
                raise UnreadableError(f"its answer has more than {_most_objects(most_bytes)} objects")
            objects = pull_objects(names, budget.fetch)
        except ObjectPullError as error:
            raise UnreadableError(f"not all of its answer has come: {error}") from error
        finally:
            client.ConfirmMessageReceived(  # whatever it was, the SuperLink need not keep it
                ConfirmMessageReceivedRequest(node=grid.node, run_id=run_id, message_object_id=told.metadata.message_id)
            )
        yield inflated(told.metadata.message_id, objects, most_bytes)


class _Budget:
    """Fetches objects, from several threads, as long as there is room for them.

    Args:
        most_bytes: How many bytes there may be.
        fetch: Returns an object by its id.
    """

    def __init__(self, most_bytes: int, fetch: Callable[[str], bytes]) -> None:
        self._most, self._left, self._lock, self._fetch = most_bytes, most_bytes, threading.Lock(), fetch

    def fetch(self, name: str) -> bytes:
        """Return an object."""
        content = self._fetch(name)
        with self._lock:
            self._left -= len(content)
            if self._left < 0:
                raise UnreadableError(_too_much(self._most))
        return content


def inflated(name: str, objects: dict[str, bytes], most_bytes: int) -> Message:
    """Return the message that Flower's objects make.

    Args:
        name: The message's own object.
        objects: Their content by id; used up.
        most_bytes: The most that its arrays may have together: an object names its pieces, each as often as it likes.

    Raises:
        UnreadableError: They make something else, or more.
    """
    num_bytes = 0
    for content in objects.values():
        kind, pieces, _ = get_object_head_values_from_object_content(content)
        if kind not in _KINDS:
            raise UnreadableError(f"its answer has an object of the kind {kind!r}")
        if kind == Array.__qualname__:
            described = read_json(get_object_body(content, Array).decode(), most_bytes)
            num_bytes += sum(len(objects[pieces[each]]) for each in described["arraychunk_ids"])
            if num_bytes > most_bytes:
                raise UnreadableError(_too_much(most_bytes))
    message = inflate_object_from_contents(name, objects)
    if not isinstance(message, Message):
        raise UnreadableError(f"its answer is a {type(message).__name__}, and no message")
    message.metadata.__dict__["_message_id"] = name
    return message


def _most_objects(most_bytes: int) -> int:
    return _FEWEST_OBJECTS + most_bytes // _PIECE_BYTES


def _too_much(most_bytes: int) -> str:
    return f"its answer has more than the {most_bytes:,} bytes that it can have"
