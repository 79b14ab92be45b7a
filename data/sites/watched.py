"""Whether files and folders are as they were when they were looked at."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from umbel.core.files import stamp


@dataclass(frozen=True)
class Watched:
    """Files, and folders with all that is in them, as they were.

    Attributes:
        places: Which.
        stamps: The SHA-256 of all their stamps; no file is opened for it.
    """

    places: tuple[Path, ...]
    stamps: str

    @classmethod
    def now(cls, places: Iterable[Path]) -> Watched:
        """Return them as they are."""
        kept = tuple(places)
        return cls(kept, _stamps(kept))

    @property
    def unchanged(self) -> bool:
        """Whether nothing came, went or was written since."""
        return _stamps(self.places) == self.stamps


def _stamps(places: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for place in places:
        for path in _all(place):
            digest.update(os.fsencode(path) + f"\0{stamp(path)}\0".encode())
    return digest.hexdigest()


def _all(place: Path) -> Iterator[Path]:
    """Yield a file or folder, and what is in the folder; links to folders are followed, none twice."""
    yield place
    entered: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(place, followlinks=True):
        here = Path(folder)
        try:
            status = here.stat()
        except OSError:  # it went away just now, which its parent's stamp says
            continue
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (here / name for name in sorted((*folders, *names)))
