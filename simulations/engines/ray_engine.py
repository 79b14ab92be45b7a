"""The Ray engine: warm workers that keep model and data, and one piece of memory for what all receive.

Each worker is an actor that runs the same `umbel.client` as every other engine and keeps model, optimiser buffers and
data between phases. The data set is put in the object store once and read there by all workers of a machine without a
copy, and so is a phase's payload. Who runs which clients is the business of `umbel.simulations.engines.ray_phase`.

Workers of other machines need the project installed and the run's folder on a shared file system.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flwr.app import Message

import umbel
from umbel.conf.errors import ExperimentError
from umbel.conf.federation import held
from umbel.conf.schema import Experiment
from umbel.core import device as devices
from umbel.core.records import reason
from umbel.core.training.modes import num_together
from umbel.core.wire.work import Outcome
from umbel.server.errors import RunStoppedError, raise_again
from umbel.server.port import Answer, OnWait, Task
from umbel.simulations.engines.flower_internals import failed_reply
from umbel.simulations.engines.how_many import ProbeError, choose
from umbel.simulations.engines.local import LocalPort
from umbel.simulations.engines.ray_start import own_signals, without_extras
from umbel.simulations.engines.ray_worker import RayWorker
from umbel.simulations.engines.raylet import LOOK_SECONDS, Raylet, check_answers, check_temporary_folder

if TYPE_CHECKING:
    from umbel.simulations.engines.how_many import Probed
    from umbel.simulations.engines.ray_phase import Pace

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry: this runs in hospitals
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray would run its workers at niceness 15
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


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
        self._workers: list[Any] = []
        self._reach: Any = None
        self._pace: Pace | None = None
        self._started_ray = self._on_gpu = False
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
        with contextlib.chdir(self._neutral), own_signals(), without_extras():
            if not config.ray_address:
                try:
                    ray.init(address="local", num_cpus=self._num_cpus(), include_dashboard=False, **quiet)
                except BaseException:  # a signal, too: what has started by then ends
                    begun = Raylet()
                    ray.shutdown()
                    begun.end_rest()
                    raise
                self._raylet = Raylet()
            else:
                try:
                    check_answers(config.ray_address)
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
        self._sizes = [float(number) for number in data.num_train.tolist()]
        self._arrays = ray.put(data.arrays())
        self._meta = dict(data.meta)
        if config.workers == "auto":
            self._workers, found = choose(self, **self._room())
            self.notices = (found,)
        else:
            self._start(self._num_workers(), config.gpus_per_worker)
        self._reach = self._how_to_reach()
        for worker in self._workers:
            self._reach.open(worker)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        if self._raylet is not None:
            self._raylet.note_rest()
        if self._reach is not None:
            self._reach.close()
        for worker in self._workers if self._raylet is None or self._raylet.is_alive() else ():
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(worker)
        if self._started_ray:
            ray.shutdown()
            if self._raylet is not None:
                self._raylet.end_rest()
            with contextlib.suppress(OSError):
                self._neutral.rmdir()

    def _num_cpus(self) -> int | None:
        workers = self._experiment.engine.workers
        return None if workers == "auto" else workers or None

    def _start(self, number: int, gpus: float) -> list[Any]:
        """Start workers, and wait until they are ready.

        Args:
            number: How many.
            gpus: Share of a GPU for each.
        """
        import ray

        from umbel.simulations.engines.ray_calls import first_line

        seconds = self._experiment.engine.node_timeout_seconds
        self._actor = ray.remote(RayWorker).options(num_cpus=0 if gpus else 1, num_gpus=gpus, max_restarts=0)
        workers = [self._start_worker() for _ in range(number)]
        self._workers += workers
        try:
            answers = ray.get([worker.ready.remote() for worker in workers], timeout=seconds)
        except ray.exceptions.GetTimeoutError:
            raise RunStoppedError(
                f"{len(workers)} Ray workers were not all ready after {seconds:g} s: others "
                "may hold the cluster's CPUs or GPUs. Ask for fewer (engine.workers), or wait longer "
                "(engine.node_timeout_seconds)."
            ) from None
        except ray.exceptions.RayError as error:
            raise RunStoppedError(f"A Ray worker died while it started: {first_line(error)}") from error
        for _, end, _ in answers:
            if end is not None:
                raise_again(end | {"text": f"A Ray worker cannot start: {end.get('text')}"})
        return workers

    def _room(self) -> dict[str, int]:
        """Return what there is for workers, as `choose` asks it."""
        import ray

        there, experiment = ray.available_resources(), self._experiment
        device = devices.resolve(experiment.client.device)
        self._on_gpu = device.type == "cuda" and there.get("GPU", 0) >= 1
        return {
            "num_cpus": int(there.get("CPU", 1)),
            "threads": experiment.run.threads,
            "num_gpus": int(there["GPU"]) if self._on_gpu else 0,
            "num_machines": sum(bool(node["Alive"]) for node in ray.nodes()),
            "cohort": -(-experiment.num_sampled // num_together(experiment.local, device)),
        }

    def more(self, number: int, on_each_gpu: int) -> list[Any]:
        """Start workers, so many of which share a GPU where they have one."""
        return self._start(number, 1 / on_each_gpu if self._on_gpu else 0.0)

    def end(self, workers: Sequence[Any]) -> None:
        """End workers that are not needed."""
        import ray

        for worker in workers:
            ray.kill(worker)
            self._workers.remove(worker)

    def probe(self, workers: Sequence[Any]) -> list[Probed]:
        """Have workers probe, all at once."""
        import ray

        from umbel.simulations.engines.ray_calls import first_line

        def all_of(calls: list[Any]) -> list[Any]:
            ends = time.monotonic() + self._experiment.engine.node_timeout_seconds
            while len(ray.wait(calls, num_returns=len(calls), timeout=LOOK_SECONDS)[0]) < len(calls):
                self.look()
                if time.monotonic() > ends:
                    raise ProbeError("it took longer than engine.node_timeout_seconds")
            return list(ray.get(calls))

        try:
            all_of([worker.warm_up.remote() for worker in workers])
            found: list[Probed] = all_of([worker.probe.remote() for worker in workers])
        except ray.exceptions.RayTaskError as error:
            raise ProbeError(reason(error.cause or error)) from error
        except ray.exceptions.RayError as error:
            raise ProbeError(first_line(error)) from error
        return found

    def _num_workers(self) -> int:
        import ray

        config = self._experiment.engine
        kind, share = ("GPU", config.gpus_per_worker) if config.gpus_per_worker else ("CPU", 1.0)
        there = float(ray.cluster_resources().get(kind, 0))
        fit = int(there / share + 1e-9)
        asked = int(config.workers)
        if fit < max(asked, 1):  # Ray would wait for ever
            raise ExperimentError(
                f"engine.workers={config.workers} of {share:g} {kind} each do not fit: Ray has {there:g} {kind}, "
                f"enough for {fit}. Lower engine.workers or engine.gpus_per_worker."
            )
        return asked or fit

    def _how_to_reach(self) -> Any:
        """Return lines to workers of this machine, or calls of Ray's to workers anywhere."""
        import ray

        from umbel.simulations.engines.lines import Lines, is_possible
        from umbel.simulations.engines.ray_calls import RayCalls, first_line

        if self._experiment.engine.ray_address or not is_possible():
            return RayCalls()

        def last_words(call: Any) -> str:
            if not ray.wait([call], timeout=0)[0]:
                return ""
            try:
                ray.get(call)
            except ray.exceptions.RayError as error:
                return first_line(error)
            return "it has hung up"

        return Lines(last_words)

    def _start_worker(self) -> Any:
        umbel_file = str(Path(umbel.__file__).resolve())
        return self._actor.remote(self._run_config, self._node_config, umbel_file, self._arrays, self._meta)

    def all(self) -> list[Any]:
        """Return the workers."""
        return list(self._workers)

    def replace(self, worker: Any) -> Any:
        """Put a new worker in the place of one that died, or that must: half alive, it would keep its CPU."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(worker)
        place = self._workers.index(worker)
        self._workers[place] = self._start_worker()
        if self._reach is not None:
            self._reach.forget(worker)
            self._reach.open(self._workers[place])
        return self._workers[place]

    def is_there(self, worker: Any) -> bool:
        """Say whether a worker has come; raise `WorkerDiedError` where it never will."""
        there: bool = self._reach.is_there(worker)
        return there

    def look(self) -> None:
        """Raise `RunStoppedError` where Ray's process of this machine has ended."""
        if self._raylet is not None:
            self._raylet.check()

    def lay(self, task: Task) -> Any:
        """Put a phase where all workers find it."""
        return self._reach.lay(task)

    def give(self, worker: Any, opening: Any, clients: tuple[int, ...], closes: bool) -> Any:
        """Give a worker clients to run."""
        return self._reach.give(worker, opening, clients, closes)

    def wait(self, given: Sequence[Any], seconds: float) -> Any:
        """Return one of what was given that is done; None when there is none in time."""
        return self._reach.wait(given, seconds)

    def take(self, given: Any) -> Outcome | None:
        """Return what came of something that is done."""
        outcome: Outcome | None = self._reach.take(given)
        return outcome

    def exchange(self, tasks: Sequence[Task], deadline: float, on_wait: OnWait | None = None) -> Iterator[Answer]:
        """Spread the clients over the workers and yield what these hand over."""
        from umbel.simulations.engines.ray_phase import Pace, RayPhase
        from umbel.simulations.engines.workers import Limits

        self._pace = self._pace or Pace()
        config = self._experiment.engine
        limits = Limits(config.client_seconds, config.node_timeout_seconds)
        for task in tasks:
            self.look()
            phase = RayPhase(task, self, self._cost, self._pace, limits)
            yield from phase.answers(deadline, on_wait)
            phase.abandon()

    def _cost(self, client: int) -> float:
        """Estimate a client's time: its training examples."""
        return self._sizes[client]

    def stream(
        self, messages: Collection[Message], deadline: float, on_wait: OnWait | None = None
    ) -> Iterator[Message]:
        """Have a worker answer messages that are no part of a phase."""
        from umbel.simulations.engines.workers import WorkerDiedError, WorkerFailedError

        for message in messages:
            given = self._reach.ask(self._workers[0], message.content, message.metadata.message_type)
            while self._reach.wait([given], LOOK_SECONDS) is None:
                self.look()
            try:
                yield Message(self._reach.take(given), reply_to=message)
            except (WorkerFailedError, WorkerDiedError) as error:
                yield failed_reply(message, str(error))
