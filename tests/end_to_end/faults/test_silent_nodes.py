"""Nodes that are gone, silent or stuck behind a SuperLink: told apart, named, and waited for no longer than is said."""

from __future__ import annotations

import time

import pytest
from flwr.app import Error, Message

from tests.end_to_end.faults.helpers import until
from umbel.core.wire.messages import encode_json
from umbel.server.errors import RunStoppedError
from umbel.server.flower.inbox import FlowerPort
from umbel.server.flower.internals import identify
from umbel.server.nodes import Directory


class Polled:
    """A SuperLink's grid: pushed to and pulled from; `answer` makes what comes back for a message, or None."""

    def __init__(self, nodes, answer):
        identify()
        self.nodes, self._answer, self._sent = nodes, answer, {}

    def get_node_ids(self):
        return list(self.nodes)

    def push_messages(self, messages):
        for number, message in enumerate(messages, len(self._sent)):
            message.metadata.__dict__["_message_id"] = f"m{number}"
            self._sent[f"m{number}"] = message
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, identifiers):
        return [reply for name in identifiers if (reply := self._answer(self._sent[name])) is not None]


def greeting(message, partitions):
    return Message(encode_json({"partitions": partitions, "config_hash": "hash"}), reply_to=message)


def as_the_superlink(message):
    """What a SuperLink says, in its own name, for a node that is gone."""
    reply = Message(Error(1, "Node Unavailable"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = 1
    return reply


def test_a_node_that_is_gone_answers_at_once_and_under_its_own_name():
    grid = Polled([7, 8], lambda m: as_the_superlink(m) if m.metadata.dst_node_id == 7 else greeting(m, [0]))
    messages = [Message(encode_json({}), node, "train") for node in (7, 8)]
    replies = {reply.metadata.src_node_id: reply for reply in FlowerPort(grid).stream(messages, time.monotonic() + 60)}
    assert replies.keys() == {7, 8}
    assert replies[7].has_error() and "Unavailable" in replies[7].error.reason
    assert all(message.metadata.ttl < 70 for message in messages)  # nodes know when nobody waits any more


def test_a_silent_node_is_waited_for_until_the_deadline_and_no_longer():
    grid = Polled([7], lambda message: None)
    began = time.monotonic()
    assert not list(FlowerPort(grid).stream([Message(encode_json({}), 7, "train")], began + 0.2))
    assert 0.2 <= time.monotonic() - began < 5


class Stuck(Polled):
    """A grid that, as Flower's, waits for the rest of a reply whose node died in the middle of sending it."""

    def __init__(self, nodes, dead):
        super().__init__(nodes, lambda message: greeting(message, [0]))
        self._dead = dead

    def pull_messages(self, identifiers):
        if any(self._sent[name].metadata.dst_node_id == self._dead for name in identifiers):
            self.nodes = [node for node in self.nodes if node != self._dead]
            time.sleep(60)
        return super().pull_messages(identifiers)


def test_many_replies_that_are_there_are_all_taken():
    nodes = list(range(10, 410))
    grid = Polled(nodes, lambda message: greeting(message, [0]) if time.monotonic() > began + 5 else None)
    began = time.monotonic()
    messages = [Message(encode_json({}), node, "train") for node in nodes]
    answered = {reply.metadata.src_node_id for reply in FlowerPort(grid).stream(messages, began + 9)}
    assert answered == set(nodes)


def test_a_node_that_dies_with_its_reply_half_sent_holds_nobody_up(monkeypatch):
    monkeypatch.setattr("umbel.server.flower.inbox._PRESENCE_SECONDS", 0.5)
    messages = [Message(encode_json({}), node, "train") for node in (7, 8)]
    began, replies, seconds = time.monotonic(), {}, {}
    for reply in FlowerPort(Stuck([7, 8], 7)).stream(messages, began + 600):
        replies[reply.metadata.src_node_id] = reply
        seconds[reply.metadata.src_node_id] = time.monotonic() - began
    assert replies[7].has_error() and "left before its reply was complete" in replies[7].error.reason
    assert not replies[8].has_error()
    assert seconds[8] < seconds[7] < 30


def test_what_the_grid_raises_is_raised_and_what_it_does_not_take_is_not_waited_for():
    def answer(message):
        raise ConnectionError("the SuperLink is gone")

    with pytest.raises(ConnectionError, match="the SuperLink is gone"):
        list(FlowerPort(Polled([7], answer)).stream([Message(encode_json({}), 7, "train")], time.monotonic() + 60))

    class Full(Polled):
        def push_messages(self, messages):
            return [None for _ in messages]

    began = time.monotonic()
    assert not list(FlowerPort(Full([7], answer)).stream([Message(encode_json({}), 7, "train")], began + 60))
    assert time.monotonic() - began < 30


def test_a_node_that_starts_again_takes_its_clients_over_when_its_old_id_has_left_and_nobody_waits_for_a_silent_one():
    grid = Polled([5], lambda message: greeting(message, [0, 1]) if message.metadata.dst_node_id != 6 else None)
    directory = Directory(FlowerPort(grid), "hash", 2, 30.0)
    directory.wait()
    grid.nodes = [5, 6, 9]  # 9 is what 5 was, or says so; 6 has just come and is busy
    began = time.monotonic()
    directory.refresh()
    assert time.monotonic() - began < 5
    time.sleep(0.5)
    directory.refresh()
    assert directory.split([0, 1]) == ({5: frozenset({0, 1})}, [])
    grid.nodes = [6, 9]
    until(lambda: directory.refresh() or directory.split([0, 1]) == ({9: frozenset({0, 1})}, []))


def test_a_greeting_may_fail_twice():
    failed = []

    def answer(message):
        if len(failed) < 2:
            failed.append(message)
            return Message(Error(3, "killed"), reply_to=message)
        return greeting(message, [0])

    directory = Directory(FlowerPort(Polled([5], answer)), "hash", 1, 30.0)
    directory.wait()
    assert directory.split([0]) == ({5: frozenset({0})}, []) and len(failed) == 2


def test_silent_nodes_are_named():
    with pytest.raises(RunStoppedError, match="No answer yet from node 5"):
        Directory(FlowerPort(Polled([5], lambda message: None)), "hash", 1, 0.2).wait()


def test_clients_that_nobody_holds_are_named():
    grid = Polled([5, 6], lambda message: greeting(message, [0, 1] if message.metadata.dst_node_id == 5 else [3]))
    with pytest.raises(RunStoppedError, match=r"nobody holds the clients 2, 4-7 of 8\. Start more nodes"):
        Directory(FlowerPort(grid), "hash", 8, 0.3).wait()


def test_a_reply_that_is_still_on_its_way_up_is_looked_for_soon(monkeypatch):
    """If Flower renames what we turn, a round over gRPC takes a second more, and nothing else would say so."""
    from flwr.supercore.inflatable.inflatable_utils import pull_objects

    from umbel.server.flower.internals import hasten

    monkeypatch.setitem(pull_objects.__kwdefaults__, "initial_backoff", 1.0)
    hasten()
    assert pull_objects.__kwdefaults__["initial_backoff"] == 0.02
