"""The same code on CUDA: runs in every precision, repeats its bits, keeps data on the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from umbel import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SMALL = ("data.max_train=300", "data.num_clients=4", "run.rounds=2", "client.device=cuda", "client.epochs=1")


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("model", ["cnn", "cvt_tiny32"])
def test_a_run_in_every_precision(model: str, precision: str, tmp_path: Path) -> None:
    options = (*SMALL, f"model.name={model}", f"client.precision={precision}", f"run.results={tmp_path}")
    result = run("digits", *options)
    assert result.summary["num_failures"] == 0
    assert result.summary["metrics"]["test/loss"] < 3


def test_the_gpu_agrees_with_the_cpu(tmp_path: Path) -> None:
    """In float64 the two differ by rounding only."""
    options = (*SMALL, "model.name=cnn", "client.precision=fp64", f"run.results={tmp_path}")
    losses = [
        run("digits", *options, f"client.device={device}").summary["metrics"]["test/loss"] for device in ("cuda", "cpu")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_workers_share_a_gpu(engine: str, tmp_path: Path) -> None:
    options = (*SMALL, "model.name=cnn", f"engine.name={engine}", "engine.workers=2", "engine.gpus_per_worker=0.5")
    assert run("digits", *options, f"run.results={tmp_path}").summary["num_failures"] == 0


def test_batches_are_cut_on_the_device(tmp_path: Path) -> None:
    """A client's data goes to the device once: rounds after the first copy no images."""
    from torch.profiler import ProfilerActivity, profile

    from umbel.client.host import Clients, Host
    from umbel.conf.load import load
    from umbel.core.memory import MemoryStore

    experiment = load("digits", [*SMALL, "model.name=cnn", f"run.results={tmp_path}"])
    clients = Clients(Host(experiment), MemoryStore(tmp_path))
    tree = clients.host.weights(clients.host.model)

    def train() -> None:
        context = clients.context(0, 1, "train", None, lambda _: None)
        context.train(context.model(tree))

    train()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        train()
    copies = [event for event in profiler.events() if "HtoD" in event.name]
    largest = max((getattr(event, "nbytes", 0) or 0 for event in copies), default=0)
    images = clients.data(0).train.images
    assert largest < images.numel() * 4
