"""Threads of Flower draw beside a client, and nobody is taken for having drawn."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest
from flwr.supercore import heartbeat
from flwr.supercore.retry import retry_invoker

from tests.client.test_worker import run, work
from tests.end_to_end.test_engines import SMALL
from umbel.client.generators import set_apart
from umbel.client.worker import Worker
from umbel.conf.load import load
from umbel.server.session import Session


@pytest.fixture
def as_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's modules as they come, whatever ran in this process before."""
    for module in (heartbeat, retry_invoker):
        monkeypatch.setattr(module, "random", random)


@pytest.mark.usefixtures("as_loaded")
def test_what_flower_draws_is_not_drawn_from_the_global_generator() -> None:
    state = random.getstate()
    retry_invoker.full_jitter(1.0)
    assert random.getstate() != state  # as long as it is so, it has to be set apart
    set_apart("flwr")
    state = random.getstate()
    assert 0 <= retry_invoker.full_jitter(1.0) <= 1
    assert 0.7 <= heartbeat.random.uniform(0.7, 0.9) <= 0.9
    assert random.getstate() == state


@pytest.mark.usefixtures("as_loaded")
def test_a_client_beside_which_flower_draws_does_not_fail(tmp_path: Path) -> None:
    worker = Worker(load("digits", SMALL), tmp_path)
    over = threading.Event()

    def draw() -> None:
        while not over.is_set():
            retry_invoker.full_jitter(1.0)
            time.sleep(0.0005)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        outcome = run(worker, Session(worker.experiment), work(worker, "train"))
    finally:
        over.set()
        thread.join()
    assert not outcome.failures
