"""A command whose output somebody else decides: no more of it is kept than is asked for."""

from __future__ import annotations

import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Self

from umbel.core.names import shortened

_LAST_LINES, _LONGEST_LINE = 3, 4096


class Command:
    """A command that runs as long as this context; an error in it ends the command.

    Args:
        line: The command and its arguments.

    Attributes:
        output: What it writes, to be read within the context.
        status: Its exit status, behind the context.
    """

    def __init__(self, line: Sequence[str]) -> None:
        self._line = list(line)
        self._said: deque[bytes] = deque(maxlen=_LAST_LINES)
        self.status = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.output: IO[bytes] = self._process.stdout
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()
        return self

    def _listen(self, stream: IO[bytes]) -> None:
        with stream:
            self._said.extend(iter(lambda: stream.readline(_LONGEST_LINE), b""))

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.kill()
        self.output.close()
        self.status = self._process.wait()
        self._listener.join(2.0)  # unless something that it started holds its end open

    @property
    def said(self) -> str:
        """The end of what it wrote on standard error, as a line."""
        return shortened(" ".join(line.decode("utf-8", "replace").strip() for line in self._said))
