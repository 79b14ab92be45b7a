"""Measure contenders: each a tree of processes of its own, one after the other, seen from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import psutil

from umbel.conf.load import as_yaml, load
from umbel.conf.schema import Experiment
from umbel.core import leftovers
from umbel.core.wire.work import ClientTime
from umbel.simulations.bench.processes import Memory, end, tree
from umbel.strategies.base import EVALUATE

LOOP = "loop"
# name -> overrides, of ways of training that have bits of their own
MODES: Mapping[str, tuple[str, ...]] = {
    "channels-last": ("client.channels_last=true",),
    "step": ("client.compile=step",),
    "together-4": ("client.together=4",),
}
_NOT_STAGES = ("setup", "server", EVALUATE, "checkpoint")
_LAST_LINES = 3


@dataclass(frozen=True)
class Contender:
    """Something that carries the experiment out.

    Attributes:
        name: Its name.
        overrides: On top of the experiment's.
        kind: `loop`, or `umbel`.
    """

    name: str
    overrides: tuple[str, ...] = ()
    kind: str = "umbel"


@dataclass(frozen=True)
class Row:
    """What was seen of a contender.

    Attributes:
        name: Its name.
        overrides: What it has on top of the experiment.
        failure: Why there is nothing else; "" where there is.
        startup: Seconds from its start to where rounds count.
        rounds: Seconds of each round that counts, without evaluations and checkpoints.
        memory_bytes: The most that all of its processes had together.
        stages: Mean seconds a round: `clients` (the process that is at clients longest), `exchange` (that, waiting and
            handing over), `server`.
        busy: Share of the exchange in which its processes are at clients, on average over them.
        longest: The longest that a client took, as a share of a round.
        evaluation: Seconds of an evaluation; 0 without.
        checkpoint: Seconds of a checkpoint; 0 without.
        times: Of the last rounds, by phase, when which process ran which client.
        ends: When those rounds ended, in seconds since the epoch.
        throughput: Examples a second by batch size; of the loop.
    """

    name: str
    overrides: tuple[str, ...] = ()
    failure: str = ""
    startup: float = 0.0
    rounds: tuple[float, ...] = ()
    memory_bytes: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)
    busy: float = 0.0
    longest: float = 0.0
    evaluation: float = 0.0
    checkpoint: float = 0.0
    times: Sequence[Mapping[str, Sequence[ClientTime]]] = ()
    ends: Sequence[float] = ()
    throughput: Mapping[int, float] = field(default_factory=dict)

    @property
    def round(self) -> float:
        """Seconds of a round, by the median."""
        return median(self.rounds)


def contenders(
    experiment: Experiment, engines: Sequence[str], workers: Sequence[int], modes: Sequence[str], has_loop: bool
) -> list[Contender]:
    """Return who is to be measured.

    Args:
        experiment: The experiment.
        engines: Those with workers, of processes and ray.
        workers: Numbers of workers.
        modes: Names of `MODES`.
        has_loop: A plain loop can do the same training.
    """
    inline = ("engine.name=inline",)
    found = [Contender(LOOP, inline, LOOP)] if has_loop else []
    found.append(Contender("inline", inline))
    found += [Contender(f"inline, {mode}", (*inline, *MODES[mode])) for mode in modes]
    for engine in engines:
        found += [
            Contender(f"{engine}, {n} workers", (f"engine.name={engine}", f"engine.workers={n}")) for n in workers
        ]
    return found


def measure(
    contender: Contender,
    experiment: str,
    overrides: Sequence[str],
    rounds: int,
    warm: int,
    on_wait: Callable[[], None] = lambda: None,
) -> Row:
    """Measure a contender in a process of its own; whatever ends it is a row's failure.

    Args:
        contender: Who.
        experiment: Name or path.
        overrides: The user's.
        rounds: That count.
        warm: That do not, before them.
        on_wait: Called now and then.
    """
    own = (*overrides, *contender.overrides, "run.until=", "run.patience=0")
    asked = {
        "kind": contender.kind,
        "yaml": as_yaml(load(experiment, own)),
        "rounds": rounds,
        "warm": warm,
    }
    with tempfile.TemporaryDirectory(prefix=leftovers.prefix("bench")) as temporary:
        folder = Path(temporary)
        (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        command = [sys.executable, "-m", "umbel.simulations.bench.contender"]
        command += [str(folder / "asked.json"), str(folder / "answer.json")]
        began = time.time()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        root = psutil.Process(process.pid)
        memory, seen = Memory(root), {process.pid: root}
        try:
            while process.poll() is None:
                memory.look()
                seen |= {each.pid: each for each in tree(root)}
                on_wait()
                time.sleep(min(memory.due, 0.2))
        finally:
            if process.poll() is None:
                end(list(seen.values()), patience_seconds=0.0)
                process.wait()
        if process.returncode:
            return Row(contender.name, contender.overrides, failure=_last_words(folder / "log"))
        answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    return row_of(contender, answer, began, memory.peak_bytes)


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " ".join(lines[-_LAST_LINES:])[:500] or "it ended without a word"


def row_of(contender: Contender, answer: Mapping[str, Any], began: float, memory_bytes: int) -> Row:
    """Return what a contender's answer comes to.

    Args:
        contender: Who.
        answer: What `contender.py` writes.
        began: When it was started, in seconds since the epoch.
        memory_bytes: The most memory that it had.
    """
    rounds, startup = answer["rounds"], answer["counts_from"] - began
    seconds = tuple(each["seconds"] for each in rounds)
    row = Row(contender.name, contender.overrides, "", startup, seconds, memory_bytes)
    if contender.kind == LOOP:
        throughput = {int(size): value for size, value in answer["throughput"].items()}
        return replace(row, throughput=throughput)
    times = [{phase: [ClientTime(*c) for c in each] for phase, each in r["clients"].items()} for r in rounds]
    evaluations = [r["stages"].get("evaluate", 0.0) for r in rounds]
    checkpoints = [r["stages"].get("checkpoint", 0.0) for r in rounds]
    exchange = fmean(sum(s for name, s in r["stages"].items() if name not in _NOT_STAGES) for r in rounds)
    processes = [_by_process(each) for each in times]
    num = max(len({process for each in processes for process in each}), 1)
    stages = {
        "clients": fmean(max(each.values(), default=0.0) for each in processes),
        "exchange": exchange,
        "server": fmean(r["stages"].get("server", 0.0) for r in rounds),
    }
    at_clients = fmean(sum(each.values()) for each in processes) / num
    longest = max((c.seconds for each in times for phase in each.values() for c in phase), default=0.0)
    return replace(
        row,
        stages=stages,
        busy=at_clients / exchange if exchange else 0.0,
        longest=longest / median(seconds),
        evaluation=max(evaluations),
        checkpoint=max(checkpoints),
        times=times,
        ends=[each["ended"] for each in rounds],
    )


def _by_process(times: Mapping[str, Sequence[ClientTime]]) -> dict[int, float]:
    """Return how long each process was at clients."""
    total: dict[int, float] = {}
    for phase, each in times.items():
        if phase != EVALUATE:
            for time_ in each:
                total[time_.process] = total.get(time_.process, 0.0) + time_.seconds
    return total
