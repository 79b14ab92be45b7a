"""A warm node's client process that dies or hangs: an error reply, and the node lives on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from flwr.app import Message

from tests.client.nodes import SuperLink, bundle
from umbel.client.node.node import Node, Rules
from umbel.core.messages import encode_json
from umbel.simulations.engines.flower_internals import identify
from umbel.simulations.engines.processes import descendants


def node_of(program, home):
    """A node whose client process is a program of the test's, in place of the bundle's, and its home."""
    return Node(SuperLink(bundle(program)), Rules({}, home, ask_seconds=0.1))


def question(ttl=60.0):
    identify()
    message = Message(encode_json({}), 1, "train")
    message.metadata.ttl = ttl
    return message


@pytest.mark.parametrize("program", ["", "import time; time.sleep(0.3)"], ids=["at once", "while it works"])
def test_a_client_process_that_dies_is_an_error_reply(tmp_path, program):
    node = node_of(program, tmp_path)
    for _ in range(2):  # and the node lives on
        reply = node.answer(question())
        assert reply.has_error() and reply.error.reason.startswith("BrokenPipeError")


def test_a_client_process_that_hangs_is_given_up_when_nobody_waits_any_more(tmp_path):
    node = node_of("import time; time.sleep(60)", tmp_path)
    reply = node.answer(question(ttl=0.5))
    assert "deadline" in reply.error.reason
    folders = [str(Path(f"/proc/{child}/cwd").readlink()) for child, _ in descendants([os.getpid()])]
    assert not [folder for folder in folders if folder.startswith(str(tmp_path))]
