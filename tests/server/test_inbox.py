"""Answers that come through a SuperLink: what a node sent that is none is its own failure, and the run goes on."""

from __future__ import annotations

import time

import httpx
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from umbel.core.records import Reply
from umbel.core.wire.messages import decode_json, encode_json, encode_outcome
from umbel.core.wire.work import Outcome
from umbel.server.flower.inbox import FlowerPort
from umbel.server.flower.internals import identify
from umbel.server.flower.pulling import UnreadableError, inflated

GOOD, BAD = 7, 8


class Grid:
    """A SuperLink's grid to two nodes; `answer` makes what comes back from the second for a message."""

    def __init__(self, answer):
        identify()
        self._answer, self._sent = answer, {}

    def get_node_ids(self):
        return [GOOD, BAD]

    def push_messages(self, messages):
        for message in messages:
            name = f"m{message.metadata.dst_node_id}"
            message.metadata.__dict__["_message_id"] = name
            self._sent[name] = message
        return list(self._sent)

    def pull_messages(self, names):
        asked = self._sent[names[0]]
        honest = Message(encode_json({"from": asked.metadata.dst_node_id}), reply_to=asked)
        return [honest] if asked.metadata.dst_node_id == GOOD else self._answer(asked, honest)


def answers(answer):
    """What comes of two nodes, by node."""
    grid = Grid(answer)
    messages = [Message(encode_json({}), node, "train") for node in (GOOD, BAD)]
    replies = list(FlowerPort(grid).stream(messages, time.monotonic() + 30))
    return {reply.metadata.src_node_id: reply for reply in replies}


def raising(error):
    def answer(asked, honest):
        raise error

    return answer


def changed(**metadata):
    def answer(asked, honest):
        honest.metadata.__dict__.update({f"_{name}": value for name, value in metadata.items()})
        return [honest]

    return answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (raising(ValueError("not enough\x1b[2J values")), "cannot be read: ValueError: not enough\\x1b[2J values"),
        (raising(KeyError("X")), "cannot be read: KeyError: 'X'"),
        (raising(RecursionError("too deep")), "cannot be read: RecursionError"),
        (raising(MemoryError()), "cannot be read: MemoryError"),
        (changed(src_node_id=GOOD), "in another node's name"),
        (changed(src_node_id=99), "in another node's name"),
        (changed(reply_to_message_id="m7"), "answers another message"),
        (lambda asked, honest: [honest, honest], "answers another message"),
    ],
    ids=range(8),
)
def test_what_is_no_answer_is_that_nodes_failure(answer, reason):
    by_node = answers(answer)
    assert by_node.keys() == {GOOD, BAD}
    assert decode_json(by_node[GOOD].content) == {"from": GOOD}
    assert by_node[BAD].has_error() and reason in by_node[BAD].error.reason


@pytest.mark.parametrize("error", [ConnectionError("gone"), httpx.ConnectError("gone"), TimeoutError("gone")])
def test_the_connection_to_the_superlink_is_no_nodes_failure(error):
    with pytest.raises(type(error), match="gone"):
        answers(raising(error))


def objects_of(message):
    return {name: each.deflate() for name, each in get_all_nested_objects(message).items()}


@pytest.fixture
def reply():
    """An answer with a megabyte of tensors."""
    identify()
    asked = Message(encode_json({}), BAD, "train")
    return Message(encode_outcome(Outcome(singles={1: Reply({"d": {"w": torch.ones(1 << 18)}})})), reply_to=asked)


def test_a_message_is_put_together_as_it_was(reply):
    again = inflated(reply.object_id, objects_of(reply), 2 << 20)
    assert again.content == reply.content and again.metadata.message_id == reply.object_id


def test_a_piece_that_is_named_again_and_again_is_not_put_together(reply):
    """A hundred thousand times a megabyte, in half a megabyte of numbers."""
    objects = objects_of(reply)
    (name,) = [name for name, content in objects.items() if content.startswith(b"Array ")]
    head, _, body = objects[name].partition(b"\0")
    repeated = body.replace(b"[0]", str([0] * 100_000).encode())
    assert len(repeated) > len(body)
    objects[name] = head + b"\0" + repeated
    with pytest.raises(UnreadableError, match="more than the 2,097,152 bytes that it can have"):
        inflated(reply.object_id, objects, 2 << 20)


def test_what_is_no_message_is_none(reply):
    with pytest.raises(UnreadableError, match="is a RecordDict, and no message"):
        inflated(reply.content.object_id, objects_of(reply), 2 << 20)


def test_many_arrays_of_one_piece_are_too_much_together(reply):
    """Each would be within what an answer may have, and each would be put together anew."""
    piece = ArrayChunk(b"x" * (1 << 20))
    arrays = {f"a{shape}": Array("uint8", (shape, 1), "numpy.ndarray", b"x" * (1 << 20)) for shape in range(1, 6)}
    many = Message(RecordDict({"tensors": ArrayRecord(arrays)}), reply_to=reply)
    objects = objects_of(many)
    assert sum(content == piece.deflate() for content in objects.values()) == 1
    with pytest.raises(UnreadableError, match="more than the 2,097,152 bytes that it can have"):
        inflated(many.object_id, objects, 2 << 20)


def test_an_object_of_another_kind_is_refused(reply):
    other = Message(RecordDict({"m": MetricRecord({"x": 1.0})}), reply_to=reply)
    with pytest.raises(UnreadableError, match="kind 'MetricRecord'"):
        inflated(other.object_id, objects_of(other), 2 << 20)
