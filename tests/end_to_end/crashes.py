"""Ends an inline run before each change of the file system, goes on with it, and looks at what has come of it.

    python -m tests.end_to_end.crashes FOLDER RUN NUMBER      NUMBER of points, spread evenly; 0 takes all

Prints one JSON object: the number of points, how many were tried, and what went wrong, by point.

A change is what Python's audit hooks tell of: files opened for writing, folders made, names changed, files and folders
removed; and each `os.fsync`, when a file's content is written and it has not got its name yet. What a change leaves is
what stands before the next, so that each point is looked at from both sides. Every point has a forked process of its
own, which knows all modules and data: a run costs what it computes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.end_to_end.test_engines import SMALL, STRATEGIES
from umbel import resume, run
from umbel.server.reading import memory_place, metrics

SMALLER = ("data.num_clients=4", "data.max_train=100", "checkpoint.every=1")
# All strategies by name whose clients remember something, and batch norm of their own.
RUNS = {name: STRATEGIES[name] for name in ("scaffold", "ggeur")} | {
    "fedloge": (*STRATEGIES["fedloge"], "strategy.frame=etf"),  # a sparse one takes seconds to make, in every run anew
    "creamfl": ("data.num_clients=8", *STRATEGIES["creamfl"]),
    "local": ("strategy.name=umbel.strategies.local:Local",),
    "own batch norm": ("model.name=cvt_tiny32", "model.sizes={}", "model.norm=local"),
}
_KILLED = 9
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")


class Changes:
    """Counts changes of the file system below a folder, and ends the process before one.

    Args:
        folder: Where changes count.
        last: The change, from 0, that does not come to pass; -1 lets all of them.
    """

    def __init__(self, folder: Path, last: int = -1) -> None:
        self.number = 0
        self._folder, self._last = os.fspath(folder), last
        os.fsync = lambda _: self._count()
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
        if (is_write or event in _CHANGES) and str(arguments[0]).startswith(self._folder):
            self._count()

    def _count(self) -> None:
        if self.number == self._last:
            os._exit(_KILLED)
        self.number += 1


def in_a_fork(work: Callable[[], Any]) -> tuple[int, Any]:
    """Do something in a process of its own; return its exit status and what it gave."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        try:
            answer = json.dumps(work())
        except BaseException:  # noqa: BLE001 - whatever it is, the parent tells
            answer = json.dumps({"error": traceback.format_exc()})
        with os.fdopen(write, "w") as file:
            file.write(answer)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        answer = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(answer) if answer else None


def outcome(results: Path) -> dict[str, Any]:
    """Return what a run has come to: its bits, its metrics, and which files there are, apart from names of chance."""
    folder = results / "run"
    content = json.loads((folder / "summary.json").read_text())
    rows = metrics(folder).drop(["seconds"]).to_pylist()
    kept = [path.relative_to(results) for path in sorted(results.rglob("*")) if path.is_file()]
    temporary = [path.name for path in Path(tempfile.gettempdir()).glob("umbel-*")]
    return {
        "bits": [content["weights_sha256"], content.get("representations_sha256")],
        "failures": content["num_failures"],
        "bytes": [content["bytes_up"]["tensors"], content["bytes_down"]["tensors"]],
        "metrics": [repr(row) for row in rows],
        "files": [str(path) for path in kept if "memory" not in path.parts],
        "remembering": sorted({path.parts[-2] for path in kept if path.parts[1] == "memory"}),
        "litter": [str(path) for path in kept if path.suffix == ".part"] + temporary,
        "place": memory_place(folder),
    }


def try_point(options: tuple[str, ...], results: Path, point: int) -> tuple[int, Any]:
    """End a run before a change, go on with it, or begin again where there is no folder."""

    def first() -> None:
        Changes(results.parent, point)
        run("digits", *options, f"run.results={results}", "run.name=run")

    def second() -> dict[str, Any]:
        if (results / "run").exists():
            resume(results / "run")
        else:
            run("digits", *options, f"run.results={results}", "run.name=run")
        return outcome(results)

    status, answer = in_a_fork(first)
    if status != _KILLED and answer is not None:  # it may have had a change less: some lines are written by the clock
        return status, answer
    return in_a_fork(second)


def main(folder: Path, name: str, number: int) -> dict[str, Any]:
    """Try points of one of `RUNS`."""
    os.fsync = lambda _: None  # what a process has written outlives it
    options = (*SMALL, *SMALLER, *RUNS[name])
    tempfile.tempdir = str(folder / "tmp")
    Path(tempfile.tempdir).mkdir()
    run("digits", *options, f"run.results={folder / 'loaded'}", "run.name=run")
    resume(folder / "loaded" / "run")
    outcome(folder / "loaded")  # all modules are loaded by now: a fork need not look for them again
    run("digits", *options, f"run.results={folder / 'whole'}", "run.name=run")

    def counted() -> int:
        changes = Changes(folder)
        run("digits", *options, f"run.results={folder / 'counted'}", "run.name=run")
        return changes.number

    expected, (_, total) = outcome(folder / "whole"), in_a_fork(counted)
    points = range(total) if not number else sorted({i * total // number for i in range(number)})
    wrong: dict[int, Any] = {}
    for point in points:
        status, answer = try_point(options, folder / str(point), point)
        differs = {key: [answer.get(key), value] for key, value in expected.items() if answer.get(key) != value}
        if status or differs:
            wrong[point] = {"status": status, "error": answer.get("error"), "differs": differs}
    return {"points": total, "tried": len(points), "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
