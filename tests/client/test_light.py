"""What a client's process does not load: it is a hundred megabytes and seconds of its start for each."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.test_engines import SMALL
from tests.places import ROOT

HEAVY = ("pandas", "sklearn", "scipy", "matplotlib", "seaborn", "datasets", "flwr_datasets", "flwr.simulation", "ray")
PROGRAM = """
import sys
from pathlib import Path
import umbel.client.app
from umbel.client.worker import Worker
from umbel.conf.load import load
Worker(load("digits", sys.argv[2:]), Path(sys.argv[1])).declared([0])
print(*sys.modules)
"""


@pytest.mark.slow  # a process of its own: torch's import
def test_a_worker_loads_what_its_clients_need_and_no_more(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *SMALL, "data.partition=dirichlet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "umbel.client.worker" in loaded
    assert not loaded.intersection(HEAVY)


RUN = """
import sys
import umbel
umbel.run("digits", *sys.argv[2:], "run.rounds=1", f"run.results={sys.argv[1]}")
print(*sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inline", "processes"])
def test_nor_does_a_run_on_one_machine(engine: str, tmp_path: Path) -> None:
    """Metrics are written, a model is trained and evaluated; tables and pictures are for who asks for them."""
    engines = (f"engine.name={engine}", "engine.workers=1")
    command = [sys.executable, "-c", RUN, str(tmp_path), *SMALL, "data.partition=dirichlet", *engines]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "umbel.server.rounds" in loaded
    # Nothing travels, so nothing is encoded or signed: Flower, with gRPC and cryptography, is for federations.
    assert not loaded.intersection((*HEAVY, "fastapi", "flwr", "grpc", "cryptography", "torch._dynamo", "sympy"))
    assert list(tmp_path.glob("*/metrics.parquet"))


SPY = """
import os, sys
from umbel.strategies.base import Phase
from umbel.strategies.fedavg import FedAvg
from umbel.strategies.steps import train_and_subtract

def local(payload, client):
    with open(os.environ["SPIED"], "a") as file:
        print(os.getpid(), *sys.modules, file=file)
    return train_and_subtract(payload, client)

class Spy(FedAvg):
    def every_phase(self):
        return (Phase("train", self.send_model, local, self.fold, self.update),)
"""


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])  # with two, workers are no copies: each process begins anew
def test_nor_do_its_workers(threads: int, tmp_path: Path) -> None:
    (tmp_path / "spy.py").write_text(SPY)
    spied = tmp_path / "spied"
    options = (*SMALL, "strategy.name=spy:Spy", "engine.name=processes", "engine.workers=1", f"run.threads={threads}")
    environment = os.environ | {"SPIED": str(spied), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", RUN, str(tmp_path / "runs"), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    for line in spied.read_text().splitlines():
        loaded = set(line.split())
        assert "umbel.client.share" in loaded
        assert not loaded.intersection((*HEAVY, "flwr", "grpc", "cryptography", "torch._dynamo"))


KEEPS = """
import resource, sys
import numpy as np
from umbel.core.device import keep_memory
if sys.argv[1] == "told":
    keep_memory()
def step():
    return [np.ones(1 << 18) for _ in range(4)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_memory_that_a_step_frees_stays_with_the_process() -> None:
    def faults(how: str) -> int:
        env = os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"}
        command = [sys.executable, "-c", KEEPS, how]
        return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=ROOT).stdout)

    pages_of_all = 20 * 4 * (8 << 18) // 4096
    assert faults("told") < pages_of_all / 20
    assert faults("not told") > pages_of_all / 2
