"""MLflow: where MLFLOW_TRACKING_URI says, else in `<results>/mlflow.db`, which `mlflow ui` opens."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import mlflow
from mlflow.entities import Metric, Param

from umbel.simulations.trackers.base import TrackedRun, Tracker

_LONGEST = 500  # characters of a parameter's value, which every store takes
_AT_ONCE = 100  # parameters of one call
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MLflow(Tracker):
    """Writes a run of the experiment's name."""

    def open(self, run: TrackedRun) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.folder.parent / 'mlflow.db'}"
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        self._run = run.noted("mlflow") if run.last_round else ""
        if self._run:
            self._client.update_run(self._run, status="RUNNING")
            return
        known = self._client.get_experiment_by_name(run.experiment)
        experiment = known.experiment_id if known else self._client.create_experiment(run.experiment)
        self._run = self._client.create_run(experiment, run_name=run.name).info.run_id
        run.note("mlflow", self._run)
        parameters = [Param(key, str(value)[:_LONGEST]) for key, value in run.config.items()]
        for start in range(0, len(parameters), _AT_ONCE):
            self._client.log_batch(self._run, params=parameters[start : start + _AT_ONCE])

    def log(self, round_: int, values: Mapping[str, float]) -> None:
        self._put(values, round_)

    def close(self, summary: Mapping[str, float], status: str) -> None:
        self._put({f"summary/{name}": value for name, value in summary.items()}, 0)
        self._client.set_terminated(self._run, _STATUS[status])

    def _put(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(self._run, metrics=metrics[start : start + _AT_ONCE])


def tracker() -> Tracker:
    """Return one."""
    return MLflow()
