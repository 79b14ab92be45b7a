"""Does a long run, or a sweep of many runs in one process, grow in memory, files, threads or shared memory?

`rounds` looks at one run again and again; `sweep` at a process that carries out run after run (three rounds each, so
that most of it is beginning and ending). Memory is that of the process and all that it started, by their shares of
what several map; these change with what else the machine runs, and `own_mb` is without what several map. Files,
threads and shared memory are those of all these processes together; each counts the shared memory that it has touched,
and what has a name in /dev/shm counts besides. Growth is the last look beside the first that counts. Each process keeps
the examples of clients that it has met (200 KB a client in `bench_cnn`, 20 MB for all), and of several workers one
meets a client for the first time even after hundreds of rounds. Clients of six images tell that from what a round
leaves behind: `data.options.num_examples=600`.

    python benchmarks/growth.py rounds [--rounds 1000] [--first 50] [--engines inline,processes-2,ray-2] [key=value ...]
    python benchmarks/growth.py sweep [--runs 50] [--first 5] [--engines inline,processes-2,ray-2] [key=value ...]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from round_times import machine

from umbel import Listener, run
from umbel.simulations.bench.processes import memory_bytes, tree

FIRST_ROUND, FIRST_RUN = 50, 5  # before them caches fill
SHARED = Path("/dev/shm")  # noqa: S108 - it is looked at
COLUMNS = ("memory_mb", "own_mb", "files", "threads", "shared_mb")


def own_bytes(process: psutil.Process) -> int:
    """Return what a process and all that it started have each for itself."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):  # it has just ended
            total += each.memory_full_info().uss
    return total


def look() -> dict[str, float]:
    """Return what this process, and all that it started, hold now."""
    own = psutil.Process()
    files, threads, mapped = 0, 0, 0
    for each in (own, *own.children(recursive=True)):
        with suppress(psutil.Error, OSError):  # it has just ended
            files += each.num_fds() if hasattr(each, "num_fds") else each.num_handles()
            threads += each.num_threads()
            mapped += shared_bytes(each.pid)
    named = sum(path.stat().st_size for path in SHARED.rglob("*") if path.is_file()) if SHARED.is_dir() else 0
    return {
        "memory_mb": memory_bytes(tree(own)) / 1e6,
        "own_mb": own_bytes(own) / 1e6,
        "files": files,
        "threads": threads,
        "shared_mb": (mapped + named) / 1e6,
    }


def shared_bytes(pid: int) -> int:
    """Return the shared memory that a process has touched, with and without a name; 0 where the system does not say."""
    status = Path(f"/proc/{pid}/status")
    found = re.search(r"^RssShmem:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    return int(found[1]) * 1024 if found else 0


class Looks(Listener):
    """Looks every so many rounds, and prints what it sees.

    Args:
        every: How many.
    """

    def __init__(self, every: int) -> None:
        self._every = every

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        if round_ % self._every == 0:
            tell(round_)

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        raise SystemExit(f"Client {client} failed in round {round_}: {reason}")


def tell(at: int) -> None:
    """Print a look as a line of JSON."""
    print(json.dumps({"at": at, **look()}), flush=True)


def carry_out(study: str, engine: str, number: int, given: Sequence[str]) -> None:
    """Do the work of a study in this process."""
    name, _, workers = engine.partition("-")
    overrides = [*given, f"engine.name={name}", *([f"engine.workers={workers}"] if workers else [])]
    with tempfile.TemporaryDirectory() as results:
        overrides.append(f"run.results={results}")
        if study == "rounds":
            run("bench_cnn", *overrides, f"run.rounds={number}", listener=Looks(FIRST_ROUND))
            return
        for at in range(1, number + 1):
            run("bench_cnn", *overrides, "run.rounds=3", f"run.seed={at}")
            tell(at)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("rounds", "sweep"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the experiment bench_cnn")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="round or run from which growth counts")
    parser.add_argument("--engines", default="inline,processes-2,ray-2")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    asked = parser.parse_intermixed_args()
    number, first = (asked.rounds, FIRST_ROUND) if asked.study == "rounds" else (asked.runs, FIRST_RUN)
    first = asked.first or first
    if asked.engine:
        carry_out(asked.study, asked.engine, number, asked.overrides)
        return
    print(machine(os.getloadavg()[0]))
    print(f"\n| engine, {asked.study} | {' | '.join(COLUMNS)} |\n|---|{'---:|' * len(COLUMNS)}")
    for engine in asked.engines.split(","):
        command = [sys.executable, __file__, asked.study, "--engine", engine]
        command += ["--rounds", str(asked.rounds), "--runs", str(asked.runs), *asked.overrides]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        looks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"at"')]
        counted = [each for each in looks if each["at"] >= first]
        for each in (counted[0], counted[-1]):
            print(f"| {engine}, {each['at']} | {' | '.join(f'{each[name]:,.1f}' for name in COLUMNS)} |")
        growth = [counted[-1][name] / counted[0][name] - 1 if counted[0][name] else 0.0 for name in COLUMNS]
        print(f"| growth | {' | '.join(f'{value:+.1%}' for value in growth)} |", flush=True)


if __name__ == "__main__":
    main()
