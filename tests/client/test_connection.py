"""A node's connection: whole messages over Flower's calls, and its errors in words of our own."""

from __future__ import annotations

import json

import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.run import Run, RunNotRunningException

from umbel.client.node.connection import LostError, RunOverError, adapter
from umbel.client.node.flower_common import Calls, FlowerConnection, node_config
from umbel.client.node.flower_serde import from_bytes, to_bytes
from umbel.core.records import Payload
from umbel.core.wire.flower_versions import fleet
from umbel.core.wire.messages import encode_payload
from umbel.server.flower.internals import identify


def message() -> Message:
    """A message of several objects: arrays, a record of them, the whole."""
    identify()
    weights = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    made = Message(RecordDict(dict(encode_payload(Payload({"model": {"w": weights}})))), 7, "train")
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


class SuperLink:
    """One message that waits, as the calls of the Fleet API give it away; and what came back."""

    def __init__(self, waiting: Message | None = None) -> None:
        self.waiting, self.objects, self.confirmed, self.came, self.wanted = waiting, {}, [], {}, []
        if waiting is not None:
            self.objects = {name: each.deflate() for name, each in get_all_nested_objects(waiting).items()}

    def receive(self):
        waiting, self.waiting = self.waiting, None
        return None if waiting is None else (waiting, get_object_tree(waiting))

    def send(self, reply, tree, seconds):
        self.came["seconds"], self.came["wanted"] = seconds, set(self.wanted)
        return set(self.wanted), "session"

    def calls(self, **others) -> Calls:
        own = {
            "receive": self.receive,
            "send": self.send,
            "get_run": lambda run: Run.create_empty(run),
            "get_fab": lambda name, run: Fab(name, b"", {}),
            "pull_object": lambda run, name: self.objects[name],
            "push_object": lambda run, session, name, content: self.came.update({name: content}),
            "confirm": lambda run, name: self.confirmed.append((run, name)),
        }
        return Calls(node_id=7, **(own | others))


def same(left: Message, right: Message) -> bool:
    def plain(each: Message) -> dict:
        return {name: {key: a.data for key, a in record.items()} for name, record in each.content.array_records.items()}

    return plain(left) == plain(right)


def test_a_message_is_pulled_whole_and_confirmed():
    sent = message()
    link = SuperLink(sent)
    connection = FlowerConnection(link.calls())
    came = connection.receive()
    assert came is not None and same(came, sent)
    assert came.metadata.message_id == sent.metadata.message_id
    assert link.confirmed == [(sent.metadata.run_id, sent.metadata.message_id)]
    assert connection.receive() is None
    assert connection.node_id == 7


def test_of_a_reply_only_what_the_superlink_lacks_is_pushed():
    sent = message()
    reply = Message(sent.content, reply_to=sent)
    pieces = {name: each.deflate() for name, each in get_all_nested_objects(reply).items()}
    link = SuperLink()
    link.wanted = sorted(pieces)[:2]
    FlowerConnection(link.calls()).send(reply, 1.5)
    assert link.came == {"seconds": 1.5, "wanted": set(link.wanted)} | {name: pieces[name] for name in link.wanted}


def over(*_):
    raise RunNotRunningException


def broken(*_):
    raise ObjectPullError("object 1", "a piece is not there")


def test_flowers_errors_are_told_in_our_own():
    connection = FlowerConnection(SuperLink(message()).calls(get_run=over, confirm=over))
    for call in (connection.receive, lambda: connection.check_running(1), lambda: connection.bundle(1)):
        with pytest.raises(RunOverError):
            call()
    with pytest.raises(LostError, match=r"ObjectPullError: .*a piece is not there"):
        FlowerConnection(SuperLink().calls(receive=broken)).receive()


def test_a_message_is_the_same_behind_bytes():
    sent = message()
    assert same(from_bytes(to_bytes(sent)), sent)


def test_the_file_that_speaks_is_that_of_the_installed_version():
    assert adapter().__module__ == f"umbel.client.node.{'flower_139' if fleet() == 'grpc' else 'flower_http'}"


def test_a_nodes_configuration_is_read():
    read = node_config('partition-id=1 num-partitions=4 state-folder="/a b"')
    assert json.dumps(read, sort_keys=True) == '{"num-partitions": 4, "partition-id": 1, "state-folder": "/a b"}'
