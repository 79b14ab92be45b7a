"""How many workers: as many as memory holds and as are of use, by a measurement of clients' training.

It is what `engine.workers=auto` asks. The number changes no result, only how long it takes, so that a measurement may
decide. A worker trains a copy of the experiment's model on the client with most examples, for half a second and as many
at once as it would: alone, which says how much memory it takes; then two workers at once on each device, four, and so
on, as long as all together do a tenth more steps a second than before.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:  # they are imported where workers run, which load what they need themselves
    from umbel.client.host import Host

SECONDS = 0.5  # that a probe lasts
GAIN = 1.1  # in steps a second, for which more workers are taken
MOST_ON_A_GPU = 16
_SHARE_OF_MEMORY = 0.9  # of what is free
_LEFT = 0.05  # of a machine's memory, beyond which Ray ends workers, and others the system
_STEPS = 4  # between looks at the clock
_LEAST_BYTES = 1 << 20
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Probed:
    """What a worker found.

    Attributes:
        steps_per_second: Of training.
        fit: How many such workers memory holds, this one among them: on its GPU, or on its machine.
        gpu: Which GPU it has, of which machine; "" without one.
    """

    steps_per_second: float
    fit: int
    gpu: str = ""


class ProbeError(RuntimeError):
    """A probe raised; its text says why."""


class Training:
    """Trains a copy of a host's model; nothing of it is kept.

    Args:
        host: Its model, data and way of training.
    """

    def __init__(self, host: Host) -> None:
        import torch

        from umbel.core.losses import CrossEntropy
        from umbel.core.rng import generator
        from umbel.core.training import modes, train
        from umbel.core.training.together import Job, train_together
        from umbel.models.base import compile_features

        local = host.experiment.local
        config = replace(local, epochs=0, max_steps=_STEPS)
        images, labels = host.prepare(host.data.client(int(host.data.num_train.argmax())).train)
        model = copy.deepcopy(host.model)
        if local.compile == "model":  # what is compiled reads the parameters of the model that this is a copy of
            vars(model).pop("features", None)
            compile_features(model)
        loss = CrossEntropy(local.label_smoothing, local.class_weights).of(labels, host.data.num_classes)
        width = modes.num_together(local, host.device)

        def some() -> int:
            batches, noise = generator(0), generator(1)
            if width > 1:
                job = Job.of(model, images, labels, config, batches=batches, noise=noise, loss=loss)
                steps = sum(done.report.num_steps for done in train_together([job] * width))
            else:
                steps = train(model, images, labels, config, batches=batches, noise=noise, loss=loss).num_steps
            if host.device.type == "cuda":
                torch.cuda.synchronize(host.device)
            return steps

        self._some: Callable[[], int] = some
        self._host = host
        some()  # what is compiled, chosen and allocated once

    def probe(self, gpu: str = "", seconds: float = SECONDS) -> Probed:
        """Train for a while.

        Args:
            gpu: Which GPU this worker has, for the answer.
            seconds: How long.
        """
        begin, steps = time.perf_counter(), 0
        while (passed := time.perf_counter() - begin) < seconds or not steps:
            steps += self._some()
        return Probed(steps / max(passed, 1e-9), _fit(self._host), gpu)


def _fit(host: Host) -> int:
    """Return how many workers memory holds, this one among them: the machine's, and the device's where it has one."""
    import torch

    memory, own = psutil.virtual_memory(), psutil.Process().memory_full_info()
    peak = own.uss + max(_most_resident() - own.rss, 0)
    free = min(memory.available - _LEFT * memory.total, _free_of_group())
    fit = _more(free, peak)
    if host.device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(host.device)
        reserved = torch.cuda.max_memory_reserved(host.device)
        context = min(max(whole - free - reserved, 0), 1 << 30)  # of CUDA itself; what others hold there is not ours
        fit = min(fit, _more(free, reserved + context))
    return 1 + fit


def _most_resident() -> int:
    """Return the most memory that this process has had, in bytes; 0 where the system does not say."""
    unit = 1 if sys.platform == "darwin" else 1024
    return 0 if resource is None else int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def _more(free: float, own: float) -> int:
    return max(int(_SHARE_OF_MEMORY * free / max(own, _LEAST_BYTES)), 0)


def _free_of_group() -> float:
    """Return what the limits of a container or a scheduler leave; infinity where there are none."""
    try:
        most, now = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return float(most) - float(now) if most != "max" else float("inf")
    except (OSError, ValueError):
        return float("inf")


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
        cohort: Clients of a round, at most, or so many squads of those that train at once: more workers have nothing
            to do.
    """
    devices = max(num_gpus, 1)
    most = max(min(max(num_cpus // threads, 1) // devices, -(-cohort // devices)), 1)
    most = min(most, MOST_ON_A_GPU) if num_gpus else most
    on, limits = (" on each GPU" if num_gpus else ""), f"{num_cpus} CPUs, work for {cohort} in a round"
    workers = start.more(1, MOST_ON_A_GPU)
    try:
        alone = start.probe(workers)[0]
    except ProbeError as error:
        start.end(workers)
        told = f"engine.workers=auto: 1{on}, since none could be measured ({error}); say another number if more fit."
        return start.more(devices, 1), told
    room = alone.fit * (1 if num_gpus else num_machines)
    most = min(most, room)
    if num_gpus:  # a worker's share is set when it starts
        start.end(workers)
        workers = start.more(devices * most, most)
    elif most > 1:
        workers += start.more(most - 1, most)
    groups = _by_device(start, workers, devices)
    chosen, found = _tried(start, groups, most, alone.steps_per_second)
    kept = [worker for group in groups for worker in group[:chosen]]
    start.end([worker for worker in workers if all(worker is not each for each in kept)])
    speeds = ", ".join(f"{number}: {speed:.0f}" if speed else f"{number}: failed" for number, speed in found.items())
    limits = f"memory holds {room}{on}, {limits}"
    return kept, f"engine.workers=auto: {chosen}{on} ({limits}; steps a second by workers{on}: {speeds})."


def _by_device(start: Start, workers: Sequence[Any], devices: int) -> list[list[Any]]:
    """Return workers by the GPU that they have; all of them, where there is one device."""
    if devices == 1:
        return [list(workers)]
    groups: dict[str, list[Any]] = {}
    for worker in workers:  # one after the other: what all of them do at once may be too much
        try:
            groups.setdefault(start.probe([worker])[0].gpu, []).append(worker)
        except ProbeError:
            continue
    return list(groups.values()) or [list(workers)]


def _tried(start: Start, groups: list[list[Any]], most: int, alone: float) -> tuple[int, dict[int, float]]:
    """Return how many on a device are of use, and steps a second there by their number; 0 where they failed."""
    chosen, found = 1, {1: alone}
    for number in _doubled(most):
        asked = [worker for group in groups for worker in group[:number]]
        try:
            found[number] = sum(probed.steps_per_second for probed in start.probe(asked)) / len(groups)
        except ProbeError:
            found[number] = 0.0
        if found[number] < GAIN * found[chosen]:
            break
        chosen = number
    return chosen, found


def _doubled(most: int) -> list[int]:
    """Return 2, 4, 8 and so on below a number, and the number."""
    numbers = []
    number = 2
    while number < most:
        numbers.append(number)
        number *= 2
    return [*numbers, most] if most > 1 else []
