"""How many workers `engine.workers=auto` takes: by memory, CPUs, clients of a round, and what more of them bring."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.end_to_end.test_engines import SMALL
from umbel import run
from umbel.client.host import Host
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core.tree import sha256
from umbel.models.weights import shared_state
from umbel.simulations.engines.how_many import Probed, ProbeError, Training, choose


@dataclass
class Machine:
    """Starts workers of a machine that there is not.

    Args:
        fit: Workers that memory holds.
        saturates: Workers on a device beyond which all together are no faster.
        gpus: GPUs.
        fails_from: Workers that cannot probe at once.
    """

    fit: int = 100
    saturates: int = 100
    gpus: int = 0
    fails_from: int = 1000
    workers: list[int] = field(default_factory=list)
    shares: list[int] = field(default_factory=list)
    num_started: int = 0

    def more(self, number: int, on_each_gpu: int) -> list[int]:
        new = list(range(self.num_started, self.num_started + number))
        self.num_started += number
        self.workers += new
        self.shares.append(on_each_gpu)
        return new

    def end(self, workers: Sequence[int]) -> None:
        self.workers = [each for each in self.workers if each not in workers]

    def probe(self, workers: Sequence[int]) -> list[Probed]:
        assert set(workers) <= set(self.workers)
        if len(workers) >= self.fails_from:
            raise ProbeError("no room")
        here = [(each % self.gpus if self.gpus else 0) for each in workers]
        speeds = [100 * min(here.count(gpu), self.saturates) / here.count(gpu) for gpu in here]
        return [Probed(speed, self.fit, str(gpu)) for speed, gpu in zip(speeds, here, strict=True)]


def number(machine: Machine, num_cpus: int = 16, cohort: int = 100, threads: int = 1, machines: int = 1) -> int:
    workers, told = choose(machine, num_cpus, threads, machine.gpus, machines, cohort)
    assert sorted(workers) == sorted(machine.workers)  # nobody is left that is not used
    on = " on each GPU" if machine.gpus else ""
    assert told.startswith(f"engine.workers=auto: {len(workers) // max(machine.gpus, 1)}{on} (")
    return len(workers)


@pytest.mark.parametrize(
    ("expected", "machine", "words"),
    [
        (16, Machine(), {}),
        (4, Machine(), {"threads": 4}),
        (10, Machine(), {"cohort": 10}),
        (3, Machine(fit=3), {}),
        (6, Machine(fit=3), {"machines": 2}),
        (4, Machine(saturates=4), {}),
        (1, Machine(saturates=1), {}),
        (1, Machine(fit=1), {}),
        (1, Machine(), {"num_cpus": 1}),
    ],
)
def test_on_cpus(expected, machine, words):
    assert number(machine, **words) == expected


@pytest.mark.parametrize(
    ("expected", "machine", "words"),
    [
        (8, Machine(gpus=2, saturates=4), {}),
        (6, Machine(gpus=2, fit=3), {}),
        (2, Machine(gpus=2, saturates=1), {}),
        (4, Machine(gpus=1), {"cohort": 4}),
        (32, Machine(gpus=2), {"num_cpus": 128}),
    ],
)
def test_on_gpus(expected, machine, words):
    assert number(machine, **words) == expected
    here = [worker % machine.gpus for worker in machine.workers]
    assert {here.count(gpu) for gpu in range(machine.gpus)} == {expected // machine.gpus}


@pytest.mark.parametrize("gpus", [0, 2])
def test_where_none_can_probe_there_is_one_on_each_device(gpus):
    machine = Machine(gpus=gpus, fails_from=1)
    workers, told = choose(machine, 16, 1, gpus, 1, 6)
    assert len(workers) == max(gpus, 1) == len(machine.workers) and "could be measured (no room)" in told


@pytest.mark.parametrize(("gpus", "expected"), [(0, 4), (1, 4), (2, 2)])
def test_where_many_at_once_fail_fewer_are_taken(gpus, expected):
    machine = Machine(gpus=gpus, fails_from=8 if gpus < 2 else 7)
    workers, told = choose(machine, 32, 1, gpus, 1, 100)
    assert len(workers) == expected * max(gpus, 1) == len(machine.workers)
    assert "failed" in told


@pytest.mark.parametrize("words", [[], ["client.together=2"], ["client.class_weights=balanced"]])
def test_a_probe_measures_and_leaves_the_model_as_it_was(words):
    host = Host(load("digits", ["model.name=cnn", "data.max_train=64", "data.num_clients=2", *words]))
    before = sha256(shared_state(host.model))
    found = Training(host).probe("gpu", seconds=0.05)
    assert found.steps_per_second > 0 and found.fit >= 1 and found.gpu == "gpu"
    assert sha256(shared_state(host.model)) == before and not host.loaded
    assert all(parameter.grad is None for parameter in host.model.parameters())


@pytest.mark.parametrize(
    "overrides",
    [["engine.workers=-1"], ["engine.workers=some"], ["engine.workers=auto", "engine.gpus_per_worker=0.5"]],
)
def test_what_cannot_be_is_refused(overrides):
    with pytest.raises(ExperimentError, match=r"engine\.(workers|gpus_per_worker)"):
        load("digits", overrides)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")
def test_a_run_says_how_many_it_took_and_has_the_same_bits(tmp_path: Path) -> None:
    words = [*SMALL, "run.rounds=2"]
    inline = run("digits", *words, f"run.results={tmp_path / 'inline'}")
    ray = run("digits", *words, "engine.name=ray", "engine.workers=auto", f"run.results={tmp_path / 'ray'}")
    assert ray.summary["weights_sha256"] == inline.summary["weights_sha256"]
    lines = (ray.path / "progress.jsonl").read_text(encoding="utf-8").splitlines()
    told = [entry["text"] for entry in map(json.loads, lines) if entry["event"] == "notice"]
    assert any(text.startswith("engine.workers=auto: ") and "steps a second" in text for text in told)
