"""Show the logs of a folder, and what is added to them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from umbel.core.names import printable
from umbel.core.refusal import Refusal
from umbel.simulations.sites.folders import kind_of, server_folder
from umbel.simulations.sites.serve import last_lines

_LOGS = {"server": ("serve.log", "superlink.log"), "site": ("join.log", "node.log")}
_LOOK_SECONDS = 0.5


def log_files(folder: Path) -> list[Path]:
    """Return the logs of a server's or a site's folder.

    Raises:
        Refusal: It has none.
    """
    folder = folder.expanduser().absolute()
    kind = kind_of(folder)
    if kind not in _LOGS:
        raise Refusal(f"{folder} has no logs: name a run.", remedy=f"umbel federate logs {folder} RUN")
    home = server_folder(folder) if kind == "server" else folder
    return [home / "logs" / name for name in _LOGS[kind]]


def lines(files: list[Path], number: int, follow: bool, site: str = "") -> Iterator[str]:
    """Yield the last lines of logs, then those that are added, fit for a terminal whoever has brought them about.

    Args:
        files: The logs; one that is begun anew is read on.
        number: How many of each.
        follow: Whether to wait for more, for ever.
        site: Only lines that name it.
    """
    at = {}
    for file in files:
        at[file] = (file.stat().st_ino, file.stat().st_size) if file.is_file() else (0, 0)
        yield from (printable(line) for line in last_lines(file, number) if site in line)
    while follow:
        for file in files:
            if not file.is_file():
                continue
            inode, place = at[file]
            now = file.stat()
            place = place if now.st_ino == inode and now.st_size >= place else 0
            with file.open("rb") as opened:
                opened.seek(place)
                content = opened.read()
            whole = content[: content.rfind(b"\n") + 1]
            at[file] = (now.st_ino, place + len(whole))
            yield from (printable(line) for line in whole.decode("utf-8", "replace").splitlines() if site in line)
        time.sleep(_LOOK_SECONDS)
