"""What tests of sets share: a cache of the test's own, a machine without packages, and an MNIST of few pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.sets.idx_files import write_mnist
from umbel.data.sources import debian


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no folder of data in the environment."""
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UMBEL_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def bare_machine(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a machine without packages."""
    monkeypatch.setattr(debian, "ROOT", tmp_path / "no-root")
    return own_cache


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    """The four files of MNIST, with few pictures of noise."""
    return write_mnist(tmp_path / "idx")
