"""The actor of the Ray engine."""

from __future__ import annotations

from typing import Any

from umbel.simulations.engines.worker import WorkerProcess


class RayWorker(WorkerProcess):
    """A worker that Ray has started, and that knows where."""

    def ready(self) -> tuple[int, dict[str, Any] | None, str]:
        """Return the process id, once it is ready, what kept it from that, and Ray's name of its machine."""
        import ray

        return (*super().ready()[:2], ray.get_runtime_context().get_node_id())

    def _gpu(self) -> str:
        import ray

        gpus = ",".join(map(str, ray.get_gpu_ids()))
        return f"{ray.get_runtime_context().get_node_id()}/{gpus}" if gpus else ""
