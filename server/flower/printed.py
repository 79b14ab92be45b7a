"""How a run goes, printed for Flower's log of it: whoever submitted it from another machine follows it there."""

from __future__ import annotations

from pathlib import Path

from umbel.server.listener import FileListener

MARK = "umbel-progress "  # what a line of progress begins with, among all else that is printed
_SECONDS = 2.0  # between two lines about clients that are done: the log is kept in the SuperLink's database


class PrintedListener(FileListener):
    """Prints what a progress file has, a line each.

    Attributes:
        ended: Whether it was told how the run ended.
    """

    def __init__(self) -> None:
        super().__init__(Path(), _SECONDS)
        self.ended = False

    def put(self, line: str) -> None:
        print(MARK + line, flush=True)

    def end(self, error: BaseException | None) -> None:
        super().end(error)
        self.ended = True
