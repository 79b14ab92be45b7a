"""The Ray engine: warm workers, the payload once a phase in the object store, one partial sum a block.

Each worker is an actor that runs the same ClientApp as every other engine and keeps model, optimiser buffers and
data between messages. The data set is put in the object store once and read there by all workers of a machine
without a copy. Blocks of clients go to whichever worker is free, those with the most examples first; the driver
waits for the next one that is done and never looks around. A worker that dies is replaced and the clients of its block
run again, now one by one, from the same memory and the same random generators, with the same result: if it was one of
them that killed it, it is the only one that fails.

Workers of other machines need the project installed and the run's folder on a shared file system.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from flwr.app import Message

import umbel
from umbel.conf.errors import ExperimentError
from umbel.conf.federation import held
from umbel.conf.schema import Experiment
from umbel.core.messages import Pieces, encode_outcome, split_clients, split_work
from umbel.core.records import reason
from umbel.core.work import Outcome
from umbel.server.errors import RunStoppedError, raise_again
from umbel.server.port import OnWait
from umbel.simulations.engines.local import LocalPort
from umbel.simulations.engines.ray_worker import RayWorker
from umbel.simulations.engines.raylet import LOOK_SECONDS, Raylet, check_temporary_folder

_TRIES = 3  # how often a client is started, alone or in its block, before it counts as failed

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry: this runs in hospitals
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray would run its workers at niceness 15
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@dataclass
class _Block:
    """A block's journey, or that of one of its clients.

    Attributes:
        message: What it is a part of.
        pieces: Its work.
        payload: Where the phase's payload is.
        tries: How often it was started.
        due: `time.monotonic()` at which its worker counts as lost.
    """

    message: Message
    pieces: Pieces
    payload: Any
    tries: int = 0
    due: float = float("inf")


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
        self._raylet: Raylet | None = None
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
        if not config.ray_address:
            check_temporary_folder()
        # Ray puts its current folder first on the path of its workers: a `data` package there would hide ours.
        # The folder stays as long as Ray does: a worker whose current folder is gone cannot load its libraries.
        self._neutral.mkdir(parents=True, exist_ok=True)
        quiet = {"log_to_driver": False, "configure_logging": False}
        with contextlib.chdir(self._neutral), own_signals():
            if not config.ray_address:
                try:
                    ray.init(address="local", num_cpus=config.workers or None, include_dashboard=False, **quiet)
                except BaseException:  # a signal, too: what has started by then ends
                    ray.shutdown()
                    raise
                self._raylet = Raylet()
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
        data = held(self._experiment)
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

        for worker in self._made if self._raylet is None or self._raylet.is_alive() else ():
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(worker)
        if self._started_ray:
            ray.shutdown()
            if self._raylet is not None:
                self._raylet.end_rest()
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

        self._look_at_ray()
        waiting: deque[_Block] = deque()
        for message in messages:
            arrays = dict(message.content.array_records)
            payload = ray.put(arrays)
            blocks = [_Block(message, pieces, payload) for pieces in split_work(message.content)]
            waiting.extend(sorted(blocks, key=self._cost, reverse=True))
        while waiting or self._pool.running:
            while waiting and self._pool.free:
                self._launch(waiting.popleft())
            due = min(deadline, *(block.due for _, block in self._pool.running.values()))
            patience = min(max(due - time.monotonic(), 0.0), LOOK_SECONDS)
            done, _ = ray.wait(list(self._pool.running), num_returns=1, timeout=patience)
            self._look_at_ray()
            if done:
                yield from self._collect(done[0], waiting)
            elif time.monotonic() >= deadline:
                self._abandon()
                return
            else:
                yield from self._end_overdue(waiting)

    def _look_at_ray(self) -> None:
        if self._raylet is not None:
            self._raylet.check()

    def _cost(self, block: _Block) -> float:
        """Estimate a block's time: its training examples."""
        return float(self._sizes[list(block.pieces.clients)].sum())

    def _launch(self, block: _Block) -> None:
        worker = self._pool.free.popleft()
        block.tries += 1
        # A client that is late is interrupted where it runs; what cannot be interrupted ends with its worker, which may
        # have to start first.
        config, num_clients = self._experiment.engine, len(block.pieces.clients)
        if num_clients:
            block.due = time.monotonic() + num_clients * config.client_seconds + config.node_timeout_seconds
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
            yield self._failed(block, reason(cause))
            return
        except ray.exceptions.RayError as error:
            self._replace(worker)
            if len(block.pieces.clients) > 1:
                self._apart(block, waiting)
            elif block.tries < _TRIES:
                waiting.appendleft(block)
            else:
                yield self._failed(block, f"its worker died {_TRIES} times; the last time: {_first_line(error)}")
            return
        self._pool.free.append(worker)
        yield Message(content, reply_to=block.message)

    def _apart(self, block: _Block, waiting: deque[_Block]) -> None:
        """Have a block's clients run again, one by one: who killed their worker is known only when it is alone."""
        alone = [replace(block, pieces=pieces) for pieces in split_clients(block.pieces)]
        waiting.extendleft(reversed(alone))

    def _end_overdue(self, waiting: deque[_Block]) -> Iterator[Message]:
        """Replace the workers whose blocks are overdue; a client that was alone has failed."""
        now = time.monotonic()
        for reference, (worker, block) in list(self._pool.running.items()):
            if block.due > now:
                continue
            del self._pool.running[reference]
            self._replace(worker)
            if len(block.pieces.clients) > 1:
                self._apart(block, waiting)
                continue
            limit = self._experiment.engine.client_seconds
            yield self._failed(block, f"it took longer than {limit:g} s (engine.client_seconds) and did not stop")

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
    """Keep our handlers: Ray's would end the process at a SIGTERM with a dump in place of a checkpoint.

    They hold while Ray starts, too. What it starts is deaf to the end of the terminal, which is for us to answer.
    """
    from ray._private import utils

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    set_handler = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    with contextlib.suppress(ValueError):  # not the main thread: signals are not ours to answer
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        for number, handler in before.items():
            if handler is not None:
                with contextlib.suppress(ValueError):
                    signal.signal(number, handler)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
