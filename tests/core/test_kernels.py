"""The kernels' bits tell one arithmetic from another, draw nothing, and a resume under others says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import small_run
from tests.places import ROOT
from umbel import resume
from umbel.core.files import read_json, write_json
from umbel.core.kernels import kernels
from umbel.server.errors import StopRequested
from umbel.server.listener import Listener


def elsewhere(**variables: str) -> dict[str, str]:
    """What a process with these variables computes with."""
    program = (
        "import json, torch; torch.set_num_threads(1); from umbel.core.kernels import kernels; "
        "print(json.dumps(kernels()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_same_in_every_process_and_without_a_draw():
    before = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            here = kernels()
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert here == elsewhere() and len(here["bits"]) == 16


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="this processor has one set of kernels"
)
def test_other_kernels_have_other_bits():
    other = elsewhere(ATEN_CPU_CAPABILITY="default")
    assert other["aten"] == other["ATEN_CPU_CAPABILITY"].upper() == "DEFAULT"
    assert other["bits"] != elsewhere(ATEN_CPU_CAPABILITY="avx2")["bits"]


class Stops(Listener):
    """Asks the run to stop after its first round; keeps what it is told."""

    def __init__(self, stops: bool) -> None:
        self._stops, self.notices = stops, []

    def begin(self, experiment, folder):
        self._folder = Path(folder)

    def round(self, round_, num_rounds, metrics, seconds):
        if self._stops:
            (self._folder / "stop").touch()

    def notice(self, text):
        self.notices.append(text)


@pytest.mark.parametrize("other", [False, True])
def test_a_resume_under_other_kernels_says_so(other, tmp_path):
    with pytest.raises(StopRequested):
        small_run(tmp_path, "run.name=run", listener=Stops(True))
    file = tmp_path / "run" / "env.json"
    written = read_json(file)
    assert written["kernels"]["bits"] == elsewhere()["bits"]
    if other:
        write_json(file, {**written, "kernels": {"aten": "NEON", "bits": "0" * 16}})
    heard = Stops(False)
    resume(tmp_path / "run", listener=heard)
    assert len(heard.notices) == int(other)
    lines = (tmp_path / "run" / "progress.jsonl").read_text().splitlines()
    notices = [entry["text"] for entry in map(json.loads, lines) if entry["event"] == "notice"]
    assert notices == heard.notices
    assert all("aten=NEON" in text and written["kernels"]["bits"] in text for text in notices)
