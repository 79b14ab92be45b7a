"""A warm node's client process that dies or hangs: an error reply, and the node lives on."""

from __future__ import annotations

import pytest
from flwr.app import Message

from umbel.client.node.supernode import Node, WarmProcess
from umbel.core.messages import encode_json
from umbel.simulations.engines.flower_internals import identify


class FakeNode(Node):
    """A node whose client process is a program of the test's."""

    def __init__(self, tmp_path, program, get_run=lambda run_id: None):
        identify()
        nothing = [None] * 4
        super().__init__((1, None, None, get_run, *nothing), {}, tmp_path)
        package = tmp_path / "umbel" / "client" / "node"  # in place of the bundle's
        package.mkdir(parents=True)
        for folder in (package, package.parent, package.parent.parent):
            (folder / "__init__.py").touch()
        (package / "serve.py").write_text(f"{program}\n")
        self._bundle = tmp_path

    def _process(self, run_id):
        if run_id not in self._processes:
            self._processes[run_id] = WarmProcess(self._bundle, {})
        return self._processes[run_id]


def question(ttl=60.0):
    identify()
    message = Message(encode_json({}), 1, "train")
    message.metadata.ttl = ttl
    return message


@pytest.mark.parametrize("program", ["", "import time; time.sleep(0.3)"], ids=["at once", "while it works"])
def test_a_client_process_that_dies_is_an_error_reply(tmp_path, program):
    node = FakeNode(tmp_path, program)
    for _ in range(2):  # and the node lives on
        reply = node._run(1, question())
        assert reply.has_error() and reply.error.reason.startswith("BrokenPipeError")
        assert not node._processes


def test_a_client_process_that_hangs_is_given_up_when_nobody_waits_any_more(tmp_path, monkeypatch):
    monkeypatch.setattr("umbel.client.node.supernode._ASK_SECONDS", 0.1)
    node = FakeNode(tmp_path, "import time; time.sleep(60)")
    reply = node._run(1, question(ttl=0.5))
    assert "deadline" in reply.error.reason and not node._processes
