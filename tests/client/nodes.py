"""A warm node without a SuperLink: a connection that has one bundle for every run."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from umbel.client.node.connection import Bundle, Connection

PROJECT = Path(__file__).parents[2]
PACKAGES = {"umbel": PROJECT, "umbel/client": PROJECT / "client", "umbel/client/node": PROJECT / "client" / "node"}

# A client process that answers every message with a text, and notes in its folder that it has begun.
ANSWERING = """
import os, pathlib
from flwr.app import ConfigRecord, Message, RecordDict
from umbel.client.node.flower_serde import from_bytes, to_bytes
from umbel.client.node.serving import read_frame, write_frame

pathlib.Path("begun").touch()
requests, answers = os.fdopen(0, "rb"), os.fdopen(1, "wb")
read_frame(requests)
while (content := read_frame(requests)) is not None:
    text = RecordDict({"umbel": ConfigRecord({"json": TEXT})})
    write_frame(answers, to_bytes(Message(text, reply_to=from_bytes(content))))
"""


def bundle(program, **run_config):
    """A bundle that has a program in place of the one that runs the ClientApp, which is there as `serving`."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(".info/MANIFEST", "")
        for package, folder in PACKAGES.items():
            archive.writestr(f"{package}/__init__.py", f"__path__.append({str(folder)!r})")
        archive.writestr("umbel/client/node/serve.py", f"{program}\n")
        archive.write(PROJECT / "client" / "node" / "serve.py", "umbel/client/node/serving.py")
    return Bundle(hashlib.sha256(content.getvalue()).hexdigest(), content.getvalue(), run_config)


class SuperLink(Connection):
    """A SuperLink whose runs all run, and bring the same bundle."""

    node_id = 7

    def __init__(self, bundle):
        self._bundle = bundle

    def receive(self):
        return None

    def send(self, reply, seconds):
        pass

    def check_running(self, run_id):
        pass

    def bundle(self, run_id):
        return self._bundle


def children_that(hold: Callable[[psutil.Process], bool]) -> list[int]:
    """Processes below this one of which something holds; others may end meanwhile."""
    those = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            those += [child.pid] if hold(child) else []
    return those


def at_work_in(folder: Path) -> list[int]:
    """Processes below this one that work in a folder."""
    return children_that(lambda child: Path(child.cwd()).is_relative_to(folder))
