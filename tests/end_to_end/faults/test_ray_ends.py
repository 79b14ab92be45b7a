"""A Ray run that is refused, or stopped by a signal: nothing is left of it but its checkpoint."""

from __future__ import annotations

import signal

import pytest

from tests.end_to_end.faults.helpers import SMALL, events, slow, start, until
from umbel import run
from umbel.core.refusal import Refusal

# Ray and processes that outlive the call that started them leave open files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("engine.ray_address=auto",), r"engine\.ray_address=auto: no Ray cluster answers there"),
        (("engine.ray_address=127.0.0.1:9",), r"no Ray cluster answers there \(\S+:9: Connection refused"),
        pytest.param(
            ("engine.gpus_per_worker=0.5",), r"0\.5 GPU each do not fit: Ray has 0 GPU", marks=pytest.mark.slow
        ),
        pytest.param(("client.device=cuda",), r"client\.device=cuda", marks=pytest.mark.slow),
    ],
)
@pytest.mark.processes
@pytest.mark.usefixtures("no_cluster")
def test_ray_refuses_and_leaves_nothing(options, message, tmp_path, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("asks for what this machine has")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(Refusal, match=message):
        run("digits", *SMALL, "engine.name=ray", "engine.workers=1", *options, f"run.results={tmp_path}")
    assert not list(tmp_path.iterdir())
    import ray

    assert not ray.is_initialized()


@slow
def test_sigterm_stops_a_ray_run_with_a_checkpoint(tmp_path):
    """Ray has a handler of its own, which ends the process at once."""
    process = start(tmp_path, "engine.name=ray", "engine.workers=1")
    folder = tmp_path / "run"
    try:
        until(lambda: len(events(folder, "round")) > 2)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors[-2000:]
    assert f"Go on with: umbel resume {folder}" in errors
    assert list((folder / "checkpoints").glob("round-*"))
    assert not (folder / "ray").exists()
