"""A warm node's client process that dies or hangs: an error reply, and the node lives on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from flwr.app import Message

from tests.client.nodes import SuperLink, bundle
from umbel.client.node.node import Node, Rules
from umbel.core.messages import encode_json
from umbel.simulations.engines.flower_internals import identify


def node_of(program, home):
    """A node whose client process is a program of the test's, in place of the bundle's, and its home."""
    return Node(SuperLink(bundle(program)), Rules({}, home, ask_seconds=0.1))


def question(ttl=60.0):
    identify()
    message = Message(encode_json({}), 1, "train")
    message.metadata.ttl = ttl
    return message


def at_work_in(folder):
    """Processes below this one that work in a folder; others may end meanwhile."""
    at_work = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            at_work += [child.pid] if Path(child.cwd()).is_relative_to(folder) else []
    return at_work


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
    assert not at_work_in(tmp_path)
