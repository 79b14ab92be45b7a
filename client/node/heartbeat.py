"""Says that a node is there, from a process and over a connection of its own.

A node that sends a large answer over a slow line, or takes one apart, has no time for it: on the connection that the
answer fills, a heartbeat comes too late, and the node is taken for dead. This process ends with its node, and is silent
while its node is stopped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from umbel.client.node.connection import Address, voice
from umbel.core.wire.identity import PrivateKey, key_of_text, key_text

_SHARE = 0.4  # of the interval that a node promises: two in a row may be lost
_AGAIN_SECONDS = 1.0


@contextmanager
def beating(address: Address, key: PrivateKey, node_id: int) -> Iterator[None]:
    """Have a process of its own say that a node is there, until the end of the block or of this process.

    Args:
        address: Where to.
        key: The key by which the SuperLink knows the node.
        node_id: What it calls it.
    """
    certificates = address.root_certificates
    told = {
        "superlink": address.superlink,
        "insecure": address.insecure,
        "root_certificates": certificates.decode() if certificates is not None else None,
        "heartbeat_seconds": address.heartbeat_seconds,
        "key": key_text(key),
        "node_id": node_id,
    }
    process = subprocess.Popen([sys.executable, "-m", "umbel.client.node.heartbeat"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(told).encode() + b"\n")
        process.stdin.flush()
        yield
    finally:
        process.kill()  # before the node says goodbye, or it would be there again
        process.wait()
        process.stdin.close()


def main() -> None:
    """Say it until the node's end of the pipe closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # to the node's group; the node ends this process when it has ended
    told = json.loads(sys.stdin.buffer.readline())
    certificates = told["root_certificates"]
    address = Address(
        told["superlink"],
        told["insecure"],
        certificates.encode() if certificates is not None else None,
        heartbeat_seconds=told["heartbeat_seconds"],
    )
    threading.Thread(target=_end_with_node, daemon=True).start()
    said = voice(replace(address, key=key_of_text(told["key"])))
    while True:
        well = _is_stopped(os.getppid()) or said.beat(told["node_id"])
        time.sleep(_SHARE * address.heartbeat_seconds if well else _AGAIN_SECONDS)


def _end_with_node() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _is_stopped(pid: int) -> bool:
    """Say whether a process is stopped (SIGSTOP, a debugger): then it does no work, however long it is there."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in ("T", "t")


if __name__ == "__main__":
    main()
