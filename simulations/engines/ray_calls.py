"""Ray's workers reached by calls of Ray's, wherever they are: what is large lies in the object store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray

from umbel.core.flat import flattened
from umbel.core.records import reason
from umbel.core.wire.packed import Packed
from umbel.server.port import Task
from umbel.simulations.engines.worker import Opening
from umbel.simulations.engines.workers import WorkerDiedError, WorkerFailedError

_LOOK_SECONDS = 0.1  # for workers that have not come, while there is no other


class RayCalls:
    """Each span is a call, and its answer what the call returns."""

    def __init__(self) -> None:
        self._coming: dict[Any, Any] = {}
        self._machines: dict[Any, str] = {}  # of each worker, as Ray calls them
        self._given: dict[Any, Any] = {}  # to whom

    def open(self, worker: Any) -> None:
        """Have a worker say when it is ready: Ray may have no place for it, and would wait for ever."""
        self._coming[worker] = worker.ready.remote()

    def is_there(self, worker: Any) -> bool:
        """Say whether a worker has come."""
        if worker not in self._coming:
            return True
        if not ray.wait([self._coming[worker]], timeout=0)[0]:
            return False
        try:
            _, end, self._machines[worker] = ray.get(self._coming[worker])
        except ray.exceptions.RayError as error:
            raise WorkerDiedError(first_line(error)) from error
        if end is not None:
            raise WorkerDiedError(str(end.get("text")))
        del self._coming[worker]
        return True

    def forget(self, worker: Any) -> None:
        """Nothing is kept of a worker."""
        self._coming.pop(worker, None)
        self._machines.pop(worker, None)
        self._given = {given: whose for given, whose in self._given.items() if whose is not worker}

    def close(self) -> None:
        """Nothing is kept."""

    def lay(self, task: Task) -> Any:
        """Put a phase into the object store."""
        outline, memory = flattened(task.payload.trees)
        return ray.put(Opening(task.work, outline, dict(task.payload.numbers), memory))

    def clear(self) -> None:
        """Nothing is kept of a phase that is over: Ray lets go of what nobody refers to."""

    def give(self, worker: Any, opening: Any, clients: tuple[int, ...], closes: bool) -> Any:
        """Call a worker."""
        return self._noted(worker, worker.run.remote(opening, clients, closes))

    def ask(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Call a method of a worker's that is no part of a phase."""
        return self._noted(worker, getattr(worker, method).remote(*arguments))

    def _noted(self, worker: Any, given: Any) -> Any:
        self._given[given] = worker
        return given

    def wait(self, given: Sequence[Any], seconds: float) -> Any:
        """Return a call that is done; None when there is none in time."""
        if not given:
            time.sleep(min(seconds, _LOOK_SECONDS))
            return None
        done, _ = ray.wait(list(given), num_returns=1, timeout=seconds)
        return next((each for each in given if each == done[0]), None) if done else None

    def take(self, given: Any) -> Any:
        """Return what a call returned."""
        machine = self._machines.get(self._given.pop(given))
        try:
            answer = ray.get(given)
        except ray.exceptions.RayTaskError as error:
            raise WorkerFailedError(reason(error.cause or error)) from error
        except ray.exceptions.RayError as error:
            gone = any(node["NodeID"] == machine and not node["Alive"] for node in ray.nodes())
            raise WorkerDiedError(first_line(error), by_machine=gone) from error
        return answer.unpacked() if isinstance(answer, Packed) else answer


def first_line(error: BaseException) -> str:
    """Return an error's class and the first line of its text: Ray's go on for pages."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
