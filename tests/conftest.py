"""Fixtures that tests on several engines share: a federation that is up, a Ray that is started once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulations import federate


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Four warm SuperNodes behind a SuperLink, used by every run of a module that asks for grpc."""
    home = tmp_path_factory.mktemp("federation")
    before = os.environ.get("UMBEL_HOME")
    os.environ["UMBEL_HOME"] = str(home)
    try:
        federate.start(4, home)
        yield home
    finally:
        federate.stop(home)
        if before is None:
            del os.environ["UMBEL_HOME"]
        else:
            os.environ["UMBEL_HOME"] = before


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray, started once for a module; a run that finds it started uses it."""
    import ray

    from simulations.ray_engine import own_signals

    with contextlib.chdir(tmp_path_factory.mktemp("neutral")), own_signals():
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()
