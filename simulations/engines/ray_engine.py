"""The Ray engine: warm workers, the payload once a phase in the object store, one partial sum a block.

Each worker is an actor that runs the same ClientApp as every other engine and keeps model, optimiser buffers and
data between messages. The data set is put in the object store once and read there by all workers of a machine
without a copy. Blocks of clients go to whichever worker is free, those with the most examples first; the driver
waits for the next one that is done and never looks around. A worker that dies is replaced and its block runs
again, from the same memory and the same random generators, with the same result.

Workers of other machines need the project installed and the run's folder on a shared file system.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from flwr.app import Message

import umbel
from umbel.conf.errors import ExperimentError
from umbel.conf.federation import federation
from umbel.conf.schema import Experiment
from umbel.core.messages import Pieces, encode_outcome, split_work
from umbel.core.work import Outcome
from umbel.server.errors import RunStoppedError, raise_again
from umbel.server.port import OnWait
from umbel.simulations.engines.local import LocalPort
from umbel.simulations.engines.ray_worker import RayWorker

_TRIES = 3  # how often a block is started before its clients count as failed

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry: this runs in hospitals
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray would run its workers at niceness 15
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@dataclass
class _Block:
    """A block's journey."""

    message: Message
    pieces: Pieces
    payload: Any
    tries: int = 0
    last_error: str = ""


@dataclass
class _Pool:
    """Workers that are free and blocks that run."""

    free: deque[Any] = field(default_factory=deque)
    running: dict[Any, tuple[Any, _Block]] = field(default_factory=dict)


class RayPort(LocalPort):
    """A port to Ray workers; a context manager.

    Args:
        experiment: The experiment.
        run_config: The run configuration for the workers.
        memory: Folder of the clients' memory.
    """

    def __init__(self, experiment: Experiment, run_config: dict[str, Any], memory: Path) -> None:
        super().__init__()
        self._experiment = experiment
        self._run_config = run_config
        self._node_config = {"state-folder": str(memory)}
        self._pool = _Pool()
        self._made: list[Any] = []
        self._started_ray = False
        self._neutral = memory.parent / "ray"

    def __enter__(self) -> RayPort:
        import ray

        if not ray.is_initialized():
            self._start_ray()
        try:
            self._start_workers()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start_ray(self) -> None:
        import ray

        config = self._experiment.engine
        # Ray puts its current folder first on the path of its workers: a `data` package there would hide ours.
        # The folder stays as long as Ray does: a worker whose current folder is gone cannot load its libraries.
        self._neutral.mkdir(parents=True, exist_ok=True)
        quiet = {"log_to_driver": False, "configure_logging": False}
        with contextlib.chdir(self._neutral), own_signals():
            if not config.ray_address:
                ray.init(address="local", num_cpus=config.workers or None, include_dashboard=False, **quiet)
            else:
                try:
                    ray.init(address=config.ray_address, **quiet)
                except (ConnectionError, ValueError) as error:
                    raise ExperimentError(
                        f"engine.ray_address={config.ray_address}: no Ray cluster answers there ({error}). Start one "
                        "(ray start --head), or leave engine.ray_address empty to start Ray on this machine."
                    ) from error
        self._started_ray = True

    def _start_workers(self) -> None:
        import ray

        config = self._experiment.engine
        data = federation(self._experiment)
        self._sizes = data.num_train
        self._arrays = ray.put(data.arrays())
        self._meta = dict(data.meta)
        self._actor = ray.remote(RayWorker).options(
            num_cpus=0 if config.gpus_per_worker else 1, num_gpus=config.gpus_per_worker, max_restarts=0
        )
        workers = [self._start_worker() for _ in range(self._num_workers())]
        try:
            found = ray.get([w.ready.remote() for w in workers], timeout=config.node_timeout_seconds)
        except ray.exceptions.GetTimeoutError:
            raise RunStoppedError(
                f"{len(workers)} Ray workers were not all ready after {config.node_timeout_seconds:g} s: others may "
                "hold the cluster's CPUs or GPUs. Ask for fewer (engine.workers), or wait longer "
                "(engine.node_timeout_seconds)."
            ) from None
        except ray.exceptions.RayError as error:
            raise RunStoppedError(f"A Ray worker died while it started: {_first_line(error)}") from error
        for _, end in found:
            if end is not None:
                raise_again(end | {"text": f"A Ray worker cannot start: {end.get('text')}"})
        self._pool.free.extend(workers)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        for worker in self._made:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(worker)
        if self._started_ray:
            ray.shutdown()
            with contextlib.suppress(OSError):
                self._neutral.rmdir()

    def _num_workers(self) -> int:
        import ray

        config = self._experiment.engine
        kind, share = ("GPU", config.gpus_per_worker) if config.gpus_per_worker else ("CPU", 1.0)
        there = float(ray.cluster_resources().get(kind, 0))
        fit = int(there / share + 1e-9)
        if fit < max(config.workers, 1):  # Ray would wait for ever
            raise ExperimentError(
                f"engine.workers={config.workers} of {share:g} {kind} each do not fit: Ray has {there:g} {kind}, "
                f"enough for {fit}. Lower engine.workers or engine.gpus_per_worker."
            )
        return config.workers or fit

    def _start_worker(self) -> Any:
        umbel_file = str(Path(umbel.__file__).resolve())
        worker = self._actor.remote(self._run_config, self._node_config, umbel_file, self._arrays, self._meta)
        self._made.append(worker)
        return worker

    def worker_pids(self) -> list[int]:
        """Return the process ids of the workers that are free."""
        import ray

        return [pid for pid, _ in ray.get([worker.ready.remote() for worker in self._pool.free])]

    def stream(
        self, messages: Collection[Message], deadline: float, on_wait: OnWait | None = None
    ) -> Iterator[Message]:
        """Spread the messages' blocks over the workers and yield one reply a block, as they are done."""
        import ray

        waiting: deque[_Block] = deque()
        for message in messages:
            arrays = dict(message.content.array_records)
            payload = ray.put(arrays)
            blocks = [_Block(message, pieces, payload) for pieces in split_work(message.content)]
            waiting.extend(sorted(blocks, key=self._cost, reverse=True))
        while waiting or self._pool.running:
            while waiting and self._pool.free:
                self._launch(waiting.popleft())
            remaining = None if deadline == float("inf") else max(deadline - time.monotonic(), 0.0)
            done, _ = ray.wait(list(self._pool.running), num_returns=1, timeout=remaining)
            if not done:
                self._abandon()
                return
            yield from self._collect(done[0], waiting)

    def _cost(self, block: _Block) -> float:
        """Estimate a block's time: its training examples."""
        return float(self._sizes[list(block.pieces.clients)].sum())

    def _launch(self, block: _Block) -> None:
        worker = self._pool.free.popleft()
        block.tries += 1
        reference = worker.run.remote(block.payload, block.pieces.head, block.message.metadata.message_type)
        self._pool.running[reference] = (worker, block)

    def _collect(self, reference: Any, waiting: deque[_Block]) -> Iterator[Message]:
        import ray

        worker, block = self._pool.running.pop(reference)
        try:
            content = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._pool.free.append(worker)
            cause = error.cause or error
            yield self._failed(block, f"{type(cause).__name__}: {cause}")
            return
        except ray.exceptions.RayError as error:  # the worker died: another runs the block again
            self._replace(worker)
            block.last_error = _first_line(error)
            if block.tries < _TRIES:
                waiting.appendleft(block)
            else:
                yield self._failed(block, f"its worker died {_TRIES} times; the last time: {block.last_error}")
            return
        self._pool.free.append(worker)
        yield Message(content, reply_to=block.message)

    def _failed(self, block: _Block, reason: str) -> Message:
        outcome = Outcome(failures=dict.fromkeys(block.pieces.clients, reason))
        return Message(encode_outcome(outcome), reply_to=block.message)

    def _abandon(self) -> None:
        """Replace the workers that did not answer in time."""
        for worker, _ in self._pool.running.values():
            self._replace(worker)
        self._pool.running.clear()

    def _replace(self, worker: Any) -> None:
        """Put a new worker in the place of one that died, or that must: half alive, it would keep its CPU."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(worker)
        self._made.remove(worker)
        self._pool.free.append(self._start_worker())


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Keep our handlers: Ray's would end the process at a SIGTERM with a dump in place of a checkpoint."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                with contextlib.suppress(ValueError):  # not the main thread: Ray has changed nothing
                    signal.signal(number, handler)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
