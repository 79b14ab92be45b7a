"""Which node holds which clients: greetings that are refused, and clients that two hold."""

from __future__ import annotations

import pytest
from flwr.app import Message

from umbel.core.messages import encode_json
from umbel.server.errors import RunStoppedError
from umbel.server.nodes import Directory
from umbel.simulations.engines.flower_internals import error_reply, identify
from umbel.simulations.engines.local import LocalPort


class Greeting(LocalPort):
    def __init__(self, answers):
        identify()
        self._answers = answers

    def nodes(self):
        return set(self._answers)

    def stream(self, messages, deadline, on_wait=None):
        for message in messages:
            answer = self._answers[message.metadata.dst_node_id]
            if isinstance(answer, Exception):
                yield error_reply(message, answer)
            else:
                yield Message(encode_json(answer), reply_to=message)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"partitions": [1], "config_hash": "other"}, "composed the experiment other, the server hash"),
        ({"partitions": None, "config_hash": "hash"}, "cannot be read"),
        ({"config_hash": "hash"}, "cannot be read"),
        (KeyError("experiment"), "KeyError: 'experiment'"),
    ],
    ids=range(4),
)
def test_nodes_that_are_refused(answer, reason):
    directory = Directory(Greeting({1: {"partitions": [0], "config_hash": "hash"}, 2: answer}), "hash", 2, 0.0)
    with pytest.raises(RunStoppedError, match="nobody holds the clients 1 of 2") as found:
        directory.wait()
    assert "Node 2 was refused" in str(found.value) and reason in str(found.value)


def test_a_client_that_two_nodes_hold_runs_on_one():
    held = {1: {"partitions": [0, 1], "config_hash": "hash"}, 5: {"partitions": [1, 2], "config_hash": "hash"}}
    directory = Directory(Greeting(held), "hash", 3, 0.0)
    directory.wait()
    assert directory.split([0, 1, 2]) == ({1: frozenset({0, 1}), 5: frozenset({2})}, [])
    assert directory.split([2, 9]) == ({5: frozenset({2})}, [9])
