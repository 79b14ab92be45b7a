"""Names of what a process writes before it is whole, by which the next start knows what a killed one left behind."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

_DAY = 24 * 60 * 60.0  # what another machine wrote into a shared folder counts as left behind after so long
_SAME_MOMENT = 2.0  # file systems note times to the second or two
_LONGEST_NAME = 120  # of 255 bytes
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_PART = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{32}\.part", re.DOTALL)
_FOLDER = re.compile(r"umbel-[a-z]+-([0-9a-f]{8})-(\d+)-\w+")


def beside(path: Path) -> Path:
    """Return a path beside another, under which a file or folder stands until it is whole."""
    stem = os.fsencode(path.name)[:_LONGEST_NAME].decode(errors="ignore")
    return path.with_name(f".{stem}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex}.part")


def prefix(purpose: str) -> str:
    """Return how the name of a temporary folder of this process begins.

    Args:
        purpose: Lower-case letters.
    """
    return f"umbel-{purpose}-{_HOST}-{os.getpid()}-"


def sweep(*folders: Path) -> list[Path]:
    """Remove what killed processes left in folders, and in the folder of temporary files.

    Args:
        folders: Where files and folders are written beside their final place; folders within are not looked into.

    Returns:
        What was removed.
    """
    temporary = Path(tempfile.gettempdir()).glob("umbel-*")
    return _remove(temporary, _FOLDER) + [path for each in folders for path in _remove(each.glob(".*.part"), _PART)]


def sweep_within(folder: Path) -> list[Path]:
    """Remove what killed processes left in a folder, however deep."""
    return _remove(list(folder.rglob(".*.part")), _PART)


def _remove(paths: Iterable[Path], form: re.Pattern[str]) -> list[Path]:
    removed = []
    for path in paths:
        match = form.fullmatch(path.name)
        with suppress(FileNotFoundError):  # another start sweeps as well
            if match and _is_left(path, match[1], int(match[2])):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)  # it may be somebody else's
                else:
                    path.unlink()
                removed.append(path)
    return removed


def _is_left(path: Path, host: str, pid: int) -> bool:
    """Say whether the process that was writing is dead; a younger one may have its number."""
    written = path.stat().st_mtime
    if host != _HOST:
        return time.time() - written > _DAY
    try:
        return psutil.Process(pid).create_time() > written + _SAME_MOMENT
    except psutil.NoSuchProcess:
        return True
