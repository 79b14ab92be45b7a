"""Paths that an experiment names."""

from __future__ import annotations

import os
from pathlib import Path

from umbel.conf.errors import ExperimentError

_LONGEST_PART, _LONGEST = 255, 4000  # bytes, that file systems take


def absolute(text: str, key: str) -> Path:
    """Return a path from the working directory, `~` in its place, so that it is the same in every other process.

    Raises:
        ExperimentError: No file system takes it, or there is no such home.
    """
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise ExperimentError(f"{key}={text}: {error}", key=key, remedy="Write the folder in full.") from error
    if len(os.fsencode(path)) > _LONGEST or any(len(os.fsencode(part)) > _LONGEST_PART for part in path.parts):
        raise ExperimentError(f"{key} is too long for a path: {text[:60]!r}...", key=key, remedy="Shorten it.")
    return path
