"""Run a contender in a process of its own, and look at it from outside."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from umbel.simulations.bench.processes import Memory, end, tree
from yardstick import hooks, pfl_environment
from yardstick.contenders import Contender
from yardstick.marks import CHANNEL
from yardstick.processes import busy_seconds, cpu_seconds

TIMEOUT_SECONDS = 3600.0


class FailedError(RuntimeError):
    """A contender did not come to its end; the message is the reason."""


@dataclass
class Measurement:
    """What was seen of a contender in one repeat.

    Attributes:
        contender: Its name.
        repeat: Number of the repeat, from 1.
        load: Load average, over a minute, before the repeat.
        failure: Why there is nothing else; "" where there is.
        first_step: Seconds from its start to the end of the first optimiser step; None where none was seen.
        startup: Seconds from its start to where the clock starts, with the rounds that warm up.
        rounds: Seconds of the rounds that count.
        whole: Seconds from its start to its end.
        cpu_startup: Processor seconds of its processes up to where the clock starts.
        cpu_rounds: Likewise of the rounds that count.
        peak_bytes: Largest sum of its processes' proportional set sizes.
        end_bytes: The same when the rounds are over.
        num_processes: How many processes it has then.
        num_steps: Optimiser steps in the rounds that count; None where none was seen.
        others: Cores that somebody else kept busy meanwhile.
        loss: Mean loss of its last model over all training examples.
        norm: Norm of that model's parameters.
        stages: If asked for: seconds and calls of each stage in the rounds that count, by the process's role.
    """

    contender: str
    repeat: int = 0
    load: float = 0.0
    failure: str = ""
    first_step: float | None = None
    startup: float = 0.0
    rounds: float = 0.0
    whole: float = 0.0
    cpu_startup: float = 0.0
    cpu_rounds: float = 0.0
    peak_bytes: int = 0
    end_bytes: int = 0
    num_processes: int = 0
    num_steps: int | None = None
    others: float = 0.0
    loss: float | None = None
    norm: float | None = None
    stages: dict[str, dict[str, tuple[float, int]]] = field(default_factory=dict)


@dataclass
class _Started:
    """A contender that runs.

    Attributes:
        process: Its first process.
        root: The same, as it is looked at.
        channel: Leads to its clock.
        memory: Looks at its memory.
        counts: Folder of what its processes count.
        log: What it prints.
        began: When it was started, by `time.monotonic`.
        seen: All processes that it ever was seen to have.
    """

    process: subprocess.Popen[bytes]
    root: psutil.Process
    channel: socket.socket
    memory: Memory
    counts: Path
    log: Path
    began: float
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    def next_mark(self) -> dict[str, Any]:
        """Wait until the contender says something, and look at its memory meanwhile.

        Raises:
            FailedError: It ends, or takes too long.
        """
        words = b""
        while not words.endswith(b"\n"):
            if time.monotonic() - self.began > TIMEOUT_SECONDS:
                raise FailedError(f"it took longer than {TIMEOUT_SECONDS:g} s")
            if select.select([self.channel], [], [], self.memory.due)[0]:
                more = self.channel.recv(4096)
                if not more:
                    raise FailedError(f"it ended before its rounds were over: {last_words(self.log)}")
                words += more
            else:
                self.memory.look()
                self.seen |= {process.pid: process for process in tree(self.root)}
                if self.process.poll() is not None:
                    raise FailedError(f"it ended with status {self.process.returncode}: {last_words(self.log)}")
        return dict(json.loads(words))

    def go_on(self) -> None:
        """Let it go on."""
        self.channel.sendall(b".")


@dataclass(frozen=True)
class _Used:
    """Processor time up to now: of the contender, of the whole machine, of this process; and what was counted."""

    own: float
    machine: float
    ours: float
    at: float
    counts: dict[int, list[float]]

    @classmethod
    def now(cls, started: _Started) -> _Used:
        times = psutil.Process().cpu_times()
        own = cpu_seconds(tree(started.root))
        return cls(own, busy_seconds(), times.user + times.system, time.monotonic(), hooks.read(started.counts))


def last_words(log: Path) -> str:
    """Return the last line that a contender printed."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


def run(contender: Contender, workload: Path, outcome: Path, profile: bool = False) -> Measurement:
    """Measure a contender once.

    Args:
        contender: Who.
        workload: Folder of the work.
        outcome: Where the last model is to be written.
        profile: Time the stages as well.
    """
    try:
        command = [*contender.command(), json.dumps(contender.options), str(workload), str(outcome)]
    except pfl_environment.NoEnvironmentError as error:
        return Measurement(contender.name, failure=str(error))
    with tempfile.TemporaryDirectory(prefix="yardstick-") as temporary:
        started = _start(contender, command, Path(temporary), profile)
        try:
            return _watch(contender, started, profile)
        except FailedError as error:
            return Measurement(contender.name, failure=str(error))
        finally:
            started.channel.close()
            end([*started.seen.values(), started.root], patience_seconds=10.0)
            started.process.wait()


def _start(contender: Contender, command: list[str], folder: Path, profile: bool) -> _Started:
    counts, log = folder / "counts", folder / "log"
    counts.mkdir()
    ours, theirs = socket.socketpair()
    path = os.pathsep.join(map(str, contender.path))
    env = os.environ | {"PYTHONPATH": path, hooks.FOLDER: str(counts), CHANNEL: str(theirs.fileno())}
    if profile:
        env[hooks.PROFILE] = "1"
    began = time.monotonic()
    with log.open("wb") as file, theirs:
        process = subprocess.Popen(
            command, cwd=folder, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    root = psutil.Process(process.pid)
    return _Started(process, root, ours, Memory(root), counts, log, began)


def _watch(contender: Contender, started: _Started, profile: bool) -> Measurement:
    started.next_mark()
    startup = time.monotonic() - started.began
    started.memory.look()
    first = hooks.first_step(hooks.read(started.counts))
    before = _Used.now(started)
    started.go_on()
    words = started.next_mark()
    after = _Used.now(started)
    processes = tree(started.root)
    started.seen |= {process.pid: process for process in processes}
    end_bytes = started.memory.look()
    started.go_on()
    if status := started.process.wait(timeout=TIMEOUT_SECONDS):
        raise FailedError(f"it ended with status {status}: {last_words(started.log)}")
    others = (after.machine - before.machine) - (after.own - before.own) - (after.ours - before.ours)
    return Measurement(
        contender.name,
        first_step=None if first is None else first - started.began,
        startup=startup,
        rounds=float(words["seconds"]),
        whole=time.monotonic() - started.began,
        cpu_startup=before.own,
        cpu_rounds=after.own - before.own,
        peak_bytes=started.memory.peak_bytes,
        end_bytes=end_bytes,
        num_processes=len(processes),
        num_steps=None if first is None else hooks.steps(after.counts) - hooks.steps(before.counts),
        others=max(others, 0.0) / (after.at - before.at),
        stages=roles(before.counts, after.counts, started.process.pid) if profile else {},
    )


def roles(
    before: dict[int, list[float]], after: dict[int, list[float]], first: int
) -> dict[str, dict[str, tuple[float, int]]]:
    """Return what each process did between two looks, by stage: the first one, and each that trained.

    Args:
        before: Numbers of each process at the first look.
        after: The same at the second one.
        first: Id of the contender's first process.
    """
    stages: dict[str, dict[str, tuple[float, int]]] = {}
    for process in sorted(after):
        start = hooks.by_stage(before.get(process) or [0.0] * len(after[process]))
        spent = {
            stage: (seconds - start[stage][0], calls - start[stage][1])
            for stage, (seconds, calls) in hooks.by_stage(after[process]).items()
        }
        if process == first:
            stages = {"driver": spent} | stages
        elif spent["train"][1]:
            stages[f"worker {sum(name != 'driver' for name in stages) + 1}"] = spent
    return stages
