"""Greetings of a length that follows from the number of clients, and looked into no further than their key is good."""

from __future__ import annotations

import time

import pytest
from flwr.app import Message

from tests.server.fakes import Greeted, node_of
from tests.server.superlink import SuperLinkGrid
from tests.server.test_sites import NORTH, SOUTH, site, write
from umbel.core.wire.identity import new_key
from umbel.core.wire.messages import decode_json, encode_json
from umbel.server.errors import RunStoppedError
from umbel.server.flower.inbox import FlowerPort
from umbel.server.flower.internals import identify
from umbel.server.greeting import most_bytes
from umbel.server.nodes import Directory
from umbel.server.port import Question
from umbel.server.sites import Sites

HASH = "0" * 64
SITE = {"key": "SHA256:" + "x" * 43, "signature": "x" * 140}


def honest(num_clients, **more):
    """The longest greeting of an honest node, which holds all clients."""
    return {
        "partitions": list(range(num_clients)),
        "config_hash": HASH,
        "examples": {str(client): 10**9 for client in range(num_clients)},
        "sites": {str(client): "s" * 40 for client in range(num_clients)},
        "version": "0.1.0",
        "time": time.time(),
        "site": SITE,
        **more,
    }


def length(said):
    return len(encode_json(said).config_records["umbel"]["json"])


@pytest.mark.parametrize("num_clients", [1, 100, 10_000])
def test_an_honest_greeting_is_never_too_long(num_clients):
    classes = {"sha256": HASH, "names": ["Ü" * 60] * 100}
    assert length(honest(num_clients, classes=classes)) < most_bytes(num_clients)
    assert most_bytes(num_clients) <= 65536 + 100 * num_clients
    own = {str(client): {f"class {label:03}": 10**6 for label in range(20)} for client in range(num_clients)}
    assert length(honest(num_clients, classes=own)) < most_bytes(num_clients, 20 * (11 + 24))


def refused(port, num_clients=2, sites=None):
    with pytest.raises(RunStoppedError) as stopped:
        Directory(port, "hash", num_clients, 0.0, "a run", sites).wait()
    return str(stopped.value)


def test_a_longer_one_is_not_read():
    said = {"partitions": [0, 1], "config_hash": "hash", "version": "x" * 65_736}
    assert "of which at most 65,736 are read" in refused(Greeted({1: said}))
    Directory(Greeted({1: said}), "hash", 2, 0.0, class_bytes=500).wait()


def test_a_client_that_there_is_not_is_refused_at_once():
    said = {"partitions": [0, 2], "config_hash": "hash"}
    assert "it claims client 2, and the experiment has 2" in refused(Greeted({1: said}))


def test_what_nobody_of_the_list_signed_is_not_looked_into(tmp_path):
    known = Sites(write(tmp_path / "sites.yaml", site(NORTH, "0"), site(SOUTH, "1", "revoked: true")))
    nonsense = {"examples": {"5": 10**6}}
    stranger, revoked = node_of(new_key(), "xy", **nonsense), node_of(SOUTH, "xy", **nonsense)
    forged = node_of(new_key(), "xy", of=NORTH, **nonsense)
    text = refused(Greeted({1: stranger, 2: revoked, 3: forged, 4: node_of(NORTH, "xy", **nonsense)}), 2, known)
    reasons = dict(line.split(" was refused: ") for line in text.splitlines()[1:])
    assert "is not on the list of sites" in reasons["Node 1"]
    assert "has been revoked" in reasons["Node 2"]
    assert "has not signed this greeting" in reasons["Node 3"]
    assert "cannot be read" in reasons["Node 4"]


@pytest.mark.parametrize("signed", ["north", 5, [], {}, {"key": 5, "signature": ""}, {"key": "a", "signature": None}])
def test_a_key_that_is_none_is_refused(tmp_path, signed):
    known = Sites(write(tmp_path / "sites.yaml", site(NORTH, "0-1")))
    said = {"partitions": [0], "config_hash": "hash", "site": signed}
    assert "it has no text for its key and its signature" in refused(Greeted({1: said}), 2, known)


def test_no_more_of_a_greeting_is_fetched_than_it_may_have():
    identify()
    said = {1: {"partitions": [0], "config_hash": "hash"}, 2: {"partitions": [1], "version": "x" * 300_000}}

    def answer(asked):
        assert decode_json(asked.content)["hello"] == "hash"
        return Message(encode_json(said[asked.metadata.dst_node_id]), reply_to=asked)

    grid = SuperLinkGrid(said, answer)
    port = FlowerPort(grid)
    questions = [Question(node, "query", {"hello": "hash"}) for node in said]
    answers = port.greet(questions, time.monotonic() + 30, most_bytes(2))
    while port.silent():
        time.sleep(0.01)
        answers += port.greet([], time.monotonic() + 30, most_bytes(2))
    (error,) = [each.error for each in answers if each.error]
    assert len(answers) == 2 and error == "its answer has more than the 131,272 bytes that it can have"
    assert len(grid.confirmed) == 2  # the SuperLink need not keep it
