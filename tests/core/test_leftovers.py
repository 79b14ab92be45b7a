"""What killed processes leave behind is removed by the next start, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.places import ROOT
from umbel.core.leftovers import beside, prefix, sweep, sweep_within

_WRITES = """
import sys, tempfile
from pathlib import Path
from umbel.core.leftovers import beside, prefix
folder = Path(sys.argv[1])
file = beside(folder / "a.json")
file.write_text("half")
part = beside(folder / ("run" * 80))
part.mkdir()
(part / "inner").write_text("half")
deep = folder / "run" / "memory" / "0"
deep.mkdir(parents=True)
beside(deep / "7.safetensors").write_text("half")
print(tempfile.mkdtemp(prefix=prefix("fold")), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of temporary files of this test's own."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_of_a_process_that_lives_nothing_goes_and_of_a_dead_one_all(tmp_path: Path, temporary: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITES, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert writer.stdout is not None and writer.stdin is not None
    assert Path(writer.stdout.readline().decode().strip()).parent == temporary
    assert sweep(folder) == [] and sweep_within(folder) == []
    writer.kill()
    writer.communicate()
    assert len(sweep(folder)) == 3  # a file, a folder, and that of temporary files
    assert len(sweep_within(folder / "run")) == 1
    assert not list(temporary.iterdir())
    assert [path for path in folder.rglob("*") if not path.is_dir()] == []


def test_what_others_made_stays(tmp_path: Path, temporary: Path) -> None:
    kept = [tmp_path / ".mine.part", tmp_path / "round-000001.part", temporary / "umbel-fold-x", temporary / "other"]
    for path in kept:
        path.mkdir()
    assert sweep(tmp_path) == [] and all(path.exists() for path in kept)


def test_a_younger_process_may_have_the_number(tmp_path: Path, temporary: Path) -> None:
    ours, long_ago = beside(tmp_path / "a"), time.time() - 30 * 24 * 3600
    ours.write_text("half")
    assert sweep(tmp_path) == []
    os.utime(ours, (long_ago, long_ago))  # before this process began: another had its number then
    assert sweep(tmp_path) == [ours]


def test_another_machines_goes_after_a_day(tmp_path: Path, temporary: Path) -> None:
    ours = beside(tmp_path / "a").name
    start, host_and_rest = ours[:3], ours[3:]
    theirs = tmp_path / f"{start}{'0' * 8}{host_and_rest[8:]}"
    theirs.write_text("half")
    assert sweep(tmp_path) == []
    os.utime(theirs, (time.time() - 90_000,) * 2)
    assert sweep(tmp_path) == [theirs]


def test_names_fit_into_255_bytes(tmp_path: Path) -> None:
    for name in ("a" * 255, "\U0001f33f" * 60, os.fsdecode(b"\xff" * 255)):
        beside(tmp_path / name).touch()
    assert prefix("fold") != prefix("bundle")
