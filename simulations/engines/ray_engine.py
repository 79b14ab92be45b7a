"""The Ray engine: warm workers that keep model and data, and one piece of memory for what all receive.

Each worker is an actor that runs the same `umbel.client` as every other engine and keeps model, optimiser buffers and
data between phases. The data set is put in the object store once and read there by all workers of a machine without a
copy, and so is a phase's payload. Who runs which clients is the business of `umbel.simulations.engines.phase`.

Workers of other machines need the project installed and the run's folder on a shared file system.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import umbel
from umbel.conf.errors import ExperimentError
from umbel.conf.schema import Experiment
from umbel.core import device as devices
from umbel.core.training.modes import num_together
from umbel.server.errors import RunStoppedError, raise_again
from umbel.simulations.engines.how_many import choose
from umbel.simulations.engines.ray_start import own_signals, without_extras
from umbel.simulations.engines.ray_worker import RayWorker
from umbel.simulations.engines.raylet import Raylet, check_answers, check_temporary_folder
from umbel.simulations.engines.workers_port import WorkersPort

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry: this runs in hospitals
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray would run its workers at niceness 15
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


class RayPort(WorkersPort):
    """A port to Ray workers; a context manager."""

    def __init__(self, experiment: Experiment, run_config: dict[str, Any], memory: Path) -> None:
        super().__init__(experiment, run_config, memory)
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
        data = self._load()
        self._arrays = ray.put(data.arrays())
        self._meta = dict(data.meta)
        self._reach = self._how_to_reach()
        if config.workers == "auto":
            self._workers, found = choose(self, **self._room())
            self.notices = (found,)
        else:
            self._start(self._num_workers(), config.gpus_per_worker)

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
        for worker in workers:
            self._reach.open(worker)
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
            self._reach.forget(worker)
            ray.kill(worker)
            self._workers.remove(worker)

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
        from umbel.simulations.engines.lines import Lines, is_possible
        from umbel.simulations.engines.ray_calls import RayCalls

        if self._experiment.engine.ray_address or not is_possible():
            return RayCalls()

        return Lines(_Called())

    def _start_worker(self) -> Any:
        umbel_file = str(Path(umbel.__file__).resolve())
        return self._actor.remote(self._run_config, self._node_config, umbel_file, self._arrays, self._meta)

    def replace(self, worker: Any) -> Any:
        """Put a new worker in the place of one that died, or that must: half alive, it would keep its CPU."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(worker)
        place = self._workers.index(worker)
        self._workers[place] = self._start_worker()
        self._reach.forget(worker)
        self._reach.open(self._workers[place])
        return self._workers[place]

    def look(self) -> None:
        """Raise `RunStoppedError` where Ray's process of this machine has ended."""
        if self._raylet is not None:
            self._raylet.check()


class _Called:
    """Has actors come by a call of Ray's, which lasts as long as they serve."""

    def begin(self, worker: Any, address: str, number: int) -> Any:
        """Call an actor."""
        return worker.serve.remote(address, number)

    def last_words(self, task: Any, has_hung_up: bool) -> str:
        """Return what Ray says of a call that has ended with its worker; "" while it goes on."""
        import ray

        from umbel.simulations.engines.ray_calls import first_line

        if not ray.wait([task], timeout=0)[0]:
            return ""
        try:
            ray.get(task)
        except ray.exceptions.RayError as error:
            return first_line(error)
        return "it has hung up"
