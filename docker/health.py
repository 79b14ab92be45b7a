#!/usr/bin/env python
"""Exit 0 when the container of a folder does what it is there for, else 1 with a line that says what is wrong.

umbel-health FOLDER, the folder of a server or of a site.

A server serves: its supervisor says that it is up, and both its ports speak TLS under the federation's certificate.
A site is taken: its supervisor says that the server has accepted its node, whose key it knows, and has not lost it
since; and the server is there. Torch is not loaded: this runs four times a minute.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil

from umbel.core.refusal import Refusal
from umbel.simulations.sites.diagnose import unreachable
from umbel.simulations.sites.names import Address, address_of
from umbel.simulations.sites.settings import SERVER, SITE, ServerSettings, SiteSettings, read_settings

CA, RUNNING, LOGS = "ca.pem", "running.json", ("serve.log", "join.log")
CLOCK_SECONDS = 2.0  # births are by the clock, which may be set meanwhile
ANY = {"0.0.0.0", "::"}  # noqa: S104 - it is compared with, not listened on


def problem(folder: Path) -> str:
    """Return what is wrong, or nothing.

    Raises:
        Refusal: The folder is nobody's, or its settings cannot be read.
    """
    try:
        noted = json.loads((folder / RUNNING).read_text(encoding="utf-8"))
        is_same = abs(psutil.Process(noted["pid"]).create_time() - noted["born"]) < CLOCK_SECONDS
        ready = is_same and noted["ready"]
    except (OSError, ValueError, KeyError, psutil.Error):
        return f"nothing runs in {folder}; {last_word(folder)}"
    if not ready:
        return f"not ready; {last_word(folder)}"
    if (folder / SERVER).is_file():
        settings = read_settings(folder / SERVER, ServerSettings)
        listen = address_of(settings.listen, "listen")
        fleet = Address("127.0.0.1", listen.port) if listen.host in ANY else listen
        control = Address("127.0.0.1", settings.control_port)
        return unreachable(fleet, folder / CA) or unreachable(control, folder / CA)
    site = read_settings(folder / SITE, SiteSettings)
    return unreachable(address_of(site.server, "server"), folder / CA)


def last_word(folder: Path) -> str:
    """Return the last line that the supervisor of a folder said."""
    for log in (folder / "logs" / name for name in LOGS):
        if log.is_file():
            return (log.read_text(encoding="utf-8", errors="replace").splitlines() or ["no word yet"])[-1]
    return "no word yet"


def main(arguments: list[str]) -> str:
    """Return what is wrong with the folder that is named."""
    if len(arguments) != 1:
        return "expected one FOLDER, of a server or of a site"
    try:
        return problem(Path(arguments[0]).absolute())
    except Refusal as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) or 0)
