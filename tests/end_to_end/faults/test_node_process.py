"""A warm node's client process that dies or hangs: an error reply, and the node lives on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from flwr.app import Message

from tests.client.nodes import ANSWERING, SuperLink, at_work_in, bundle, children_that
from tests.places import ROOT
from umbel.client.node import process
from umbel.client.node.bundle import unpack
from umbel.client.node.node import Node, Rules
from umbel.core.wire.messages import encode_json
from umbel.server.flower.internals import identify

NARRATED = ANSWERING.replace("TEXT", "'answered'")


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


NODE = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE)
print(child.pid, flush=True)
time.sleep(60)
"""
BUSY = """
import pathlib, time
from umbel.client.node import serve
serve.read_frame = lambda stream: pathlib.Path("at work").touch() or time.sleep(60)
serve.main()
"""


def test_a_process_ends_with_its_node_whatever_it_is_doing(tmp_path):
    """A node that is killed tells it nothing."""
    command = [sys.executable, "-c", NODE, BUSY]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as node:
        child = psutil.Process(int(node.stdout.readline()))
        while not (tmp_path / "at work").exists():
            assert child.is_running()
            time.sleep(0.05)
        node.kill()
    gone, alive = psutil.wait_procs([child], timeout=10)
    assert gone and not alive


def test_a_client_process_that_hangs_is_given_up_when_nobody_waits_any_more(tmp_path):
    node = node_of("import time; time.sleep(60)", tmp_path)
    reply = node.answer(question(ttl=0.5))
    assert "deadline" in reply.error.reason
    assert not at_work_in(tmp_path)


SEEN = """
import json, os, pathlib, sys
umbel = sys.modules["umbel"].__file__
seen = {"torch": "torch" in sys.modules, "cwd": os.getcwd(), "first": sys.path[0], "umbel": umbel}
pathlib.Path("..", "seen").write_text(json.dumps(seen))
"""


class Once(SuperLink):
    """A SuperLink with one message; what is sent back is kept, and then the node is stopped."""

    def __init__(self, program):
        super().__init__(bundle(program))
        self.waiting, self.replies, self.stop = [question()], [], None

    def receive(self):
        return self.waiting.pop() if self.waiting else None

    def send(self, reply, seconds):
        self.replies.append(reply)
        self.stop()


def test_a_node_has_a_process_ready_that_sees_the_bundle_alone(tmp_path):
    """It has loaded the libraries before there is a bundle, and the bundle's code is what it runs."""
    link = Once(SEEN + NARRATED)
    node = Node(link, Rules({}, tmp_path, ask_seconds=0.1))
    link.stop = node.stop
    node.serve()
    node.close()
    assert [reply.content["umbel"]["json"] for reply in link.replies] == ["answered"]
    seen = json.loads((tmp_path / "seen").read_text())
    folder = Path(seen["cwd"])
    assert folder.parent == tmp_path and seen["torch"]
    assert (seen["first"], seen["umbel"]) == (str(folder), str(folder / "umbel" / "__init__.py"))
    assert not at_work_in(tmp_path)
    assert not children_that(lambda child: "spare.py" in " ".join(child.cmdline()))


def test_a_spare_process_that_has_died_is_none(tmp_path):
    ready = process.spare()
    ready.kill()
    ready.wait()
    link = SuperLink(bundle(NARRATED))
    folder = unpack(link.bundle(1).content, tmp_path, "bundle")
    warm = process.WarmProcess(folder, {}, 0.1, ready)
    assert warm.ask(question(), lambda: None).content["umbel"]["json"] == "answered"
    warm.close()


def test_a_process_that_dies_before_it_was_told_of_its_run_is_waited_for(tmp_path, monkeypatch):
    """Else it stays as a zombie for as long as the node lives."""
    ready = process.spare()
    folder = unpack(SuperLink(bundle(NARRATED)).bundle(1).content, tmp_path, "bundle")

    def broken(stream, content):
        raise BrokenPipeError

    monkeypatch.setattr(process, "write_frame", broken)
    with pytest.raises(BrokenPipeError):
        process.WarmProcess(folder, {}, 0.1, ready)
    assert ready.returncode is not None
