"""What a node notes of its presence at a SuperLink, so that the next start can take leave in its name.

A node that was killed counts as present for some twenty seconds, in which its site's key cannot come again, and the
server sends its work to nobody.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from umbel.client.node.connection import Address
from umbel.core.refusal import Refusal
from umbel.core.wire.identity import PrivateKey, fingerprint, key_of_text, key_text

_ABSENT_SECONDS = 3.0  # the server looks every second for who has left: what it had given the one before then fails
Leave = Callable[[Address, int, bool], bool]
log = logging.getLogger("umbel.node")


class Presence:
    """The note of one node, which others of the same place leave alone as long as it runs.

    Args:
        file: Where it is.
        address: Where the node goes, and as whom.
    """

    def __init__(self, file: Path, address: Address) -> None:
        self._file = file
        self._address = address

    @classmethod
    @contextmanager
    def of(cls, address: Address, leave: Leave) -> Iterator[Presence | None]:
        """Take leave for the node that was here before, if it was killed, and yield the note of the one that comes.

        Yields None where another node without a key runs from the same place.

        Args:
            address: Where to; `address.presence` is the folder of notes.
            leave: Tells a SuperLink that a node has left, for good or not; returns whether it counted as present.

        Raises:
            Refusal: A node with the same key runs from here.
        """
        assert address.presence is not None
        address.presence.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = fingerprint(address.key).partition(":")[2].replace("/", "_") if address.key else "node"
        file = address.presence / f"{name}.json"
        lock = FileLock(file.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if address.key is None:
                yield None
                return
            raise Refusal(
                "A node with this key runs here already.", key="--key", remedy="Stop it, or give this one its own key."
            ) from None
        try:
            note = cls(file, address)
            note._take_leave(leave)
            yield note
            file.unlink(missing_ok=True)  # it has said goodbye itself
        finally:
            lock.release()

    def note(self, node_id: int, key: PrivateKey) -> None:
        """Write down what the SuperLink calls the node; a key that is not the site's is noted with it."""
        content = {"superlink": self._address.superlink, "node_id": node_id}
        if self._address.key is None:
            content["key"] = key_text(key)
        self._file.unlink(missing_ok=True)
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file)

    def _take_leave(self, leave: Leave) -> None:
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            node_id, superlink = int(content["node_id"]), str(content["superlink"])
            key = self._address.key or key_of_text(str(content["key"]))
        except (OSError, ValueError, KeyError, TypeError):
            return  # none was killed here, or in the midst of its note: it has left after twenty seconds by itself
        self._file.unlink(missing_ok=True)
        for_good = self._address.key is None
        if superlink != self._address.superlink or not leave(replace(self._address, key=key), node_id, for_good):
            return
        log.info("node %s, which was here before, had not said goodbye", node_id)
        if not for_good:
            time.sleep(_ABSENT_SECONDS)
