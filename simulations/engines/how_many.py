"""How many Ray workers: as many as memory holds and as are of use, by a measurement of one client's training.

It is what `engine.workers=auto` asks. The number changes no result, only how long it takes, so that a measurement may
decide. A worker trains a copy of the experiment's model on the client with most examples, for half a second: alone,
which says how much memory it takes; then two at once on each device, four, and so on, as long as all together do a
tenth more steps a second than before.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import psutil

if TYPE_CHECKING:  # it is imported where workers are started, which load what they need themselves
    from umbel.client.host import Host

SECONDS = 0.5  # that a probe lasts
GAIN = 1.1  # in steps a second, for which more workers are taken
_SHARE_OF_MEMORY = 0.9  # of what is free
_MOST_ON_A_GPU = 16
_STEPS = 4  # between looks at the clock
_LEAST_BYTES = 1 << 20


@dataclass(frozen=True)
class Probed:
    """What a worker found.

    Attributes:
        steps_per_second: Of training.
        own_bytes: Memory that it alone takes: of the device, on a GPU; else its process's.
        free_bytes: Memory that is left there beside it.
        gpu: Which GPU it has on its machine; "" without one.
    """

    steps_per_second: float
    own_bytes: int
    free_bytes: int
    gpu: str = ""

    @property
    def fit(self) -> int:
        """How many such workers the memory holds, this one among them."""
        return 1 + int(_SHARE_OF_MEMORY * self.free_bytes / max(self.own_bytes, _LEAST_BYTES))


def probe(host: Host, gpu: str = "", seconds: float = SECONDS) -> Probed:
    """Train a copy of a host's model for a while; nothing of it is kept.

    Args:
        host: Its model, data and way of training.
        gpu: Which GPU this worker has, for the answer.
        seconds: How long.
    """
    import torch

    from umbel.core.rng import generator
    from umbel.core.training import train

    config = replace(host.experiment.local, epochs=0, max_steps=_STEPS)
    images, labels = host.prepare(host.data.client(int(host.data.num_train.argmax())).train)
    model = copy.deepcopy(host.model)
    vars(model).pop("features", None)  # compiled for the model that it is a copy of

    def some() -> int:
        report = train(model, images, labels, config, batches=generator(0), noise=generator(1))
        if host.device.type == "cuda":
            torch.cuda.synchronize(host.device)
        return report.num_steps

    some()  # what is compiled, chosen and allocated once
    begin, steps = time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < seconds or not steps:
        steps += some()
    own, free = _memory(host)
    return Probed(steps / max(passed, 1e-9), own, free, gpu)


def _memory(host: Host) -> tuple[int, int]:
    import torch

    if host.device.type != "cuda":
        return psutil.Process().memory_full_info().uss, psutil.virtual_memory().available
    free, whole = torch.cuda.mem_get_info(host.device)
    own = torch.cuda.max_memory_reserved(host.device)
    context = min(max(whole - free - own, 0), 1 << 30)  # of CUDA itself; what others hold there is not ours
    return own + context, free


class ProbeError(RuntimeError):
    """A probe raised; its text says why."""


class Start(Protocol):
    """Starts workers and ends them."""

    def more(self, number: int, on_each_gpu: int) -> list[Any]:
        """Start workers, so many of which share a GPU where they have one, and wait until they are ready."""

    def end(self, workers: Sequence[Any]) -> None:
        """End workers."""

    def probe(self, workers: Sequence[Any]) -> list[Probed]:
        """Have workers probe, all at once.

        Raises:
            ProbeError: One of them cannot.
        """


def choose(
    start: Start, num_cpus: int, threads: int, num_gpus: int, num_machines: int, cohort: int
) -> tuple[list[Any], str]:
    """Start as many workers as are of use; return them, and how that was found.

    Args:
        start: Starts workers.
        num_cpus: CPUs for them.
        threads: Of each worker.
        num_gpus: GPUs for them; 0 where they compute on CPUs.
        num_machines: Over which they are spread.
        cohort: Clients of a round, at most: more workers have nothing to do.
    """
    devices = max(num_gpus, 1)
    most = max(min(max(num_cpus // threads, 1) // devices, -(-cohort // devices)), 1)
    most = min(most, _MOST_ON_A_GPU) if num_gpus else most
    on, limits = (" on each GPU" if num_gpus else ""), f"{num_cpus} CPUs, {cohort} clients a round"
    workers = start.more(1, _MOST_ON_A_GPU)
    try:
        alone = start.probe(workers)[0]
    except ProbeError as error:
        start.end(workers)
        return start.more(devices * most, most), f"engine.workers=auto: {most}{on} ({limits}; no probe, for {error})."
    room = alone.fit * (1 if num_gpus else num_machines)
    most = min(most, room)
    if num_gpus:  # a worker's share is set when it starts
        start.end(workers)
        workers = start.more(devices * most, most)
    elif most > 1:
        workers += start.more(most - 1, most)
    kept, found = _tried(start, _by_device(start, workers, devices), most, alone.steps_per_second)
    start.end([worker for worker in workers if all(worker is not each for each in kept)])
    speeds = ", ".join(f"{number}: {speed:.0f}" for number, speed in found.items())
    limits = f"memory holds {room}{on}, {limits}"
    return kept, (
        f"engine.workers=auto: {len(kept) // devices}{on} ({limits}; steps a second by workers{on}: {speeds})."
    )


def _by_device(start: Start, workers: Sequence[Any], devices: int) -> list[list[Any]]:
    """Return workers by the GPU that they have; all of them, where there is one device."""
    if devices == 1:
        return [list(workers)]
    groups: dict[str, list[Any]] = {}
    for worker, probed in zip(workers, start.probe(workers), strict=True):
        groups.setdefault(probed.gpu, []).append(worker)
    return list(groups.values())


def _tried(start: Start, groups: list[list[Any]], most: int, alone: float) -> tuple[list[Any], dict[int, float]]:
    """Return the workers that are of use, and steps a second on a device by their number there."""
    chosen, found = 1, {1: alone}
    for number in _doubled(most):
        asked = [worker for group in groups for worker in group[:number]]
        found[number] = sum(probed.steps_per_second for probed in start.probe(asked)) / len(groups)
        if found[number] < GAIN * found[chosen]:
            break
        chosen = number
    return [worker for group in groups for worker in group[:chosen]], found


def _doubled(most: int) -> list[int]:
    """Return 2, 4, 8 and so on below a number, and the number."""
    numbers = []
    number = 2
    while number < most:
        numbers.append(number)
        number *= 2
    return [*numbers, most] if most > 1 else []
