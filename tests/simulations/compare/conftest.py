"""A comparison in several settings that ran through, for the tests that look at it or go on from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result

from tests.simulations.compare.matrices import umbel, written
from umbel.simulations.report import matrix as report_matrix
from umbel.simulations.report import page


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A matrix that ran through, and what the command said."""
    folder = tmp_path_factory.mktemp("whole")
    result = umbel("compare", written(folder), "--output", folder / "m")
    assert result.exit_code == 0, result.output
    return folder, result


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are written, and what takes seconds is not drawn."""
    for place in (report_matrix, page):
        monkeypatch.setattr(place, "write_pictures", lambda _: None)
    monkeypatch.setattr(page, "report", lambda _: None)
