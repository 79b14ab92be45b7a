"""Whole runs that lose replies or evaluations: they go on without, or end with everything saved."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers import SMALL, small_run
from umbel.client.evaluation import evaluate_client
from umbel.core.wire.work import Outcome
from umbel.server import checkpoint
from umbel.server.errors import RunStoppedError
from umbel.server.main import execute
from umbel.server.port import Answer
from umbel.simulations import api
from umbel.simulations.engines.inline import InlinePort


def test_a_run_goes_on_without_the_evaluation_that_lies(tmp_path, monkeypatch):
    def evaluate(strategy, payload, client, *rest):
        honest = evaluate_client(strategy, payload, client, *rest)
        if client.id != 1:
            return honest
        return replace(honest, trees={"counts": {name: t[..., :3] for name, t in honest.trees["counts"].items()}})

    monkeypatch.setattr("umbel.client.worker.evaluate_client", evaluate)
    metrics = small_run(tmp_path, "evaluate.clients=-1").summary
    assert metrics["num_failures"] == metrics["rounds"] and "clients/test/accuracy" in metrics["metrics"]


def corrupt_run(tmp_path, monkeypatch, from_round, *overrides):
    """A run whose only node loses client 1's block from a round on."""

    class Corrupt(InlinePort):
        def exchange(self, tasks, deadline, on_wait=None):
            for task in tasks:
                if task.work.round >= from_round:
                    yield Answer(task.node, Outcome(failures=dict.fromkeys(task.work.leaves, "burnt")))
                else:
                    yield from super().exchange([task], deadline)

    monkeypatch.setattr(api, "InlinePort", Corrupt)
    return small_run(tmp_path, *overrides)


def test_too_few_replies_end_the_run_with_everything_saved(tmp_path, monkeypatch):
    with pytest.raises(RunStoppedError) as stopped:
        corrupt_run(tmp_path, monkeypatch, 3, "run.rounds=4", "checkpoint.every=0", "run.name=r")
    text = str(stopped.value)
    assert "Round 3, phase train: 0 of 4 clients sent a good reply, 1 are needed (run.min_replies=1)" in text
    assert "client 0 on node 1: burnt" in text
    assert checkpoint.latest(tmp_path / "r" / "checkpoints").progress.round == 2
    monkeypatch.undo()
    whole = small_run(tmp_path, "run.rounds=4", "checkpoint.every=0")
    assert api.resume(tmp_path / "r").summary["weights_sha256"] == whole.summary["weights_sha256"]


def test_execute_is_what_runs(tmp_path):
    # `execute` by itself, as the ServerApp calls it over a port of its own.
    experiment = api.load("digits", [*SMALL, f"run.results={tmp_path}"])
    grid = InlinePort(api.run_config(experiment), {"state-folder": str(tmp_path / "memory")}, lambda _: None)
    path = execute(experiment, grid, api.Listener())
    assert api.RunResult(path).summary["weights_sha256"] == small_run(tmp_path).summary["weights_sha256"]
