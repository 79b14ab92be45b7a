"""The engine of this machine's own processes: workers that are copies of one, and nothing beside them.

It is Ray's engine without Ray, for one machine: the same worker, the same lines and the same way of spreading a phase.
What the workers have in common (libraries, data, what the model was before the first round) is in memory once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

import umbel
from umbel.conf.schema import Experiment
from umbel.core import device as devices
from umbel.core.refusal import Refusal
from umbel.core.training.modes import num_together
from umbel.server.errors import RunStoppedError, raise_again
from umbel.simulations.engines.how_many import ProbeError, choose
from umbel.simulations.engines.lines import Lines, is_possible
from umbel.simulations.engines.nursery import Nursery
from umbel.simulations.engines.workers_port import WorkersPort


@dataclass(eq=False)
class _Worker:
    """What stands for a worker.

    Attributes:
        gpu: The GPU that it sees; "" leaves all.
        number: Its number, once it has been started.
    """

    gpu: str = ""
    number: int = -1


class ProcessesPort(WorkersPort):
    """A port to processes of this machine; a context manager."""

    def __init__(self, experiment: Experiment, run_config: dict[str, Any], memory: Path) -> None:
        if not is_possible():
            raise Refusal(
                "engine.name=processes shares memory in a way that only Linux has.",
                key="engine.name",
                remedy="Say inline or ray.",
            )
        super().__init__(experiment, run_config, memory)
        self._nursery: Nursery | None = None
        self._gpus: tuple[str, ...] = ()

    def __enter__(self) -> ProcessesPort:
        try:
            self._start_workers()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reach is not None:
            self._reach.close()
        if self._nursery is not None:
            self._nursery.close()

    def _start_workers(self) -> None:
        experiment = self._experiment
        device, config = devices.resolve(experiment.client.device), experiment.engine
        on_gpu = device.type == "cuda"
        if config.gpus_per_worker and not on_gpu:
            raise Refusal(
                f"engine.gpus_per_worker={config.gpus_per_worker:g}, and clients compute on {device}.",
                key="engine.gpus_per_worker",
                remedy="Leave it at 0, or set client.device=cuda on a machine that has a GPU.",
            )
        self._gpus = _gpus(device) if on_gpu and (config.workers == "auto" or config.gpus_per_worker) else ()
        data = self._load()
        umbel_file = str(Path(umbel.__file__).resolve())
        arguments = (self._run_config, self._node_config, umbel_file, data.arrays(), dict(data.meta))
        self._nursery = Nursery(arguments, may_copy(experiment), config.node_timeout_seconds)
        self._reach = Lines(_Born(self._nursery))
        if config.workers == "auto":
            cohort = -(-experiment.num_sampled // num_together(experiment.local, device))
            room = {"num_cpus": devices.num_cpus(), "threads": experiment.run.threads, "num_gpus": len(self._gpus)}
            _, found = choose(self, **room, num_machines=1, cohort=cohort)
            self.notices = (found,)
        elif self._gpus:
            on_each = int(1 / config.gpus_per_worker + 1e-9)
            self.more(config.workers or on_each * len(self._gpus), on_each)
        else:
            number = config.workers or devices.num_cpus()
            self.more(number, 1)
            self.notices = _of_one_gpu(number) if on_gpu else ()

    def more(self, number: int, on_each_gpu: int) -> list[Any]:
        """Start workers, so many of which share a GPU where they have one, and wait until they are ready."""
        if self._gpus and number > on_each_gpu * len(self._gpus):
            raise Refusal(
                f"engine.workers={number} with {on_each_gpu} on a GPU do not fit on {len(self._gpus)}.",
                key="engine.workers",
                remedy="Lower engine.workers or engine.gpus_per_worker.",
            )
        workers = [_Worker(self._gpus[i // on_each_gpu] if self._gpus else "") for i in range(number)]
        for worker in workers:
            self._reach.open(worker)
            self._workers.append(worker)
        try:
            answers = self._all_of(workers, "ready")
        except ProbeError as error:
            raise RunStoppedError(f"A worker did not become ready: {error}.") from error
        for _, end, _ in answers:
            if end is not None:
                raise_again(end | {"text": f"A worker cannot start: {end.get('text')}"})
        return workers

    def end(self, workers: Sequence[Any]) -> None:
        """End workers that are not needed."""
        for worker in workers:
            self._end(worker)
            self._workers.remove(worker)

    def replace(self, worker: Any) -> Any:
        """Put a new worker in the place of one that died, or that must."""
        self._end(worker)
        other = _Worker(worker.gpu)
        self._workers[self._workers.index(worker)] = other
        self._reach.open(other)
        return other

    def _end(self, worker: Any) -> None:
        assert self._nursery is not None, "it started the worker"
        self._reach.forget(worker)
        self._nursery.end(worker.number)

    def look(self) -> None:
        """Raise `RunStoppedError` where what starts workers has ended."""
        assert self._nursery is not None, "the port was entered"
        self._nursery.check()


class _Born:
    """Has workers come out of a nursery."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery

    def begin(self, worker: _Worker, address: str, number: int) -> int:
        """Start a worker; its number stands for it."""
        worker.number = number
        self._nursery.begin(number, address, {"CUDA_VISIBLE_DEVICES": worker.gpu} if worker.gpu else {})
        return number

    def last_words(self, task: int, has_hung_up: bool) -> str:
        """Return why a worker has ended; "" while it goes on."""
        return self._nursery.last_words(task, has_hung_up)


def may_copy(experiment: Experiment) -> bool:
    """Say whether a copy of this process can compute.

    It cannot wait for threads that it does not have, nor use a CUDA that this process has begun.
    """
    return experiment.run.threads == 1 and not torch.cuda.is_available()


def _gpus(device: torch.device) -> tuple[str, ...]:
    """Return what each GPU that the experiment may use is called in the environment; "" is the one that it names."""
    if ":" in str(device):
        return ("",)
    seen = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    return tuple(seen or [str(i) for i in range(torch.cuda.device_count())])


def _of_one_gpu(number: int) -> tuple[str, ...]:
    told = f"{number} workers share one GPU: engine.gpus_per_worker says how many, engine.workers=auto finds it out."
    return (told,) if number > 1 else ()
