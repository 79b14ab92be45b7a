"""The process behind a warm node, which runs one run's ClientApp from the folder of its bundle."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Message

from umbel.client.node.flower_serde import from_bytes, to_bytes
from umbel.client.node.serve import read_frame, write_frame

ASK_SECONDS = 2.0  # how often to look whether anybody still waits for an answer


_SPARE = Path(__file__).with_name("spare.py")


def spare() -> subprocess.Popen[bytes]:
    """Start a process that loads what every client needs before there is a bundle (`umbel.client.node.spare`)."""
    command = [sys.executable, "-P", os.fspath(_SPARE)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - the file beside this


def _given(process: subprocess.Popen[bytes] | None, bundle: Path) -> subprocess.Popen[bytes]:
    """Return a spare process that has been given a bundle; a new one where there is none, or it has died."""
    if process is not None:
        with contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.write(json.dumps(os.fspath(bundle.resolve())).encode() + b"\n")
            process.stdin.flush()
            return process
        end(process)
    # `-m` puts the current folder, the bundle, first on the path.
    return subprocess.Popen(
        [sys.executable, "-m", "umbel.client.node.serve"], cwd=bundle, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, whatever it is doing."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was written by halves when it died
                pipe.close()


class WarmProcess:
    """The process that runs one run's ClientApp.

    Args:
        bundle: Folder of the unpacked bundle.
        start: What the app's context needs.
        ask_seconds: How often to look whether anybody still waits for an answer.
        ready: From `spare`; None starts a process now.
    """

    def __init__(
        self,
        bundle: Path,
        start: dict[str, Any],
        ask_seconds: float = ASK_SECONDS,
        ready: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self._ask_seconds = ask_seconds
        self._process = _given(ready, bundle)
        try:
            write_frame(self._process.stdin, json.dumps(start).encode())  # type: ignore[arg-type]
        except OSError:  # it died at once: nobody else would wait for it
            end(self._process)
            raise

    def ask(self, message: Message, on_wait: Callable[[], None]) -> Message:
        """Run a message.

        Args:
            message: The message.
            on_wait: Called every few seconds; may raise to give up, after which the process must be closed.

        Raises:
            BrokenPipeError: The process died.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        write_frame(process.stdin, to_bytes(message))  # type: ignore[arg-type]
        # One answer a message: between two, nothing waits in Python's buffer, which `select` does not see.
        while not select.select([process.stdout], [], [], self._ask_seconds)[0]:
            on_wait()
        answer = read_frame(process.stdout)  # type: ignore[arg-type]
        if answer is None:
            raise BrokenPipeError(f"the client process died with exit code {process.wait()}")
        return from_bytes(answer)

    def close(self) -> None:
        """End the process."""
        end(self._process)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None
