"""Say how far an encoder is, to a person at a terminal or to a function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]
"""Told how many examples are done, and how many there are."""


@contextmanager
def reported(total: int, what: str, progress: Progress | None) -> Iterator[Progress]:
    """Give a function that is told how far it is.

    Args:
        total: How many examples there are.
        what: What a bar says in front.
        progress: Told in place of the bar; None shows a bar where stderr is a terminal, and nothing elsewhere.
    """
    if progress is not None:
        yield progress
        return
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, _total: bar.update(task, completed=done)
