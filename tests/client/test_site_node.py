"""A site's node: it signs what it is asked, with a key that its client process never has, and takes what it allows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from flwr.app import Message

from tests.client.nodes import ANSWERING, SuperLink, at_work_in, bundle
from umbel.client.node import options
from umbel.client.node.node import GREETING, HEAD, Node, Rules
from umbel.core.refusal import Refusal
from umbel.core.wire import messages
from umbel.core.wire.identity import fingerprint, greeting_content, new_key, verify, write_key
from umbel.core.wire.messages import decode_json, encode_json
from umbel.server.flower.internals import identify

ASKED = {"hello": "hash", "challenge": "c0ffee", "run": "a run"}
SAID = {"partitions": [0, 1], "config_hash": "hash", "examples": {"0": 3, "1": 4}}


class Nobody:
    def check(self, bundle_hash, run_config, run_id):
        raise Refusal(f"The run {run_id} of {run_config['signer']} is not for us: {bundle_hash[:8]}.")

    def stamp(self):
        return None


class Fickle:
    """A policy whose files change."""

    def __init__(self):
        self.now, self.num_asked, self.takes = 0, 0, True

    def check(self, bundle_hash, run_config, run_id):
        self.num_asked += 1
        if not self.takes:
            raise Refusal("mallory is trusted no more.")

    def stamp(self):
        return self.now


def answering(said):
    return bundle(f"TEXT = {json.dumps(said)!r}\n{ANSWERING}", signer="mallory")


def asked(kind=GREETING):
    identify()
    return Message(encode_json(ASKED), 7, kind)


def answer_of(rules, said=SAID, kind=GREETING):
    node = Node(SuperLink(answering(said)), rules)
    try:
        return node.answer(asked(kind))
    finally:
        node.close()


def test_the_record_of_a_greeting_has_the_name_that_messages_give_it():
    assert HEAD == messages.HEAD


def test_a_node_signs_the_challenge_and_the_claims_and_nothing_else(tmp_path):
    key = new_key()
    said = decode_json(answer_of(Rules({}, tmp_path, key)).content)
    site = said.pop("site")
    assert said == SAID and site["key"] == fingerprint(key)
    content = greeting_content("c0ffee", "a run", 7, SAID)
    assert verify(key.public_key(), "greeting", content, site["signature"])
    assert not verify(key.public_key(), "greeting", {**content, "node_id": 8}, site["signature"])
    assert "site" not in decode_json(answer_of(Rules({}, tmp_path, key), kind="train").content)
    assert "site" not in decode_json(answer_of(Rules({}, tmp_path)).content)


def test_the_challenge_that_is_signed_is_the_servers_whatever_the_bundles_code_says(tmp_path):
    key = new_key()
    said = decode_json(answer_of(Rules({}, tmp_path, key), {**SAID, "challenge": "another", "site": "forged"}).content)
    assert verify(key.public_key(), "greeting", greeting_content("c0ffee", "a run", 7, SAID), said["site"]["signature"])


def test_what_a_site_does_not_take_is_named_and_nothing_of_it_is_unpacked(tmp_path):
    reply = answer_of(Rules({}, tmp_path / "home", policy=Nobody()))
    assert reply.has_error() and "of mallory is not for us" in reply.error.reason
    assert not (tmp_path / "home").exists()


def test_a_run_that_is_no_longer_taken_ends_with_the_next_message(tmp_path):
    policy = Fickle()
    node = Node(SuperLink(answering(SAID)), Rules({}, tmp_path, policy=policy))
    try:
        assert not node.answer(asked()).has_error() and not node.answer(asked()).has_error()
        assert policy.num_asked == 1  # nothing had changed
        policy.now = 1
        assert not node.answer(asked()).has_error() and policy.num_asked == 2
        policy.now, policy.takes = 2, False
        reply = node.answer(asked())
        assert reply.has_error() and "trusted no more" in reply.error.reason
        assert not at_work_in(tmp_path)
        assert node.answer(asked()).has_error()
    finally:
        node.close()


def test_a_bundle_lies_under_its_own_hash_whatever_the_superlink_calls_it(tmp_path):
    named = replace(answering(SAID), hash="../elsewhere")
    node = Node(SuperLink(named), Rules({}, tmp_path / "home"))
    try:
        assert not node.answer(asked()).has_error()
        (unpacked,) = (tmp_path / "home").iterdir()
        assert hashlib.sha256(named.content).hexdigest() in unpacked.name and (unpacked / "begun").is_file()
    finally:
        node.close()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert not list((tmp_path / "home").iterdir())


def test_a_run_finds_nothing_of_what_another_left_in_the_same_bundle(tmp_path):
    """The code of one is not the next one's, though both have the same bundle."""
    spoils = """
import pathlib
here = pathlib.Path("umbel/client/node/serve.py")
assert not pathlib.Path("spoiled").exists()
pathlib.Path("spoiled").touch()
here.write_text("raise SystemExit(5)")
"""
    changing = bundle(f"{spoils}\nTEXT = {json.dumps(SAID)!r}\n{ANSWERING}")
    for _ in range(2):
        node = Node(SuperLink(changing), Rules({}, tmp_path))
        try:
            assert decode_json(node.answer(asked()).content) == SAID
        finally:
            node.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--heartbeat-seconds", "5"], "a SuperLink takes 10 to 1800"),
        (["--insecure", "--root-certificates", "ca.pem"], "one of the two"),
        (["--key", "none.key"], "cannot be read"),
        (["--trusted", "none.yaml"], "cannot be read"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_that_are_refused(given, reason):
    with pytest.raises(Refusal, match=reason):
        options.read(["--superlink", "127.0.0.1:1", *given])


def test_over_tls_the_sites_key_is_flowers_too_and_without_it_signs_alone(tmp_path):
    key = new_key()
    write_key(tmp_path / "site.key", key)
    (tmp_path / "ca.pem").write_text("a certificate")
    common = ["--superlink", "127.0.0.1:1", "--key", str(tmp_path / "site.key"), "--heartbeat-seconds", "30"]
    secure = options.read(
        [*common, "--root-certificates", str(tmp_path / "ca.pem"), "--node-config", "partitions='0-3'"]
    )
    assert fingerprint(secure.address.key) == fingerprint(secure.rules.key) == fingerprint(key)
    assert secure.address.root_certificates == b"a certificate" and secure.address.heartbeat_seconds == 30
    assert secure.rules.node_config == {"partitions": "0-3"}
    insecure = options.read([*common, "--insecure"])
    assert insecure.address.key is None and fingerprint(insecure.rules.key) == fingerprint(key)
