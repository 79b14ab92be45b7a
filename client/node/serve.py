"""Run the bundle's ClientApp over a pair of pipes: the process behind a warm node.

Started by `umbel.client.node.supernode` in the folder of an unpacked bundle, so that the bundle's code comes first on
the path and nothing that is installed on the node hides it. Frames are a length of 8 bytes and a protobuf message, both
ways.
"""

from __future__ import annotations

import json
import os
import struct
import traceback
from typing import BinaryIO

from flwr.app import Context, Error, Message, RecordDict

from umbel.client.node.flower_serde import from_bytes, to_bytes
from umbel.client.node.parent import end_with_parent

_LENGTH = struct.Struct("<Q")
_MOST_BYTES = 1 << 36  # of a message; no machine has room for more
_APP_RAISED = 3  # Flower's code for a ClientApp that raised


def write_frame(stream: BinaryIO, content: bytes) -> None:
    """Write one frame."""
    stream.write(_LENGTH.pack(len(content)))
    stream.write(content)
    stream.flush()


def read_frame(stream: BinaryIO) -> bytes | None:
    """Read one frame, or return None when the other side is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > _MOST_BYTES:
        raise ValueError(f"a message of {length:,} bytes")
    content = stream.read(length)
    return content if len(content) == length else None


def main() -> None:
    """Answer messages until the pipe closes."""
    end_with_parent()  # nobody waits for this one any more, and another may begin
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the app prints must not come between the frames
    first = read_frame(requests)
    if first is None:
        return
    start = json.loads(first)
    context = Context(start["run_id"], start["node_id"], start["node_config"], RecordDict(), start["run_config"])
    from umbel.client.app import app
    from umbel.core.records import reason

    while (content := read_frame(requests)) is not None:
        message = from_bytes(content)
        try:
            reply = app(message, context)
        except Exception as error:  # noqa: BLE001 - whatever the app raises is its answer, as with Flower
            traceback.print_exc()
            reply = Message(Error(_APP_RAISED, reason(error)), reply_to=message)
        write_frame(answers, to_bytes(reply))


if __name__ == "__main__":
    main()
