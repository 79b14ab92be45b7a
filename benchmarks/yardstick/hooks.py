"""Counts in every process of a contender, from outside: optimiser steps and, if asked, seconds by stage.

`hook/sitecustomize.py` installs it wherever Python starts with that folder on its path, so in the workers of Ray and
Flower as well. Each process has a file of numbers that it maps, so that nothing is lost when it is killed:

    steps, when the first one was over, then for each stage of `stages.py` its seconds and its calls

A stage's seconds are its own: without those of stages that it calls.
"""

from __future__ import annotations

import functools
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yardstick.stages import FUNCTIONS, STAGES

FOLDER, PROFILE = "YARDSTICK_COUNTS", "YARDSTICK_PROFILE"
OF_SERVER = "is_of_server"  # an optimiser with this attribute is the server's; its steps are no client's
_STEPS, _FIRST, _HEAD = 0, 1, 2
_NUMBERS = _HEAD + 2 * len(STAGES)


class Counts:
    """This process's numbers, in a file of its own; a forked process begins another one.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = 0
        self._numbers = memoryview(bytearray(8 * _NUMBERS)).cast("d")

    def mine(self) -> memoryview[float]:
        """Return the numbers of the process that asks."""
        if self._process != os.getpid():
            self._process = os.getpid()
            path = self._folder / str(self._process)
            with path.open("w+b") as file:
                file.truncate(8 * _NUMBERS)
                self._numbers = memoryview(mmap.mmap(file.fileno(), 8 * _NUMBERS)).cast("d")
        return self._numbers

    def count_step(self, optimizer: Any, *_: Any) -> None:
        """Count a step; torch calls this after each step of each optimiser."""
        if getattr(optimizer, OF_SERVER, False):
            return
        numbers = self.mine()
        if not numbers[_STEPS]:
            numbers[_FIRST] = time.monotonic()
        numbers[_STEPS] += 1


class Timer:
    """Times functions, each by the stage that it belongs to.

    Args:
        counts: Where seconds and calls go.
        clock: Returns the time in seconds.
    """

    def __init__(self, counts: Counts, clock: Callable[[], float] = time.perf_counter) -> None:
        self._counts = counts
        self._clock = clock
        self._local = threading.local()

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """Return a function that does the same and is timed."""
        place = _HEAD + 2 * STAGES.index(stage)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            inner = self._local.__dict__.setdefault("inner", [])  # seconds that were spent in stages below, by depth
            inner.append(0.0)
            start = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = self._clock() - start
                numbers = self._counts.mine()
                numbers[place] += seconds - inner.pop()
                numbers[place + 1] += 1
                if inner:
                    inner[-1] += seconds

        return timed


class AfterImport:
    """A finder of modules that acts on some of them as soon as they are loaded.

    Args:
        actions: What to do with a module, by its name.
    """

    def __init__(self, actions: dict[str, Callable[[Any], None]]) -> None:
        self._actions = actions

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Let the other finders find a module, and have its loader act in the end."""
        if name not in self._actions:
            return None
        finders = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is None or spec.loader is None:
            return spec
        load, act = spec.loader.exec_module, self._actions[name]

        def load_and_act(module: Any) -> None:
            load(module)
            act(module)

        spec.loader.exec_module = load_and_act  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Have this process count, as its environment asks."""
    counts = Counts(Path(os.environ[FOLDER]))
    actions: dict[str, Callable[[Any], None]] = {
        "torch.optim.optimizer": lambda module: module.register_optimizer_step_post_hook(counts.count_step)
    }
    if os.environ.get(PROFILE):
        timer = Timer(counts)
        actions |= {module: functools.partial(_time_all, timer, stages) for module, stages in FUNCTIONS.items()}
    sys.meta_path.insert(0, AfterImport(actions))


def _time_all(timer: Timer, stages: dict[str, str], module: Any) -> None:
    """Put timed functions in the place of a module's, before anybody takes them from there."""
    for name, stage in stages.items():
        owner, _, attribute = name.rpartition(".")
        holder = getattr(module, owner) if owner else module
        setattr(holder, attribute, timer.timed(getattr(holder, attribute), stage))


def read(folder: Path) -> dict[int, list[float]]:
    """Return the numbers of each process that counted, by its id."""
    files = {int(path.name): path.read_bytes() for path in folder.iterdir()}
    return {process: list(memoryview(content).cast("d")) for process, content in files.items() if content}


def steps(numbers: dict[int, list[float]]) -> int:
    """Return the steps of all processes."""
    return int(sum(each[_STEPS] for each in numbers.values()))


def first_step(numbers: dict[int, list[float]]) -> float | None:
    """Return when the first step of all was over, by `time.monotonic`; None where no step was counted."""
    return min((each[_FIRST] for each in numbers.values() if each[_STEPS]), default=None)


def by_stage(numbers: list[float]) -> dict[str, tuple[float, int]]:
    """Return a process's seconds and calls of each stage."""
    return {stage: (numbers[_HEAD + 2 * i], int(numbers[_HEAD + 2 * i + 1])) for i, stage in enumerate(STAGES)}
