"""What tests of emoji share: tiny packages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.data.sets.emoji.tiny_packages import make_packages


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    make_packages(folder)
    return folder


@pytest.fixture
def tiny(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own with the tiny packages in it."""
    shutil.copytree(packages, tmp_path / "cache")
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
