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
from umbel.simulations.engines.how_many import Probed, ProbeError, choose, probe


@dataclass
class Machine:
    """Starts workers of a machine that there is not.

    Args:
        free: Workers that fit beside the first one.
        saturates: Workers on a device beyond which all together are no faster.
        gpus: GPUs.
    """

    free: float = 100
    saturates: int = 100
    gpus: int = 0
    fails: bool = False
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
        if self.fails:
            raise ProbeError("no room")
        here = [(each % self.gpus if self.gpus else 0) for each in workers]
        speeds = [100 * min(here.count(gpu), self.saturates) / here.count(gpu) for gpu in here]
        free = int(self.free * (1 << 30) / 0.9) + 9
        return [Probed(speed, 1 << 30, free, str(gpu)) for speed, gpu in zip(speeds, here, strict=True)]


def number(machine: Machine, num_cpus: int = 16, cohort: int = 100, threads: int = 1, machines: int = 1) -> int:
    workers, told = choose(machine, num_cpus, threads, machine.gpus, machines, cohort)
    assert sorted(workers) == sorted(machine.workers)  # nobody is left that is not used
    assert told.startswith(f"engine.workers=auto: {len(workers) // max(machine.gpus, 1)}")
    return len(workers)


@pytest.mark.parametrize(
    ("expected", "machine", "words"),
    [
        (16, Machine(), {}),
        (4, Machine(), {"threads": 4}),
        (10, Machine(), {"cohort": 10}),
        (3, Machine(free=2), {}),
        (6, Machine(free=2), {"machines": 2}),
        (4, Machine(saturates=4), {}),
        (1, Machine(saturates=1), {}),
        (1, Machine(free=0), {}),
        (1, Machine(), {"num_cpus": 1}),
    ],
)
def test_on_cpus(expected, machine, words):
    assert number(machine, **words) == expected


@pytest.mark.parametrize(
    ("expected", "machine", "words"),
    [
        (8, Machine(gpus=2, saturates=4), {}),
        (6, Machine(gpus=2, free=2), {}),
        (2, Machine(gpus=2, saturates=1), {}),
        (4, Machine(gpus=1), {"cohort": 4}),
        (32, Machine(gpus=2), {"num_cpus": 128}),
    ],
)
def test_on_gpus(expected, machine, words):
    assert number(machine, **words) == expected
    here = [worker % machine.gpus for worker in machine.workers]
    assert {here.count(gpu) for gpu in range(machine.gpus)} == {expected // machine.gpus}


def test_where_a_probe_fails_cpus_and_clients_decide():
    machine = Machine(fails=True)
    workers, told = choose(machine, 16, 1, 0, 1, 6)
    assert len(workers) == 6 == len(machine.workers) and "no probe, for no room" in told


def test_a_probe_measures_and_leaves_the_model_as_it_was():
    host = Host(load("digits", ["model.name=cnn", "data.max_train=64", "data.num_clients=2"]))
    before = sha256(shared_state(host.model))
    found = probe(host, seconds=0.05)
    assert found.steps_per_second > 0 and found.own_bytes > 1 << 20 and found.free_bytes > 0 and found.fit >= 1
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
def test_a_run_says_how_many_it_took_and_has_the_same_bits(tmp_path: Path) -> None:
    words = [*SMALL, "run.rounds=2"]
    inline = run("digits", *words, f"run.results={tmp_path / 'inline'}")
    ray = run("digits", *words, "engine.name=ray", "engine.workers=auto", f"run.results={tmp_path / 'ray'}")
    assert ray.summary["weights_sha256"] == inline.summary["weights_sha256"]
    lines = (ray.path / "progress.jsonl").read_text(encoding="utf-8").splitlines()
    told = [entry["text"] for entry in map(json.loads, lines) if entry["event"] == "notice"]
    assert any(text.startswith("engine.workers=auto: ") and "steps a second" in text for text in told)
